"""Pretraining and sampling results as blocks of a page."""

from typing import Any

from micdiffrep_jax import log
from micdiffrep_jax.reporting import report_plots
from micdiffrep_jax.reporting.page import Block, Facts, Picture, Table, Text
from micdiffrep_jax.reporting.report_run import Run, drawn, pictures

_BINS = 'val_loss_t'  # + the first timestep of the bin


def pretraining(run: Run) -> list[Block]:
  """Facts and curves; curves also of a run that is not finished."""
  lines = log.read_metrics(run.folder)
  if run.record is None:
    if not lines:
      return []
    text = f'{run.name} is not finished: {run.problem}. Curves so far.'
    return [Text(text, 'warning'), *curves(lines)]
  record = run.record
  config = record.get('config') or {}
  unseen = record.get('unseen') or {}
  pairs: list[tuple[str, Any]] = [
    ('method', config.get('method')),
    ('parameters', f'{record.get("parameters", 0) / 1e6:.2f} M'),
    ('steps', record.get('steps')),
    ('images drawn', record.get('images_seen')),
    ('images per second', f'{record.get("images_per_s") or 0:.1f}'),
    ('training time', _minutes(record.get('training_s'))),
    ('training images', unseen.get('train_images')),
    (
      'test images seen, by id, pixels, group',
      ', '.join(
        str(unseen.get(f'shared_{k}', '?'))
        for k in ('images', 'pixels', 'groups')
      ),
    ),
    ('validation loss', _number(record.get('val_loss'))),
    ('quick probe, balanced accuracy', _number(record.get('probe_accuracy'))),
  ]
  facts = Facts([(k, v) for k, v in pairs if v not in (None, '')])
  return [facts, *curves(lines), *pictures(run)]


def _number(x: Any) -> str:
  return '' if x is None else f'{x:.4f}'


def _minutes(seconds: float | None) -> str:
  return '' if seconds is None else f'{seconds / 60:.1f} min'


def curves(lines: list[dict[str, float]]) -> list[Picture]:
  """Loss, validation loss by timestep, probe accuracy, against images drawn."""
  per_step = [
    x['images_seen'] / x['step'] for x in lines if x.get('images_seen')
  ]
  scale = per_step[-1] if per_step else 1.0
  axis = 'images drawn' if per_step else 'step'

  def line(name):
    points = [
      (x['step'] * scale, x[name])
      for x in lines
      if x.get(name) is not None and (x[name] or name != 'images_per_s')
    ]
    return tuple(zip(*points)) if points else None

  def chart(names, ylabel, caption, log_y=False, y_range=None):
    series = {label: line(name) for name, label in names.items()}
    series = {k: v for k, v in series.items() if v}
    if not series:
      return []
    return [
      drawn(
        report_plots.lines,
        series,
        axis,
        ylabel,
        log_y,
        y_range,
        caption=caption,
      )
    ]

  known = sorted({k for x in lines for k in x})
  bins = {
    k: f't from {int(k.removeprefix(_BINS))}' for k in known if _BINS in k
  }
  return [
    *chart(
      {'loss': 'training', 'val_loss': 'validation'},
      'loss',
      'Training loss (running mean) and validation loss (fixed noise).',
      True,
    ),
    *chart(bins, 'loss', 'Validation loss by tenth of the timesteps.', True),
    *chart(
      {'probe_accuracy': 'quick probe'},
      'balanced accuracy',
      'Quick probe of frozen features on validation images. It is fitted and '
      'scored on few images and moves by chance: the log has its intervals, '
      'and the results of a probe are the ones to quote.',
      y_range=(0, 1),  # a point up or down must not fill the picture
    ),
    *chart(
      {'images_per_s': 'speed'}, 'images per second', 'Speed of training.'
    ),
  ]


def samples(run: Run) -> list[Block]:
  """Pictures, whether they are copies, and how good they are."""
  assert run.record is not None
  record = run.record
  blocks: list[Block] = []
  for space, found in (record.get('memorisation') or {}).items():
    text = (
      f'Copies, in {space}: {100 * found["share_close"]:.1f} % of the samples '
      'lie closer to a training image than nearly all unseen images do '
      f'({100 * found["share_expected"]:.1f} % would by chance).'
    )
    blocks.append(Text(text, 'bad' if found['warning'] else 'good'))
  model = record.get('model') or {}
  if model.get('images_seen'):
    blocks.append(
      Text(
        f'Drawn by the model after {model["images_seen"]} images in '
        f'{record.get("steps")} steps.'
      )
    )
  blocks += _quality(record)
  return blocks + list(pictures(run))


def _quality(record: dict[str, Any]) -> list[Block]:
  rows = []
  for space, found in (record.get('quality') or {}).items():
    for who, name in (('generated', 'generated'), ('floor', 'real, as many')):
      q = found[who]
      rows.append(
        [
          f'{name}, {space}',
          found['images'][who],
          f'{q["frechet_distance"]:.3g}',
          f'{q["kernel_distance"]:.3g}',
          f'{q["precision"]:.2f}',
          f'{q["recall"]:.2f}',
        ]
      )
  if not rows:
    return []
  return [
    Table(
      ['images', 'n', 'Fréchet', 'kernel (MMD)', 'precision', 'recall'],
      rows,
      'Distance to validation images in a feature space of its own: compare '
      'with the real row, not with published FIDs.',
    )
  ]

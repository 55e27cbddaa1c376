"""Task `report`: one self-contained page from any set of result folders."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import json
import os
import time
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import manifest as tables
from micdiffrep_jax.data import splits, store
from micdiffrep_jax.data.sources import phantom
from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.draw.page import (
  Block,
  Code,
  Facts,
  Heading,
  Section,
  Table,
  Text,
)
from micdiffrep_jax.draw.result import (
  RESULTS,
  WORDS,
  Run,
  count,
  drawn,
  patients_in_words,
  pictures,
  record_of,
)
from micdiffrep_jax.run import files, log
from micdiffrep_jax.run.records import Content, Damaged
from micdiffrep_jax.studies import (
  page_audit,
  page_folds,
  page_labels,
  page_probe,
  page_splits,
  page_table1,
)

# Studies that start runs of their own, which they report themselves.
_OWN_RUNS = ('table1', 'splits')
_NO_RUNS = ('checkpoints', 'features', 'tensorboard', 'heatmaps')
_BINS = 'val_loss_t'  # + the first timestep of the bin
_CIRCUMSTANCES = (
  'config',
  'versions',
  'device',
  'host_cores',
  'command',
  'finished',
)


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Writes report.html and report.md; ValueError where no folder is given.

  A folder that holds nothing to report is named in the page, not refused.
  """
  if isinstance(config.runs, str):
    raise ValueError(
      f'config.runs={config.runs!r} is one text; give a tuple: '
      f'--config.runs="(\'{config.runs}\',)".'
    )
  if not config.runs:
    raise ValueError(
      "Nothing to report. Set --config.runs=\"('runs/pretrain',"
      "'runs/probe')\" to result folders."
    )
  found = collect(config.runs)
  sections = compose(found, config.look_up_data)
  when = time.strftime('%Y-%m-%d %H:%M')
  runs = count(sum(r.record is not None for r in found), 'run')
  subtitle = f'{runs}, written {when}'
  title = ', '.join([config.title, *about_data(found)])
  path = os.path.join(workdir, 'report.html')
  html = page.render(title, subtitle, sections)
  files.write_whole(path, html.encode())
  markdown = page.markdown(title, subtitle, sections)
  files.write_whole(os.path.join(workdir, 'report.md'), markdown.encode())
  log.get_logger().info('Report: %s', path)
  return files.write_results(
    workdir,
    {
      'task': 'report',
      'report': path,
      'sections': [s.title for s in sections if s.blocks],
      'missing': {r.name: r.problem for r in found if r.problem},
    },
    config,
  )


def collect(folders: Sequence[str]) -> list[Run]:
  """One run per folder, and those at any depth below it.

  The runs that a study of its own has started belong to that. A pipeline, and a
  folder without results, stand for what is in them.
  """
  found: dict[str, Run] = {}
  for folder in folders:
    path = os.path.abspath(folder)
    one = read(path, os.path.basename(path) or folder)
    below = [] if one.task in _OWN_RUNS else list(_below(path, one.name))
    parts = [p for p in below if p.task not in ('report', 'pipeline')]
    stands_for_others = one.record is None or one.task == 'pipeline'
    shown = parts if parts and stands_for_others else [one, *parts]
    found |= {r.folder: r for r in shown if r.folder not in found}
  return list(found.values())


def _below(folder: str, name: str) -> Iterator[Run]:
  """The runs in the folders of a folder, and in theirs."""
  for entry in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
    path = os.path.join(folder, entry)
    if entry in _NO_RUNS or not os.path.isdir(path) or os.path.islink(path):
      continue
    task = ''
    if os.path.exists(os.path.join(path, RESULTS)):
      run = read(path, f'{name}/{entry}')
      task = run.task
      yield run
    if task not in _OWN_RUNS:
      yield from _below(path, f'{name}/{entry}')


def about_data(found: Sequence[Run]) -> list[str]:
  """What data the runs are of, and of how many patients, in words."""
  told: dict[str, str] = {}
  for run in found:
    where = (run.record or {}).get('data')
    if isinstance(where, dict) and where.get('path'):
      path = str(where['path']).rstrip('/')
      generated = path.partition(':')[0] == 'phantom' or 'phantom-' in path
      name = 'generated phantoms' if generated else os.path.basename(path)
      patients = where.get('patients')
      words = f' ({patients_in_words(patients)})' if patients else ''
      told[name] = told.get(name) or words
  return [name + words for name, words in told.items()]


def in_short(found: Sequence[Run]) -> Section:
  """The result in a sentence, before anything else."""
  probes = [r for r in found if r.task in ('probe', 'finetune', 'evaluate')]
  section = _section('In short', lambda run: [page_probe.headline(run)], probes)
  blocks = [b for b in section.blocks if not getattr(b, 'tone', '')]
  return Section('In short', blocks)


def read(folder: str, name: str) -> Run:
  """A run's results, or the reason why there are none."""
  path = os.path.join(folder, RESULTS)
  if not os.path.isdir(folder):
    return Run(name, folder, None, 'the folder does not exist')
  try:
    with open(path, encoding='utf-8') as f:
      record = json.load(f)
    if not isinstance(record, dict):
      raise ValueError('no table of results')
  except FileNotFoundError:
    return Run(name, folder, None, f'no {RESULTS}: unfinished, or no run')
  except (OSError, ValueError) as e:
    return Run(name, folder, None, f'{RESULTS} cannot be read: {e}')
  return Run(name, folder, Content(record, path))


def _facts(pairs: Iterable[tuple[str, Any]]) -> Facts:
  """Those that are known."""
  return Facts(
    [(name, value) for name, value in pairs if value not in (None, '')]
  )


def _other(run: Run) -> list[Block]:
  """What is plain to show of a task that has no section: numbers, pictures."""
  pairs = [
    (name, f'{value:.6g}' if isinstance(value, float) else value)
    for name, value in record_of(run).items()
    if name not in _CIRCUMSTANCES and isinstance(value, str | int | float)
  ]
  return [Facts(pairs), *pictures(run)]


def _circumstances(run: Run) -> list[Block]:
  """Command, device, seed, versions and config of one run."""
  if run.record is None:
    return [Text(f'{run.folder}: {run.problem}.', 'warning')]
  record = run.record
  config = record.get('config') or {}
  split = record.get('data') or record.get('dataset') or {}
  device = f'{record.get("device")}, {record.get("host_cores")} host cores'
  versions = (record.get('versions') or {}).items()
  return [
    _facts(
      [
        ('task', run.task),
        ('folder', run.folder),
        ('command', ' '.join(record.get('command') or [])),
        ('device', device),
        ('seed', config.get('seed')),
        ('seeds', config.get('seeds')),
        ('data fingerprint', split.get('fingerprint')),
        ('split', split.get('split')),
        ('split hash', split.get('split_hash')),
        ('finished', record.get('finished')),
      ]
    ),
    Code(', '.join(f'{k} {v}' for k, v in versions), 'Versions'),
    Code(json.dumps(config, indent=2), 'Config'),
  ]


def pretraining(run: Run) -> list[Block]:
  """Facts and curves; curves also of a run that is not finished."""
  lines = log.read_metrics(run.folder)
  if run.record is None:
    if not lines:
      return []
    text = f'{run.name} is not finished: {run.problem}. Curves so far.'
    return [Text(text, 'warning'), *curves(lines)]
  record = run.record
  unseen = record.get('unseen') or {}
  shared = (f'shared_{kind}' for kind in ('images', 'pixels', 'groups'))
  facts = [
    ('method', (record.get('config') or {}).get('method')),
    ('parameters', f'{record.get("parameters", 0) / 1e6:.2f} M'),
    ('steps', record.get('steps')),
    ('images drawn', record.get('images_seen')),
    ('images per second', f'{record.get("images_per_s") or 0:.1f}'),
    ('training time', _number(record.get('training_s'), '{:.1f} min', 1 / 60)),
    ('training images', unseen.get('train_images')),
    (
      'test images seen, by id, pixels, group',
      ', '.join(str(unseen.get(name, '?')) for name in shared),
    ),
    ('validation loss', _number(record.get('val_loss'))),
    ('quick probe, balanced accuracy', _number(record.get('probe_accuracy'))),
  ]
  return [_facts(facts), *curves(lines), *pictures(run)]


def _number(x: float | None, text: str = '{:.4f}', scale: float = 1.0) -> str:
  return '' if x is None else text.format(scale * x)


def finetuning(run: Run) -> list[Block]:
  """What was trained on, on how many images, and its curves."""
  record = record_of(run)
  config = record['config']
  facts = [
    ('trained', config['tune']),
    ('first stage', config['from_stage']),
    ('parameters trained', f'{record["trained_parameters"] / 1e6:.2f} M'),
    ('share of labelled groups', f'{100 * record["share"]:g} %'),
    ('training images', record['train_images']),
    ('training groups', record['train_groups']),
    ('validation images', record['val_images']),
    ('step kept', record['best_step']),
  ]
  return [_facts(facts), *curves(log.read_metrics(run.folder))]


def curves(lines: Sequence[Mapping[str, float]]) -> list[Block]:
  """Loss, validation loss by timestep, probe accuracy, against images drawn."""
  per_step = [
    x['images_seen'] / x['step'] for x in lines if x.get('images_seen')
  ]
  scale = per_step[-1] if per_step else 1.0
  axis = 'images drawn' if per_step else 'step'
  known = sorted({name for x in lines for name in x})
  charts = (
    (
      {'loss': 'training', 'val_loss': 'validation'},
      'loss',
      'Training loss (running mean) and validation loss (fixed noise).',
    ),
    (
      {k: f't from {int(k.removeprefix(_BINS))}' for k in known if _BINS in k},
      'loss',
      'Validation loss by tenth of the timesteps.',
    ),
    (
      {'probe_accuracy': 'quick probe'},
      'balanced accuracy',
      'Quick probe of frozen features on validation images. It is fitted and '
      'scored on few images and moves by chance: the log has its intervals, '
      'and the results of a probe are the ones to quote.',
    ),
    (
      {'images_per_s': 'speed'},
      'images per second',
      'Speed of training.',
    ),
  )
  found: list[Block] = []
  for names, ylabel, caption in charts:
    series = {
      label: ([scale * step for step, _ in points], [y for _, y in points])
      for name, label in names.items()
      if (points := _points(lines, name))
    }
    if series:
      # A point of accuracy up or down must not fill the picture.
      y_range = (0.0, 1.0) if ylabel == 'balanced accuracy' else None
      figure = plots.lines(series, axis, ylabel, ylabel == 'loss', y_range)
      found.append(drawn(figure, caption))
  return found


def _points(
  lines: Sequence[Mapping[str, float]], name: str
) -> list[tuple[float, float]]:
  """Step and value of a metric; a speed of nothing is no measurement."""
  return [
    (x['step'], x[name])
    for x in lines
    if x.get(name) is not None and (x[name] or name != 'images_per_s')
  ]


def samples(run: Run) -> list[Block]:
  """Pictures, whether they are copies, and how good they are."""
  record = record_of(run)
  blocks: list[Block] = []
  for space, found in (record.get('memorisation') or {}).items():
    text = (
      f'Copies, in {space}: {100 * found["share_close"]:.1f} % of the samples '
      'lie closer to a training image than nearly all unseen images do '
      f'({100 * found["share_expected"]:.1f} % would by chance).'
    )
    blocks.append(Text(text, 'bad' if found['warning'] else 'good'))
  drawn_after = (record.get('model') or {}).get('images_seen')
  if drawn_after:
    text = f'Drawn by the model after {drawn_after} images in '
    blocks.append(Text(f'{text}{record.get("steps")} steps.'))
  return [*blocks, *_quality(record.get('quality') or {}), *pictures(run)]


def _quality(quality: Mapping[str, Mapping[str, Any]]) -> list[Table]:
  names = {'generated': 'generated', 'floor': 'real, as many'}
  rows = [
    [
      f'{name}, {space}',
      found['images'][who],
      f'{found[who]["frechet_distance"]:.3g}',
      f'{found[who]["kernel_distance"]:.3g}',
      f'{found[who]["precision"]:.2f}',
      f'{found[who]["recall"]:.2f}',
    ]
    for space, found in quality.items()
    for who, name in names.items()
  ]
  table = Table(
    ['images', 'n', 'Fréchet', 'kernel (MMD)', 'precision', 'recall'],
    rows,
    'Distance to validation images in a feature space of its own: compare '
    'with the real row, not with published FIDs.',
  )
  return [table] if rows else []


def one_per_dataset(found: Sequence[Run]) -> list[Run]:
  """The first run of each dataset; the audited ones have a section already."""
  kept: dict[str, Run] = {}
  audited = {fingerprint(r) for r in found if r.task == 'audit'}
  for r in found:
    mark = fingerprint(r)
    if mark and mark not in audited:
      kept.setdefault(mark, r)
  return list(kept.values())


def fingerprint(run: Run) -> str:
  """The fingerprint of the data that a run used, '' where it names none."""
  record = run.record or {}
  for name in ('data', 'dataset'):
    if isinstance(record.get(name), dict) and record[name].get('fingerprint'):
      return record[name]['fingerprint']
  return record.get('fingerprint') or ''


def _path(record: Mapping[str, Any]) -> str:
  """Where a run says its data lie; a phantom's folder is looked up."""
  config = record.get('config') or {}
  spec = (
    (record.get('data') or {}).get('path')
    or record.get('path')
    or (config.get('data') or {}).get('path')
    or ''
  )
  return spec if phantom.arguments_of(spec) is None else data.locate(spec)


def counts(run: Run) -> list[Block]:
  """Images per class and part of each split, groups, duplicates, refusals."""
  record = record_of(run)
  path = _path(record)
  try:
    info = store.read_info(path)
    manifest = store.read_manifest(path)
  except (OSError, ValueError) as e:
    return [Text(f'The data of {run.name} cannot be looked up: {e}', 'warning')]
  if info.fingerprint != fingerprint(run):
    text = f'The data in {path} are no longer those of {run.name}.'
    return [Text(text, 'warning')]
  split = (record.get('data') or record.get('dataset') or {}).get('split', '')
  near = info.near_duplicates
  size = f'{info.size_px} px, {info.channels} channel(s)'
  facts = [
    ('dataset', path),
    ('images', f'{info.images}, {size}'),
    ('classes', ', '.join(info.classes)),
    ('fingerprint', info.fingerprint),
    ('split used', split),
    ('files refused', info.rejected),
    ('near-duplicate pairs', near.get('pairs')),
    ('sources with a partner', near.get('sources_with_a_partner')),
    ('largest near-duplicate group', near.get('largest_group')),
    ('images left out, two labels', near.get('dropped')),
  ]
  table = tables.counts(manifest, info.classes)
  names = dict.fromkeys(x for x in (split, *splits.ALL) if x in table)
  return [
    _facts(facts),
    *(_parts(name, table[name], manifest) for name in names),
  ]


def _parts(
  name: str,
  parts: Mapping[str, Mapping[str, int]],
  manifest: Mapping[str, np.ndarray],
) -> Table:
  """Images of each class, groups and sources in the parts of a split."""
  rows = []
  for part, n in parts.items():
    inside = manifest[name] == part
    if sum(n.values()):
      n_groups = len(np.unique(manifest['group'][inside]))
      n_sources = int((inside & (manifest['variant'] == '')).sum())
      rows.append([part, *n.values(), sum(n.values()), n_groups, n_sources])
  labels = [x or '(unlabelled)' for x in next(iter(parts.values()))]
  heads = ['part', *labels, 'images', 'groups', 'sources']
  return Table(heads, rows, f'Split {name!r}.')


# Tasks and what a section shows of each run of theirs, in the page's order.
_PROBES = ('ablate', 'probe', 'finetune', 'evaluate')
SECTIONS: dict[str, tuple[Sequence[str], Callable[[Run], Sequence[Block]]]] = {
  'Results': (_PROBES, page_probe.results),
  'Table 1': (('table1',), page_table1.blocks),
  'Classes and calibration': (_PROBES, page_probe.classes),
  'Layers and timesteps': (_PROBES, page_probe.trials),
  'Splits': (('splits',), page_splits.blocks),
  'Cross-validation': (('cross_validate',), page_folds.blocks),
  'Few labels': (('label_efficiency',), page_labels.blocks),
  'Fine-tuning': (('finetune',), finetuning),
  'Pretraining': (('pretrain',), pretraining),
  'Samples': (('sample',), samples),
  'Data': ((), counts),
  'Audit': (('audit',), page_audit.blocks),
}


def compose(found: Sequence[Run], look_up: bool) -> list[Section]:
  """The sections of the page; a run that does not fit its section is said."""
  shown = {
    title: [r for r in found if r.task in tasks]
    for title, (tasks, _) in SECTIONS.items()
  }
  shown['Pretraining'] = [
    r for r in found if r.task == 'pretrain' or r.record is None
  ]
  shown['Data'] = one_per_dataset(found) if look_up else []
  known = {'pipeline'}.union(*(tasks for tasks, _ in SECTIONS.values()))
  others = [r for r in found if r.record is not None and r.task not in known]
  return [
    in_short(found),
    *(_section(title, SECTIONS[title][1], shown[title]) for title in SECTIONS),
    _section('Other runs', _other, others),
    Section('Words', [Facts(list(WORDS.items()))]),
    _section('Provenance', _circumstances, found),
  ]


def _section(
  title: str, make: Callable[[Run], Sequence[Block]], runs: Sequence[Run]
) -> Section:
  """Blocks of each run, under its name; a fault in a run becomes a line."""
  blocks: list[Block] = []
  for run in runs:
    try:
      found = make(run)
    # What a damaged folder holds in place of its results must not end a page.
    except (TypeError, ValueError, LookupError, AttributeError) as e:
      why = e if isinstance(e, Damaged) else repr(e)
      reason = f'{run.name}: not shown, its results lack something ({why}).'
      blocks.append(Text(reason, 'warning'))
      continue
    if found and len(runs) > 1:
      blocks.append(Heading(run.name))
    blocks += found
  return Section(title, blocks)

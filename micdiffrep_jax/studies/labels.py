"""Task `label_efficiency`: accuracy against the share of labelled groups.

Every method sees the same draws of training groups, stratified by class. The
features are standardised by all training images, whose labels that needs not.
Chosen on validation, anew for each draw: timestep, pooling, and the settings of
each head. Test labels are read by `score` alone.

Letters: n rows, g groups, q test rows, k classes.
"""

from collections.abc import Sequence
import os
import shutil
from typing import NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np
import pandas as pd

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.draw.result import FLOOR, title
from micdiffrep_jax.encoders import features
from micdiffrep_jax.encoders.cache import Cache
from micdiffrep_jax.heads import floors, matrix, table, trained
from micdiffrep_jax.heads.base import Problem, Settings
from micdiffrep_jax.heads.matrix import Features
from micdiffrep_jax.methods import Reader
from micdiffrep_jax.run import files, log
from micdiffrep_jax.run.checks import not_empty, one_of
from micdiffrep_jax.scores import bootstrap
from micdiffrep_jax.scores.bootstrap import BOUNDS
from micdiffrep_jax.scores.metrics import HEADLINE
from micdiffrep_jax.studies import ablate, base, grid, imagenet, probe, tuned
from micdiffrep_jax.studies.base import Parts
from micdiffrep_jax.studies.cuts import VALIDATION, draw_labels
from micdiffrep_jax.studies.grid import Spot
from micdiffrep_jax.studies.page_labels import Comparison, Curves, Point


class Draw(NamedTuple):
  """Labelled rows of one share and draw: positions in Parts.rows."""

  share: float
  number: int
  train: np.ndarray
  val: np.ndarray


class Said(NamedTuple):
  """What a method trained on one draw said of the test rows.

  classes (q,) int; chosen: what validation chose for it.
  """

  method: str
  draw: Draw
  classes: np.ndarray
  chosen: Settings


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before anything runs."""
  ablate.check(config)
  one_of(VALIDATION, config.validation, 'validation', '--config.validation')
  if config.online.views:
    raise ValueError(
      f'online.views={config.online.views}: draws of labels share features '
      'without views. Set --config.online.views=0.'
    )
  if config.heads.best_epoch:
    raise ValueError(
      'Choosing the epoch would use all validation labels for every share. '
      'Set --config.heads.best_epoch=False.'
    )
  tuned.check_ways(config)
  not_empty(config.fractions, '--config.fractions')
  not_empty(range(config.draws_of_labels), '--config.draws_of_labels')


def make_draws(
  ds: data.Dataset, parts: Parts, config: ConfigDict
) -> list[Draw]:
  """The draws of all shares; validation shrinks alike unless told otherwise."""
  groups = data.groups(ds)[parts.rows]
  sources = ds.manifest['variant'][parts.rows] == ''
  found = []
  for number in range(config.draws_of_labels):
    cuts = draw_labels(
      parts, groups, config.fractions, config.seed + number, config.validation
    )
    for share, cut in zip(config.fractions, cuts, strict=True):
      kept = (
        [rows[sources[rows]] for rows in cut] if config.sources_only else cut
      )
      if not all(map(len, kept)):
        raise ValueError(
          'A draw holds no untouched source. Set --config.sources_only=False.'
        )
      found.append(Draw(share, number, *kept))
  return found


def by_rows(draws: Sequence[Draw]) -> list[list[Draw]]:
  """Draws that hold the same rows, together: all of those of the whole."""
  found: dict[bytes, list[Draw]] = {}
  for draw in draws:
    mark = draw.train.tobytes() + b'/' + draw.val.tobytes()
    found.setdefault(mark, []).append(draw)
  return list(found.values())


def trained_answers(
  kind: str,
  draws: Sequence[Draw],
  sets: Sequence[Features],
  spots: Sequence[Spot],
  parts: Parts,
  training: grid.Training,
) -> list[Said]:
  """Heads of all draws of one share, trained together."""
  largest = max(len(draw.train) for draw in draws)
  heads, criterion = training.heads, training.criterion
  steps = -(-largest // heads.batch_size)
  options = trained.options_of(heads, kind)
  # A few images make few updates per pass: enough passes to converge.
  epochs = max(options.epochs, -(-heads.min_updates // steps))
  scores, logits = grid.fit_cells(
    kind,
    sets,
    spots,
    parts,
    [
      grid.Cell(i, draw.train, draw.val, draw.number, {'draw': j})
      for j, draw in enumerate(draws)
      for i in range(len(sets))
    ],
    np.concatenate([parts.val, parts.test]),
    training,
    options=options._replace(epochs=epochs),
  )
  lines = grid.lines_of(scores)
  said = []
  for at in scores.groupby('draw')[criterion].idxmax():
    line = lines[at]
    chosen = {
      'timestep': int(line['timestep']),
      **{x: line[x] for x in ('grid', *trained.Setting._fields)},
      'score': line[criterion],
    }
    answer = logits[at][len(parts.val) :].argmax(1)
    said.append(Said(f'{kind}_concat', draws[line['draw']], answer, chosen))
  return said


def classic_answers(
  name: str,
  draws: Sequence[Draw],
  sets: Sequence[Features],
  spots: Sequence[Spot],
  parts: Parts,
) -> list[Said]:
  """What a head without a learning rate says; it has no seed either."""
  said, y = [], parts.labels
  for same in log.progress(by_rows(draws), desc=name, unit='draw'):
    draw = same[0]
    fits = [
      table.fit(name, Problem(x, y, parts.classes, draw.train, draw.val))[0]
      for x in sets
    ]
    i = max(range(len(fits)), key=lambda j: fits[j].score)
    test = sets[i]._replace(x=sets[i].x[parts.test])
    answer = table.HEADS[name].predict(fits[i].params, test).argmax(1)
    chosen = {
      'timestep': spots[i].timestep,
      'grid': spots[i].grid,
      **fits[i].chosen,
      'score': fits[i].score,
    }
    said += [Said(name, draw, answer, chosen) for draw in same]
  return said


def encoder_answers(
  cache: Cache, draws: Sequence[Draw], parts: Parts, config: ConfigDict
) -> list[Said]:
  """What all heads on the encoder's features say, all layers side by side."""
  spots = [
    Spot(cache.layers, t, g) for t in cache.timesteps for g in config.grids
  ]
  sets = [
    grid.load(cache, spot, parts.train, config.standardise) for spot in spots
  ]
  training, said = grid.training_of(config), []
  for kind in config.heads.kinds:
    for share in config.fractions:
      mine = [d for d in draws if d.share == share]
      log.get_logger().info('%s heads, %g %% of groups.', kind, 100 * share)
      said += trained_answers(kind, mine, sets, spots, parts, training)
  if config.classic and not config.standardise:  # these always are
    sets = [matrix.standardise(s.x, parts.train, maps=s.maps) for s in sets]
  for name in config.classic:
    said += classic_answers(name, draws, sets, spots, parts)
  return said


def tuned_answers(
  source: base.Source,
  draws: Sequence[Draw],
  parts: Parts,
  config: ConfigDict,
  folder: str,
) -> list[Said]:
  """What the encoder says that was fine-tuned on each draw, in some ways.

  And the head on the frozen one that all of them started from.
  """
  s = tuned.subject(
    source.encoder,
    source.ds,
    parts.rows,
    config.data.split,
    config.finetune,
    os.path.join(folder, 'features'),
    source.name,
  )
  said = []
  for same in by_rows(draws):
    draw = same[0]
    cut = parts._replace(train=draw.train, val=draw.val)
    own = os.path.join(folder, f'{draw.share:g}_{draw.number}')
    found = tuned.answers(s, config.finetuned, cut, own)
    said += [
      Said(name, one, probs.argmax(1), found.chosen[name])
      for name, probs in found.probs.items()
      for one in same
    ]
  return said


def floor_answers(
  ds: data.Dataset,
  draws: Sequence[Draw],
  parts: Parts,
  names: Sequence[str],
  seed: int,
  folder: str,
) -> list[Said]:
  """What the baselines say; those without learned features choose nothing.

  folder: for the features of an encoder that is a floor.
  """
  groups = by_rows(draws)
  simple = [name for name in names if name != imagenet.NAME]
  found = floors.predict(
    ds.images,
    parts.rows,
    parts.classes,
    [floors.Cut(same[0].train, parts.test, parts.labels) for same in groups],
    simple,
    seed,
  )
  said = [
    Said(FLOOR + name, draw, probs.argmax(1), {})
    for name, answers in found.items()
    for same, probs in zip(groups, answers)
    for draw in same
  ]
  if len(simple) < len(names) and not imagenet.left_out(names):
    x = imagenet.features(ds, parts.rows, folder)
    sets = [matrix.standardise(x, parts.train)]
    spots = [Spot(imagenet.LAYERS, imagenet.TIMESTEP, imagenet.GRID)]
    answers = classic_answers(imagenet.HEAD, draws, sets, spots, parts)
    said += [s._replace(method=FLOOR + imagenet.NAME) for s in answers]
  return said


def layers_of(method: Reader, config: ConfigDict) -> tuple[str, ...]:
  """The layers to read, of the encoder or decoder alone where taps says so."""
  return ablate.of_taps(method, probe.layers_of(method, config), config.taps)


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Writes label_efficiency.csv, comparisons.csv, plots and results.json."""
  check(config)
  study = base.open_study(config, layers_of, config.step or None)
  ds, parts, split = study.ds, study.parts, config.data.split
  draws = make_draws(ds, parts, config)
  if config.finetuned:
    check_tuned(study, draws, config)
  absent = imagenet.told(config.floors)
  said: list[Said] = []
  folder = os.path.join(workdir, 'features')
  place = os.path.join(folder, '{}')
  timesteps = features.timesteps_of(study.encoder.method, config.timesteps)
  for source in base.sources(study, config, place):
    cache = source.extract(timesteps)
    answers = encoder_answers(cache, draws, parts, config)
    if config.finetuned:
      own = os.path.join(workdir, 'finetuned', base.who_of(source.name))
      answers += tuned_answers(source, draws, parts, config, own)
    said += [s._replace(method=source.name + s.method) for s in answers]
  said += floor_answers(ds, draws, parts, config.floors, config.seed, folder)

  found = score(said, ds, parts, config.resamples, config.seed)
  if jax.process_index() == 0:
    write(workdir, found)
    draw_curves(workdir, found.curves)
    print(text(found, split), flush=True)
  results = files.write_results(
    workdir,
    {
      'task': 'label_efficiency',
      **found.to_json(),
      'draws': [_record(d, data.groups(ds)[parts.rows]) for d in draws],
      'chosen_on': 'validation groups, '
      + ('all' if config.validation == 'all' else 'the same share of them'),
      **absent,
      **base.told(study, split),
    },
    config,
  )
  if not config.keep_features:
    shutil.rmtree(folder, ignore_errors=True)
  return results


def check_tuned(
  study: base.Study, draws: Sequence[Draw], config: ConfigDict
) -> None:
  """Raises ValueError where a draw cannot be fine-tuned on."""
  fewest = min(len(draw.train) for draw in draws)
  for draw in draws:
    cut = study.parts._replace(train=draw.train)
    tuned.check_classes(cut, study.ds.classes, '--config.fractions')
  tuned.check_encoder(study.encoder)
  with tuned.flags_of_part():
    tuned.check_tuning(
      config.finetune,
      study.encoder,
      study.ds,
      config.data.split,
      fewest,
      config.finetuned,
    )


def _record(draw: Draw, groups: np.ndarray) -> dict[str, float]:
  """How large a draw is; groups of all rows."""
  return {
    'share': draw.share,
    'draw': draw.number,
    'train_images': len(draw.train),
    'train_groups': len(np.unique(groups[draw.train])),
    'val_images': len(draw.val),
  }


def score(
  said: Sequence[Said],
  ds: data.Dataset,
  parts: Parts,
  resamples: int,
  seed: int,
) -> Curves:
  """A point per method, share and set of test images; and comparisons.

  A comparison is of a method on features with a floor, at the same share; of a
  fine-tuned encoder with the frozen one too.
  """
  test = parts.rows[parts.test]
  labels, groups = data.labels(ds)[test], data.groups(ds)[test]
  methods = list(dict.fromkeys(s.method for s in said))
  by_curve: dict[tuple[str, float], list[Said]] = {}
  for one in sorted(
    said, key=lambda s: (methods.index(s.method), s.draw.share, s.draw.number)
  ):
    by_curve.setdefault((one.method, one.draw.share), []).append(one)
  points, found = [], {}
  for (method, share), mine in by_curve.items():
    for name, keep in base.image_sets(ds, test).items():
      resampled = bootstrap.resample(
        labels[keep],
        np.stack([s.classes[keep] for s in mine]),
        groups[keep],
        len(ds.classes),
        resamples,
        seed,
      )
      found[method, share, name] = resampled
      scores = {
        metric: bootstrap.interval_over_draws(x)
        for metric, x in resampled.items()
      }
      chosen = tuple(s.chosen for s in mine)
      points.append(Point(method, share, name, scores, chosen))
  comparisons = [
    Comparison(
      method,
      floor,
      share,
      name,
      {
        metric: bootstrap.difference(x, found[floor, share, name][metric])
        for metric, x in a.items()
      },
    )
    for (method, share, name), a in found.items()
    if not method.startswith(FLOOR)
    for floor in methods
    if floor.startswith(FLOOR) or floor == frozen_of(method)
  ]
  return Curves(tuple(points), tuple(comparisons))


def write(workdir: str, found: Curves) -> None:
  """label_efficiency.csv and comparisons.csv."""
  keys = ('method', 'floor', 'share', 'images')
  page.write_csv(
    os.path.join(workdir, 'comparisons.csv'),
    (*keys, 'metric', *BOUNDS),
    [
      line
      for c in found.comparisons
      for line in base.by_metric({x: getattr(c, x) for x in keys}, c.scores)
    ],
  )
  lines = [
    {
      **{x: getattr(point, x) for x in ('method', 'share', 'images')},
      'metric': metric,
      'mean': (score := point.scores[metric]).value,
      **{x: getattr(score, x) for x in ('low', 'high', 'deviation')},
      'draws': len(score.each),
    }
    for point in found.curves
    for metric in HEADLINE
  ]
  path = os.path.join(workdir, 'label_efficiency.csv')
  page.write_csv(path, list(lines[0]), lines)


def frozen_of(method: str) -> str:
  """The row that a fine-tuned one started from; '' of others."""
  origin, slash, name = method.rpartition('/')
  tuned_one = name.startswith(tuned.TUNED)
  return f'{origin}{slash}{tuned.FROZEN}' if tuned_one else ''


def kind_of(method: str) -> str:
  """MSFA, or what a method is read from; of each the figure shows the best."""
  origin, _, name = method.rpartition('/')
  if name.startswith(tuned.TUNED):
    return f'{origin} fine-tuned'
  return 'MSFA' if method == 'mlp_concat' else origin or 'encoder'


def draw_curves(workdir: str, points: Sequence[Point]) -> None:
  """label_efficiency_METRIC_IMAGES.png: a line per method."""
  for images in dict.fromkeys(point.images for point in points):
    for metric in HEADLINE:
      series: dict[str, dict[str, list[float]]] = {}
      kinds: dict[str, str] = {}
      for point in (x for x in points if x.images == images):
        name = title(point.method)
        kinds[name] = kind_of(point.method)
        x, y = 100 * point.share, point.scores[metric]
        plots.add_point(series, name, x, y)
      figure = plots.few_labels(
        series,
        kinds,
        'labelled training groups, %',
        f'test {metric.replace("_", " ")}, %',
        {'all': 'All images', 'sources': 'Untouched pictures'}[images],
      )
      name = f'label_efficiency_{metric}_{images}.png'
      plots.save(os.path.join(workdir, name), figure)


def text(found: Curves, split: str) -> str:
  """Plain text: balanced accuracy by method and share, in percent."""
  images = found.subset
  cells: dict[str, dict[str, str]] = {}
  for point in (x for x in found.curves if x.images == images):
    share = f'{100 * point.share:g} %'
    cell = page.brackets(point.scores['balanced_accuracy'])
    cells.setdefault(title(point.method), {})[share] = cell
  return (
    f'Balanced accuracy on the test part of split {split!r} ({images}), '
    'percent, mean over draws [95 % over draws and groups].\n'
    + pd.DataFrame.from_dict(cells, orient='index').to_string()
  )

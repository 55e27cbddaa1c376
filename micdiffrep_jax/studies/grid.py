"""One search over heads on the features of an encoder, and one finish.

A study says which features, heads, seeds and rows; `search` gives one tidy
table of validation scores, `finish` fits what was chosen on all seeds,
calibrates it on validation rows and predicts the test rows, whose labels are
not in reach: they are -1 in Parts.

Letters: n rows of all parts, v validation rows, q test rows, k classes.
"""

from collections.abc import Iterable, Mapping, Sequence
import functools
import itertools
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np
import pandas as pd

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.draw.page import Line
from micdiffrep_jax.draw.result import FLOOR
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders.cache import Cache
from micdiffrep_jax.heads import floors, matrix, table, trained
from micdiffrep_jax.heads.base import HeadInfo, Problem, Settings
from micdiffrep_jax.heads.head_file import SavedHead
from micdiffrep_jax.heads.matrix import Features
from micdiffrep_jax.heads.trained import Options, Setting
from micdiffrep_jax.run import log
from micdiffrep_jax.scores import calibration, metrics
from micdiffrep_jax.studies import imagenet
from micdiffrep_jax.studies.base import Parts
from micdiffrep_jax.studies.cuts import Cut

POOLINGS = (1, 2, 4)  # cells a side
ENCODER = ('kind', 'part', 'layers', 'timestep', 'grid')  # columns of a table


class Spot(NamedTuple):
  """Where features are read: layers side by side, and pooling.

  Of several timesteps the features are fused: side by side too.
  """

  layers: tuple[str, ...]
  timestep: int | tuple[int, ...]
  grid: int


class Cell(NamedTuple):
  """One training problem of a grid.

  features: the number of its spot; train and val: positions in Parts.rows;
  tags: columns of its own in the table.
  """

  features: int
  train: np.ndarray
  val: np.ndarray
  seed: int
  tags: Mapping[str, Any]


class Trial(NamedTuple):
  """One cell with one setting, and its mean validation score over seeds."""

  kind: str
  spot: Spot
  setting: Setting
  score: float

  def record(self) -> Line:
    """As results.json holds it."""
    return {
      'kind': self.kind,
      **self.spot._asdict(),
      'setting': self.setting._asdict(),
      'score': self.score,
    }


class Row(NamedTuple):
  """Predictions of one method.

  chosen: what validation chose; val (v, k) and test (seeds, q, k)
  probabilities, val those of the first seed; temperature and head of that seed,
  None where there is nothing to save.
  """

  chosen: Settings
  val: np.ndarray
  test: np.ndarray
  temperature: float = 1.0
  test_uncalibrated: np.ndarray | None = None
  head: SavedHead | None = None


class Training(NamedTuple):
  """How heads are fitted, and the metric to choose them by.

  heads: config.heads; standardise: whether features are, by train statistics.
  """

  heads: ConfigDict
  seeds: Sequence[int]
  standardise: bool
  criterion: str


def training_of(config: ConfigDict) -> Training:
  """How the config of a study says that the final heads are fitted."""
  return Training(
    config.heads, config.seeds, config.standardise, config.criterion
  )


def load(
  cache: Cache,
  spot: Spot,
  train: np.ndarray,
  standardise: bool,
  rows: int | None = None,
) -> Features:
  """Features of the first `rows` rows, with statistics of the train rows."""
  x = feature_cache.training_matrix(
    cache, spot.timestep, spot.layers, spot.grid, train, rows
  )
  maps = feature_cache.maps_of(cache, spot.timestep, spot.layers, spot.grid)
  if standardise:
    return matrix.standardise(x, train, maps=maps)
  return matrix.literal(x, maps)


def fit_cells(
  kind: str,
  sets: Sequence[Features],
  spots: Sequence[Spot],
  parts: Parts,
  cells: Sequence[Cell],
  evaluate: np.ndarray,
  training: Training,
  options: Options | None = None,
  **how: Any,
) -> tuple[pd.DataFrame, list[np.ndarray]]:
  """Trains every setting of config.heads on every cell, all at once.

  sets: the features of each spot, of all parts or of the first ones; evaluate:
  ascending positions, among them the `val` of every cell; options: those of
  config.heads if None; how: more for trained.fit. Returns the table, one line
  per cell and setting, and of each line the logits (len(evaluate), k).
  """
  settings = trained.settings_of(training.heads)
  labels = parts.labels[: sets[0].x.shape[-2]]
  criteria = dict.fromkeys((*metrics.HEADLINE, training.criterion))
  fits = trained.fit(
    sets,
    labels,
    parts.classes,
    [trained.Cell(c.features, c.train, c.seed) for c in cells],
    settings,
    evaluate,
    options or trained.options_of(training.heads, kind),
    memory_mb=training.heads.memory_mb,
    **how,
  )
  lines, said = [], []
  for cell, fitted in zip(cells, fits):
    spot = spots[cell.features]
    at = np.searchsorted(evaluate, cell.val)
    for setting, logits in zip(settings, fitted.logits):
      lines.append(
        {
          'kind': kind,
          'layers': '+'.join(spot.layers),
          'timestep': level_name(spot.timestep),
          'grid': spot.grid,
          **setting._asdict(),
          'seed': cell.seed,
          'width': sets[cell.features].x.shape[-1],
          **{
            name: metrics.criterion(name, labels[cell.val], logits[at])
            for name in criteria
          },
          **cell.tags,
        }
      )
      said.append(logits)
  return pd.DataFrame(lines), said


def search(
  cache: Cache,
  parts: Parts,
  choices: Sequence[tuple[str, ...]],
  timesteps: Sequence[int | tuple[int, ...]],
  grids: Sequence[int],
  training: Training,
  desc: str,
  cuts: Sequence[Cut] = (),
) -> pd.DataFrame:
  """Validation scores of all heads of config.heads on all features.

  choices: layers to read together; the first ones are each of cache.layers, of
  part 'single' in the table, the others of part 'concat'. All heads of one
  kind, timestep and pooling are trained at once. cuts: rows to train on and to
  score, those of parts if there are none. Test rows are not loaded, and their
  labels not known; features are standardised by the train rows of parts.
  """
  cuts = cuts or [Cut(parts.train, parts.val)]
  seen = len(parts.train) + len(parts.val)
  assert max(parts.train.max(), parts.val.max()) < seen
  heads, y = training.heads, parts.labels[parts.train]
  weights = trained.class_weights(heads.balanced, y, parts.classes)
  cells = [
    Cell(i, cut.train, cut.val, seed, {'part': part})
    for i in range(len(choices))
    for part in ['single' if i < len(cache.layers) else 'concat']
    for seed in training.seeds
    for cut in cuts
  ]
  scored = np.unique(np.concatenate([cut.val for cut in cuts]))
  together = len(timesteps) * len(grids) * len(heads.kinds)
  bar = log.progress(total=together * len(cells), desc=desc, unit='cell')
  tables = []
  for t, grid in itertools.product(timesteps, grids):
    spots = [Spot(layers, t, grid) for layers in choices]
    sets = [
      load(cache, s, parts.train, training.standardise, seen) for s in spots
    ]
    for kind in heads.kinds:
      found, _ = fit_cells(
        kind,
        sets,
        spots,
        parts,
        cells,
        scored,
        training,
        class_weights=weights,
        bar=functools.partial(_count_cells, bar=bar),
      )
      tables.append(found)
  bar.close()
  return pd.concat(tables, ignore_index=True)


def _count_cells(chunks: Iterable, bar: Any) -> Iterable:
  """Moves a bar by the cells of each chunk that is done."""
  for chunk in chunks:
    yield chunk
    bar.update(len(chunk))


def level_name(timestep: int | tuple[int, ...]) -> str:
  """11 -> '11', (11, 51) -> '11+51'."""
  level = timestep if isinstance(timestep, tuple) else (timestep,)
  return '+'.join(map(str, level))


def parse_level(text: str) -> tuple[int, ...]:
  """'11+51' -> (11, 51); ValueError for anything else."""
  try:
    return tuple(int(part) for part in text.split('+'))
  except ValueError as e:
    raise ValueError(
      f"{text!r} names no timesteps; write '11+51' for a fusion of two. Set "
      '--config.fused.'
    ) from e


def average(scores: pd.DataFrame, criterion: str) -> pd.DataFrame:
  """Mean `score` over seeds and cuts of each cell and setting, in order."""
  keys = [*ENCODER, *Setting._fields]
  means = scores.groupby(keys, sort=False)[criterion].agg(
    lambda values: np.mean(values.to_numpy())
  )
  return means.rename('score').reset_index()


def lines_of(table: pd.DataFrame) -> list[Line]:
  """The lines of a table, of plain Python values."""
  return [
    {str(name): value for name, value in line.items()}
    for line in table.to_dict('records')
  ]


def trials_of(averaged: pd.DataFrame) -> list[Trial]:
  """The lines of an averaged table."""
  found = []
  for line in lines_of(averaged):
    level = parse_level(line['timestep'])
    step = level if len(level) > 1 else level[0]
    spot = Spot(tuple(line['layers'].split('+')), step, line['grid'])
    setting = Setting(line['learning_rate'], line['weight_decay'])
    found.append(Trial(line['kind'], spot, setting, line['score']))
  return found


def best(averaged: pd.DataFrame) -> Trial:
  """The line of the best score, of equals the first."""
  (trial,) = trials_of(averaged.nlargest(1, 'score'))
  return trial


def choose(averaged: pd.DataFrame, kinds: Sequence[str]) -> dict[str, Trial]:
  """The best of each row: {linear, mlp}_{single, concat}, and fused ones.

  Rows whose name starts with fused_ read several timesteps.
  """
  fused = averaged['timestep'].str.contains('+', regex=False)
  found: dict[str, Trial] = {}
  for prefix, steps in (('', ~fused), ('fused_', fused)):
    for kind in kinds:
      for part in ('single', 'concat'):
        is_mine = (averaged['kind'] == kind) & (averaged['part'] == part)
        if len(pool := averaged[is_mine & steps]):
          found[f'{prefix}{kind}_{part}'] = best(pool)
  return found


def finish(
  name: str,
  found: Features,
  parts: Parts,
  spot: Spot,
  training: Training | None = None,
  setting: Setting | None = None,
  given: Settings | None = None,
  told: Settings = MappingProxyType({}),
) -> Row:
  """A head fitted with every seed, calibrated, and predicted.

  found: features of all rows; told: what else is known of it. training and
  setting are of a head that is trained by gradient; the others have their
  settings `given` or choose for themselves, and their features are
  standardised.
  """
  head = table.HEADS[name]
  problem = Problem(found, parts.labels, parts.classes, parts.train, parts.val)
  if training and setting:
    heads, seeds = training.heads, training.seeds
    given = {'setting': setting._asdict()}
    fits = table.fit(name, problem, heads, seeds, given)
  else:
    fits = table.fit(name, problem, chosen=given)
  chosen = {**spot._asdict(), **told, **fits[0].chosen, **fits[0].told}
  whole = found.x if found.x.ndim == 2 else found.x[0]  # test: no view
  val, test = (found._replace(x=whole[at]) for at in (parts.val, parts.test))
  val_said = [
    head.predict(one.params, val) if one.logits is None else one.logits
    for one in fits
  ]
  test_said = [head.predict(one.params, test) for one in fits]
  if not head.calibrated:
    return Row(chosen, val_said[0], np.stack(test_said))
  y = parts.labels[parts.val]
  temperatures = [calibration.fit_temperature(said, y) for said in val_said]
  probs = [calibration.softmax(*x) for x in zip(test_said, temperatures)]
  saved = None
  if not isinstance(spot.timestep, tuple):  # files are of one timestep
    info = new_info(
      head.kind,
      spot,
      temperatures[0],
      standardise=training.standardise if training else True,
      **({'hidden': training.heads.hidden} if training else {}),
      **{k: v for k, v in chosen.items() if k not in ('kind', *Spot._fields)},
    )
    saved = SavedHead(fits[0].params, found.shift, found.scale, info)
  return Row(
    chosen,
    calibration.softmax(val_said[0], temperatures[0]),
    np.stack(probs),
    temperatures[0],
    calibration.softmax(test_said[0]),
    saved,
  )


def new_info(
  kind: str, spot: Spot, temperature: float = 1.0, **settings: Any
) -> HeadInfo:
  """What is known of a head once it is fitted; base.head_info adds the rest."""
  assert isinstance(spot.timestep, int)
  return HeadInfo(
    kind,
    spot.layers,
    spot.timestep,
    spot.grid,
    extracted_grid=spot.grid,
    draws=1,
    feature_seed=0,
    temperature=temperature,
    settings=settings,
  )


def fitted(
  name: str,
  found: Features,
  parts: Parts,
  spot: Spot,
  training: Training,
) -> Row:
  """A head with the settings that are best on validation, finished.

  training: of a head with a learning rate.
  """
  if table.HEADS[name].fit is not None:
    return finish(name, found, parts, spot)
  labels = parts.labels[parts.train]
  scores, _ = fit_cells(
    name,
    [found],
    [spot],
    parts,
    [Cell(0, parts.train, parts.val, seed, {}) for seed in training.seeds],
    parts.val,
    training,
    class_weights=trained.class_weights(
      training.heads.balanced, labels, parts.classes
    ),
  )
  lines = lines_of(scores)
  best = max(lines, key=lambda line: line[training.criterion])
  setting = Setting(best['learning_rate'], best['weight_decay'])
  return finish(name, found, parts, spot, training, setting)


def finish_trial(
  cache: Cache, parts: Parts, trial: Trial, training: Training
) -> Row:
  """The row of a trial that was chosen."""
  found = load(cache, trial.spot, parts.train, training.standardise)
  told = {'kind': trial.kind, 'score': trial.score, 'width': found.x.shape[-1]}
  return finish(
    trial.kind, found, parts, trial.spot, training, trial.setting, told=told
  )


def classic_rows(
  cache: Cache,
  parts: Parts,
  spot: Spot,
  names: Sequence[str],
  cuts: Sequence[Cut] = (),
) -> dict[str, Row]:
  """The heads without a learning rate, which are always standardised.

  Their settings are the best of several cuts, else of the validation rows.
  """
  if not names:
    return {}
  where = (cache, spot.timestep, spot.layers, spot.grid)
  found = matrix.standardise(
    feature_cache.matrix(*where),
    parts.train,
    maps=feature_cache.maps_of(*where),
  )
  rows = {}
  for name in names:
    log.get_logger().info('Probe: %s.', name)
    given = _best_of_cuts(name, found, parts, cuts) if cuts[1:] else None
    rows[name] = finish(name, found, parts, spot, given=given)
  return rows


def _best_of_cuts(
  name: str, found: Features, parts: Parts, cuts: Sequence[Cut]
) -> Settings:
  """The settings of the highest mean score among those tried in every cut."""
  scores: dict[tuple, list[float]] = {}
  for cut in cuts:
    problem = Problem(found, parts.labels, parts.classes, *cut)
    (fitted,) = table.fit(name, problem)
    for settings, score in fitted.tried:
      key = tuple(settings.items())
      scores.setdefault(key, []).append(score)
  means: dict[tuple, float] = {
    k: float(np.mean(v)) for k, v in scores.items() if len(v) == len(cuts)
  }
  best = max(means.items(), key=lambda item: item[1])[0]
  return dict(best)


def floor_rows(
  ds: data.Dataset,
  cuts: Sequence[Parts],
  names: Sequence[str],
  seed: int,
  folder: str,
) -> list[dict[str, Row]]:
  """The baselines on each cut of the same rows, without those left out.

  Images are described once for all. folder: for the features of an encoder that
  is a floor.
  """
  rows, classes = cuts[0].rows, cuts[0].classes
  simple = [name for name in names if name != imagenet.NAME]
  said = floors.predict(
    ds.images,
    rows,
    classes,
    [
      floors.Cut(x.train, np.concatenate([x.val, x.test]), x.labels)
      for x in cuts
    ],
    simple,
    seed,
  )
  found: list[dict[str, Row]] = [{} for _ in cuts]
  for name, answers in said.items():
    for cut, probs, own in zip(cuts, answers, found, strict=True):
      val, test = np.split(probs, [len(cut.val)])
      own[name] = Row({}, val, test[None])
  if len(simple) < len(names) and not imagenet.left_out(names):
    x = imagenet.features(ds, rows, folder)
    spot = Spot(imagenet.LAYERS, imagenet.TIMESTEP, imagenet.GRID)
    for cut, own in zip(cuts, found, strict=True):
      standard = matrix.standardise(x, cut.train)
      row = finish(imagenet.HEAD, standard, cut, spot)
      own[imagenet.NAME] = row._replace(head=None)
  return [
    {FLOOR + name: own[name] for name in names if name in own} for own in found
  ]

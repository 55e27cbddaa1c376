"""All heads on the features of one encoder: search, choice, final heads.

Letters: n rows of all parts, v validation rows, q test rows, k classes.
"""

from collections.abc import Iterable, Sequence
import functools
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders.cache import Cache, matrix
from micdiffrep_jax.heads import matrix as feature_matrix
from micdiffrep_jax.heads import trained
from micdiffrep_jax.heads.head_file import Bundle
from micdiffrep_jax.heads.matrix import Features
from micdiffrep_jax.heads.trained import Cell, Setting
from micdiffrep_jax.run import log
from micdiffrep_jax.scores import calibration, metrics
from micdiffrep_jax.studies.probe_rows import (
  Parts,
  Row,
  kernel_row,
  knn_row,
  logistic_row,
)


class Trial(NamedTuple):
  """One cell of the search with one setting, and its validation score."""

  kind: str
  layers: tuple[str, ...]
  timestep: int | tuple[int, ...]  # several are fused
  grid: int
  setting: Setting
  score: float


def load(
  cache: Cache, parts: Parts, config: ConfigDict, t: Any, layers: Any, grid: int
) -> Features:
  """Features of all rows, with statistics of the train rows."""
  x = feature_cache.training_matrix(cache, t, layers, grid, parts.train)
  if not config.standardise:
    return feature_matrix.literal(x)
  return feature_matrix.standardise(x, parts.train)


def score(labels: np.ndarray, logits: np.ndarray, criterion: str) -> float:
  """What a head is chosen by; larger is better."""
  return metrics.criterion(criterion, labels, logits)


def search(
  cache: Cache, parts: Parts, k: int, config: ConfigDict, desc: str
) -> list[Trial]:
  """Every layer and their concatenation, by timestep, grid, kind and setting.

  One seed, the first: the others measure the spread of what was chosen.
  """
  settings = [
    Setting(lr, decay)
    for lr in config.heads.learning_rates
    for decay in config.heads.weight_decays
  ]
  choices = [(layer,) for layer in cache.layers] + [cache.layers]
  weights = trained.class_weights(
    config.heads.balanced, parts.labels[parts.train], k
  )
  todo = len(cache.timesteps) * len(config.grids) * len(config.heads.kinds)
  bar = log.progress(total=todo * len(choices), desc=desc, unit='cell')
  trials = []
  for t in cache.timesteps:
    for grid in config.grids:
      sets = [load(cache, parts, config, t, c, grid) for c in choices]
      cells = [Cell(i, parts.train, config.seeds[0]) for i in range(len(sets))]
      for kind in config.heads.kinds:
        fits = trained.fit(
          sets,
          parts.labels,
          k,
          cells,
          settings,
          parts.val,
          trained.options_of(config.heads, kind),
          weights,
          memory_mb=config.heads.memory_mb,
          bar=functools.partial(count_cells, bar=bar),
        )
        trials += [
          Trial(kind, c, t, grid, s, score(y, logits, config.select))
          for y in [parts.labels[parts.val]]
          for c, fitted in zip(choices, fits)
          for s, logits in zip(settings, fitted.logits)
        ]
  bar.close()
  return trials


def count_cells(chunks: Iterable, bar: Any) -> Iterable:
  """Moves a bar by the cells of each chunk that is done."""
  for chunk in chunks:
    yield chunk
    bar.update(len(chunk))


def finish(
  cache: Cache, parts: Parts, k: int, trial: Trial, config: ConfigDict
) -> tuple[Row, Bundle]:
  """The chosen cell trained with every seed, calibrated, and predicted."""
  found = load(cache, parts, config, trial.timestep, trial.layers, trial.grid)
  fits = trained.fit(
    [found],
    parts.labels,
    k,
    [Cell(0, parts.train, seed) for seed in config.seeds],
    [trial.setting],
    parts.val,
    trained.options_of(config.heads, trial.kind),
    trained.class_weights(config.heads.balanced, parts.labels[parts.train], k),
    keep_params=True,
    memory_mb=config.heads.memory_mb,
  )
  whole = found.x if found.x.ndim == 2 else found.x[0]  # test: no view
  test = found._replace(x=whole[parts.test])
  y = parts.labels[parts.val]
  temperatures, probs, raw = [], [], []
  for fitted in fits:
    assert fitted.params is not None
    temperatures.append(calibration.fit_temperature(fitted.logits[0], y))
    logits = trained.predict(trial.kind, fitted.params, test)[0]
    probs.append(calibration.softmax(logits, temperatures[-1]))
    raw.append(calibration.softmax(logits))
  chosen = {
    **trial._asdict(),
    'setting': trial.setting._asdict(),
    'width': found.x.shape[-1],
  }
  val = calibration.softmax(fits[0].logits[0], temperatures[0])
  row = Row(chosen, val, np.stack(probs), temperatures[0], raw[0])
  assert fits[0].params is not None
  info = head_info(row, config) | {
    'hidden': config.heads.hidden,
    'standardise': config.standardise,
  }
  return row, Bundle(fits[0].params, found.shift, found.scale, info)


def head_info(row: Row, config: ConfigDict) -> dict[str, Any]:
  """What a bundle says of its head and of the features it takes."""
  return {
    **row.chosen,
    'extracted_grid': max(config.grids),
    'draws': config.draws,
    'feature_seed': config.seed,
    'temperature': row.temperature,
  }


def classic_rows(
  cache: Cache, parts: Parts, k: int, best: Trial, config: ConfigDict
) -> tuple[dict[str, Row], dict[str, Bundle]]:
  """The probes of config.classic, on the features that `best` chose."""
  if not config.classic:
    return {}, {}
  x = matrix(cache, best.timestep, best.layers, best.grid)
  found = feature_matrix.standardise(x, parts.train)
  chosen = {
    'layers': best.layers,
    'timestep': best.timestep,
    'grid': best.grid,
  }
  rows, heads = {}, {}
  for name in config.classic:
    log.get_logger().info('Probe: %s.', name)
    row = rows[name] = CLASSIC[name](found, parts, k, chosen)
    if row.params is not None:
      kind = 'kernel' if name == 'kernel' else 'linear'
      info = head_info(row, config) | {'kind': kind, 'standardise': True}
      heads[name] = Bundle(row.params, found.shift, found.scale, info)
  return rows, heads


CLASSIC = {'logistic': logistic_row, 'knn': knn_row, 'kernel': kernel_row}


def run_suite(
  cache: Cache,
  parts: Parts,
  classes: Sequence[str],
  config: ConfigDict,
  desc: str,
) -> tuple[dict[str, Row], list[dict], Bundle]:
  """The suite of one encoder: rows by name, all trials, the bundled head.

  Rows: {linear, mlp}_{single, concat}, where mlp_concat is MSFA; then the
  probes of config.classic, on the concatenation at the timestep and grid that
  the best concatenated head chose. They are always standardised.
  """
  k = len(classes)
  trials = search(cache, parts, k, config, desc)
  log.get_logger().info('Final heads: %d seeds.', len(config.seeds))
  rows, heads = {}, {}
  for kind in config.heads.kinds:
    for name, many in (('single', False), ('concat', True)):
      # trials hold each layer first and the concatenation last, by settings.
      pool = [
        trial
        for trial in trials
        if trial.kind == kind
        and ((trial.layers == cache.layers) if many else len(trial.layers) == 1)
      ]
      best = max(pool, key=lambda trial: trial.score)
      rows[f'{kind}_{name}'], heads[f'{kind}_{name}'] = finish(
        cache, parts, k, best, config
      )
  best = max(
    (trial for trial in trials if trial.layers == cache.layers),
    key=lambda trial: trial.score,
  )
  more, bundled = classic_rows(cache, parts, k, best, config)
  rows, heads = rows | more, heads | bundled
  tried = [{**t._asdict(), 'setting': t.setting._asdict()} for t in trials]
  return rows, tried, heads[config.bundle]

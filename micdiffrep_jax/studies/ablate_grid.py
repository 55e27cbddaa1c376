"""Every head of a grid on the features of one timestep, and its results file.

The grid is layer (each, and all side by side) x pooling x head x learning rate
x weight decay x seed. What validation says of it is kept in one file per
timestep, so that an interrupted study goes on from there.

Letters: k classes.
"""

from collections.abc import Sequence
import functools
import json
import os
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders.cache import Cache
from micdiffrep_jax.encoders.encoder import Encoder
from micdiffrep_jax.heads import matrix, trained
from micdiffrep_jax.heads.trained import Cell, Setting
from micdiffrep_jax.run import files, log
from micdiffrep_jax.scores.metrics import HEADLINE
from micdiffrep_jax.studies import grid as probe_suite
from micdiffrep_jax.studies.grid import Trial
from micdiffrep_jax.studies.probe_rows import Parts

Level = tuple[int, ...]  # one timestep, or several whose features are fused


class Scored(NamedTuple):
  """One trained head and its validation scores; width: its features."""

  kind: str
  layers: tuple[str, ...]
  timestep: str  # '11', or '11+51' where several are fused
  grid: int
  learning_rate: float
  weight_decay: float
  seed: int
  width: int
  accuracy: float
  balanced_accuracy: float


def name(level: Level) -> str:
  """(11, 51) -> '11+51'."""
  return '+'.join(map(str, level))


def parse(text: str) -> Level:
  """'11+51' -> (11, 51); ValueError for anything else."""
  try:
    return tuple(int(part) for part in text.split('+'))
  except ValueError as e:
    raise ValueError(
      f"{text!r} names no timesteps; write '11+51' for a fusion of two. Set "
      '--config.fused.'
    ) from e


def key(
  encoder: Encoder,
  ds: data.Dataset,
  layers: tuple[str, ...],
  level: Level,
  config: ConfigDict,
  weights_seed: int,
) -> dict[str, Any]:
  """All that decides the scores of a timestep."""
  heads = {k: v for k, v in config.heads.items() if k != 'memory_mb'}
  fields = ('grids', 'draws', 'seed', 'standardise', 'search_seeds', 'online')
  return files.plain(
    {
      'encoder': encoder.info.as_dict(),
      'encoder_config': encoder.config,
      'weights_seed': weights_seed,
      'dataset': ds.fingerprint,
      'split_hash': data.split_hash(ds, config.data.split),
      'layers': layers,
      'timesteps': level,
      'heads': heads,
      **{field: config[field] for field in fields},
    }
  )


def read(path: str, want: dict[str, Any]) -> list[Scored] | None:
  """The scores of a finished timestep; None where they are of something else.

  The file is written whole or not at all, so what is there can be trusted.
  """
  try:
    with open(path) as f:
      record = json.load(f)
  except (OSError, ValueError):
    return None
  if record.get('key') != want:
    return None
  return [
    Scored(**{**head, 'layers': tuple(head['layers'])})
    for head in record['heads']
  ]


def write(path: str, want: dict[str, Any], heads: Sequence[Scored]) -> None:
  """Keeps the scores of a timestep, under what decides them."""
  files.write_json(path, {'key': want, 'heads': [h._asdict() for h in heads]})


def search(
  cache: Cache,
  parts: Parts,
  k: int,
  config: ConfigDict,
  level: Level,
  desc: str = 'heads',
) -> list[Scored]:
  """Trains the whole grid of one timestep; heads of a kind and grid at once.

  Test rows are not loaded, and their labels not known.
  """
  seen = len(parts.train) + len(parts.val)
  assert max(parts.train.max(), parts.val.max()) < seen
  labels = parts.labels[:seen]
  settings = [
    Setting(rate, decay)
    for rate in config.heads.learning_rates
    for decay in config.heads.weight_decays
  ]
  choices: list[tuple[str, ...]] = [(layer,) for layer in cache.layers]
  if len(cache.layers) > 1:
    choices.append(cache.layers)
  cells = [
    (i, seed) for i in range(len(choices)) for seed in config.search_seeds
  ]
  weights = trained.class_weights(config.heads.balanced, labels[parts.train], k)
  bar = log.progress(
    total=len(config.grids) * len(config.heads.kinds) * len(cells),
    desc=desc,
    unit='cell',
  )
  found = []
  for grid in config.grids:
    sets = []
    for layers in choices:
      x = feature_cache.training_matrix(
        cache, level, layers, grid, parts.train, seen
      )
      sets.append(
        matrix.standardise(x, parts.train)
        if config.standardise
        else matrix.literal(x)
      )
    for kind in config.heads.kinds:
      fits = trained.fit(
        sets,
        labels,
        k,
        [Cell(i, parts.train, seed) for i, seed in cells],
        settings,
        parts.val,
        trained.options_of(config.heads, kind),
        weights,
        memory_mb=config.heads.memory_mb,
        bar=functools.partial(probe_suite.count_cells, bar=bar),
      )
      for (i, seed), fitted in zip(cells, fits):
        for setting, logits in zip(settings, fitted.logits):
          y = labels[parts.val]
          found.append(
            Scored(
              kind,
              choices[i],
              name(level),
              grid,
              *setting,
              seed,
              sets[i].x.shape[-1],
              *(probe_suite.score(y, logits, c) for c in HEADLINE),
            )
          )
  bar.close()
  return found


def average(heads: Sequence[Scored], criterion: str) -> list[Trial]:
  """Mean scores over seeds: one trial per cell and setting, in their order."""
  table: dict[tuple, list[float]] = {}
  for h in heads:
    at = (h.kind, h.layers, h.timestep, h.grid)
    setting = Setting(h.learning_rate, h.weight_decay)
    table.setdefault((*at, setting), []).append(getattr(h, criterion))
  trials = []
  for (kind, layers, timestep, grid, setting), scores in table.items():
    level = parse(timestep)
    step = level[0] if len(level) == 1 else level
    trials.append(
      Trial(kind, layers, step, grid, setting, float(np.mean(scores)))
    )
  return trials


def choose(trials: Sequence[Trial], kinds: Sequence[str]) -> dict[str, Trial]:
  """The best of each row: {linear, mlp}_{single, concat}, and fused ones.

  Rows whose name starts with fused_ read several timesteps.
  """
  found: dict[str, Trial] = {}
  for prefix, many_steps in (('', False), ('fused_', True)):
    for kind in kinds:
      for part, many in (('single', False), ('concat', True)):
        pool = [
          t
          for t in trials
          if t.kind == kind
          and (len(t.layers) > 1) == many
          and isinstance(t.timestep, tuple) == many_steps
        ]
        if pool:
          found[f'{prefix}{kind}_{part}'] = max(pool, key=lambda t: t.score)
  return found


def path(folder: str, level: Level) -> str:
  """The results file of a timestep."""
  return os.path.join(folder, f't{name(level)}.json')

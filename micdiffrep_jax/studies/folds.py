"""Task `cross_validate`: encoders side by side, the test part unread.

Validation holds a few hundred groups: two encoders that differ by less than its
interval are not told apart there, and the best of many trials is so by luck in
part. Here every labelled image of train and validation is predicted once, by a
head that saw none of its group.

Letters: n labelled rows of train and validation, k classes.
"""

from collections.abc import Mapping, Sequence
import os
import shutil
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import promises
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.heads import floors, matrix
from micdiffrep_jax.run import files, log
from micdiffrep_jax.run.checks import lookup
from micdiffrep_jax.studies import cross_tables, fold_cuts, grid, probe
from micdiffrep_jax.studies.cross_tables import FLOOR, Key
from micdiffrep_jax.studies.probe_rows import Parts


class Candidate(NamedTuple):
  """An encoder at one timestep; prefix is 'random/' for its random twin."""

  name: str
  encoder: encoders.Encoder
  layers: tuple[str, ...]
  timestep: int
  prefix: str


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before anything runs."""
  if isinstance(config.checkpoints, str) or not config.checkpoints:
    raise ValueError(
      f'checkpoints={config.checkpoints!r}: give a tuple of pretraining '
      'folders or bundles, --config.checkpoints="(\'RUN\',)".'
    )
  wanted = _layers(config)
  if len(wanted) != len(config.checkpoints):
    raise ValueError(
      f'layers={config.layers!r} for {len(config.checkpoints)} checkpoints: '
      "give one text of each, '' for all, or leave out --config.layers."
    )
  if len(set(zip(config.checkpoints, wanted))) < len(wanted):
    raise ValueError(
      'The same encoder with the same layers stands twice in '
      f'--config.checkpoints={config.checkpoints!r}.'
    )
  for field in ('timesteps', 'heads'):
    if not config[field]:
      raise ValueError(f'--config.{field} is empty; give at least one.')
  for name in config.heads:
    lookup(grid.CLASSIC, name, 'head', '--config.heads')
  if config.grid not in probe.GRIDS:
    raise ValueError(
      f'grid={config.grid}; one of {probe.GRIDS}. Set it with --config.grid.'
    )
  if config.folds < 3:
    raise ValueError(
      f'folds={config.folds}: one is predicted, one chosen on, the rest fitted '
      'on. Set --config.folds to 3 or more.'
    )
  floors.check(config.floors)


def _layers(config: ConfigDict) -> Sequence[str]:
  """The texts of config.layers, one of each checkpoint."""
  return config.layers or [''] * len(config.checkpoints)


def candidates(config: ConfigDict, ds: data.Dataset) -> list[Candidate]:
  """All encoders at all timesteps, loaded and checked against the dataset.

  Raises ValueError for an encoder that had labels: it may have read those of
  the images that it is to be judged on.
  """
  found = []
  for path, text in zip(config.checkpoints, _layers(config)):
    encoder = encoders.load_encoder(path, None)
    told = [
      fact
      for fact in ('supervised', 'supervised_text')
      if encoder.method.facts.get(fact)
    ]
    if told:
      raise ValueError(
        f'{path!r} was trained with labels ({told[0]}), maybe those of the '
        'images that would judge it. Leave it out of --config.checkpoints, and '
        'compare it on test with configs/table1.py.'
      )
    features.check_images(encoder, ds)
    noisy = encoder.method.timesteps > 1
    timesteps = config.timesteps if noisy else (0,)
    layers = features.check_request(
      encoder.method, tuple(text.split('+')) if text else (), timesteps
    )
    twins = encoders.with_twin(encoder, config.random_encoder, config.seed)
    for prefix, one in twins.items():
      for t in timesteps:
        name = f'{path} {text}'.strip() + (f', t = {t}' if noisy else '')
        found.append(Candidate(name, one, layers, t, prefix))
  return found


def drawn(one: Candidate, ds: data.Dataset, rows: np.ndarray) -> int | None:
  """How many of rows pretraining drew, without labels; None: not known."""
  info = one.encoder.info
  if one.prefix:
    return 0
  if info.fingerprint != ds.fingerprint:
    return None
  seen = data.pretraining_rows(ds, info.split or '', tuple(info.spared or ()))
  return int(np.isin(rows, seen).sum())


def _features(
  one: Candidate,
  ds: data.Dataset,
  rows: np.ndarray,
  config: ConfigDict,
  folder: str,
) -> np.ndarray:
  """Features (n, d) float16 of all layers side by side."""
  cache = feature_cache.fill(
    folder,
    one.encoder,
    ds,
    rows,
    one.layers,
    (one.timestep,),
    config.grid,
    config.draws,
    config.seed,
    config.batch_size,
    weights_seed=config.seed if one.prefix else 0,
  )
  return feature_cache.matrix(cache, one.timestep, one.layers, config.grid)


def _floors(
  ds: data.Dataset, rotated: Sequence[Parts], k: int, config: ConfigDict
) -> dict[Key, np.ndarray]:
  """Probabilities (n, k) of the floors, fitted on the rows that heads are."""
  found: dict[Key, np.ndarray] = {}
  for part in rotated if config.floors else ():
    train, test = part.rows[part.train], part.rows[part.test]
    said = floors.predict(ds, train, test, config.floors, config.seed)
    for name, probs in said.items():
      whole = found.setdefault(
        Key('', FLOOR + name), np.zeros((len(part.rows), k))
      )
      whole[part.test] = probs
  return found


def predict(
  x: np.ndarray,
  parts: Sequence[Parts],
  k: int,
  heads: Sequence[str],
  chosen: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], dict[str, list[dict]]]:
  """Probabilities (n, k) of each head, and what each rotation chose."""
  probs = {name: np.zeros((len(x), k)) for name in heads}
  choices: dict[str, list[dict]] = {name: [] for name in heads}
  for part in log.progress(parts, desc='folds', unit='fold'):
    found = matrix.standardise(x, part.train)
    for name in heads:
      row = grid.CLASSIC[name](found, part, k, dict(chosen))
      probs[name][part.test] = row.test[0]
      choices[name].append(row.chosen)
  return probs, choices


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Predicts by every candidate; writes table, predictions and a picture.

  Features are kept in the workdir until all is done, so that a stopped run goes
  on from them.
  """
  check(config)
  ds = data.open_dataset(config.data.path, config.data.cache)
  doubts = promises.refuse(ds, config.data.split, config.allow_failed_audit)
  whole = probe.labelled_parts(ds, config.data.split)
  at = np.concatenate([whole.train, whole.val])
  rows, y, k = whole.rows[at], whole.labels[at], len(ds.classes)
  groups = data.groups(ds)[rows]
  cuts = fold_cuts.rotations(y, groups, config.folds, config.seed)
  # What is predicted has no label that a head could read.
  rotated = [
    Parts(rows, train, val, test, np.where(np.isin(range(len(y)), test), -1, y))
    for train, val, test in cuts
  ]
  tried = candidates(config, ds)
  os.makedirs(workdir, exist_ok=True)

  probs: dict[Key, np.ndarray] = {}
  told: dict[Key, dict[str, Any]] = {}
  for number, one in enumerate(tried):
    folder = os.path.join(workdir, 'features', str(number))
    x = _features(one, ds, rows, config, folder)
    chosen = {'layers': one.layers, 'timestep': one.timestep}
    found, choices = predict(x, rotated, k, config.heads, chosen)
    for head in config.heads:
      key = Key(one.name, one.prefix + head)
      probs[key] = found[head]
      told[key] = {
        'chosen': choices[head],
        'images_seen': one.encoder.info.images_seen,
        'drawn_in_pretraining': drawn(one, ds, rows),
      }
  probs |= _floors(ds, rotated, k, config)
  results = {
    'task': 'cross_validate',
    **cross_tables.score(probs, told, ds, rows, cuts, config),
    'audit_reasons': doubts,
    'data': {
      **probe.describe(ds, config.data.split, whole),
      'predicted': len(rows),
      'groups': len(np.unique(groups)),
    },
  }
  if jax.process_index() == 0:
    cross_tables.write(workdir, results)
    cross_tables.save_predictions(workdir, probs, ds, rows)
    print(cross_tables.text(results), flush=True)
  shutil.rmtree(os.path.join(workdir, 'features'), ignore_errors=True)
  return files.write_results(workdir, results, config)

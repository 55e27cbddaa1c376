"""Task `cross_validate`: encoders side by side, the test part unread.

Validation holds a few hundred groups: two encoders that differ by less than its
interval are not told apart there, and the best of many trials is so by luck in
part. Here every labelled image of train and validation is predicted once, by a
head that saw none of its group.

Test labels of the split stay unread; those of what a fold predicts are -1 for
its heads, and read by `folds_table.score` alone.

Letters: n labelled rows of train and validation, k classes.
"""

from collections.abc import Mapping, Sequence
import itertools
import os
import shutil
from typing import NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import promises
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.heads import matrix, table
from micdiffrep_jax.heads.base import Settings
from micdiffrep_jax.heads.matrix import Features
from micdiffrep_jax.run import files, log
from micdiffrep_jax.run.checks import lookup, not_empty, one_of
from micdiffrep_jax.studies import (
  base,
  committees,
  folds_table,
  grid,
  imagenet,
  tuned,
)
from micdiffrep_jax.studies.base import Parts
from micdiffrep_jax.studies.cuts import VALIDATION, draw_labels, group_folds
from micdiffrep_jax.studies.grid import Spot
from micdiffrep_jax.studies.page_folds import Key


class Candidate(NamedTuple):
  """An encoder at one timestep; prefix is 'random/' for its random twin.

  path: its checkpoint, as the config gives it.
  """

  name: str
  encoder: encoders.Encoder
  layers: tuple[str, ...]
  timestep: int
  prefix: str
  path: str = ''


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before anything runs."""
  computed = set(config.floors) - set(imagenet.left_out(config.floors))
  if isinstance(config.checkpoints, str) or not (
    config.checkpoints or computed
  ):
    raise ValueError(
      f'checkpoints={config.checkpoints!r}: give a tuple of pretraining '
      'folders or bundles, --config.checkpoints="(\'RUN\',)"; or floors that '
      'can be computed, --config.floors, for a table of them alone.'
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
  for field in ('timesteps', 'heads', 'fractions'):
    not_empty(config[field], f'--config.{field}')
  for name in config.heads:
    lookup(table.HEADS, name, 'head', '--config.heads')
  if config.grid not in grid.POOLINGS:
    raise ValueError(
      f'grid={config.grid}; one of {grid.POOLINGS}. Set it with --config.grid.'
    )
  if config.folds < 3:
    raise ValueError(
      f'folds={config.folds}: one is predicted, one chosen on, the rest fitted '
      'on. Set --config.folds to 3 or more.'
    )
  one_of(VALIDATION, config.validation, 'validation', '--config.validation')
  tuned.check_ways(config)
  imagenet.check(config.floors)
  for text in config.committees:
    committees.parse(text, config.checkpoints, config.floors)


def _layers(config: ConfigDict) -> Sequence[str]:
  """The texts of config.layers, one of each checkpoint."""
  return config.layers or [''] * len(config.checkpoints)


def rotations(
  labels: np.ndarray, groups: np.ndarray, folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """(train, val, test) rows of each rotation; every row is in one test.

  labels (n,) int >= 0, groups (n,). Groups stay whole, classes in proportion as
  far as groups allow; the fold after the one predicted is the one to choose on.
  There are at most as many folds as a class has groups. Raises ValueError where
  a class has fewer than three.
  """
  parts = group_folds(labels, groups, folds, seed, least=3)
  found = []
  for i, test in enumerate(parts):
    val = parts[(i + 1) % len(parts)]
    held_out = np.concatenate([val, test])
    train = np.setdiff1d(np.arange(len(labels)), held_out)
    found.append((train, val, test))
  return found


def candidates(
  config: ConfigDict, ds: data.Dataset, rows: np.ndarray
) -> list[Candidate]:
  """All encoders at all timesteps, loaded and checked against rows of the data.

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
    encoder = features.meet(encoder, ds, rows)
    noisy = encoder.method.timesteps > 1
    timesteps = features.timesteps_of(encoder.method, config.timesteps)
    layers = features.check_request(
      encoder.method, tuple(text.split('+')) if text else (), timesteps
    )
    twins = encoders.with_twin(encoder, config.random_encoder, config.seed)
    for prefix, one in twins.items():
      for t in timesteps:
        name = f'{path} {text}'.strip() + (f', t = {t}' if noisy else '')
        found.append(Candidate(name, one, layers, t, prefix, path))
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
) -> Features:
  """Features (n, d) float16 of all layers side by side, as they are."""
  cache = base.Source(
    one.prefix,
    folder,
    one.encoder,
    ds,
    rows,
    one.layers,
    config.grid,
    config.draws,
    config.seed,
    config.batch_size,
    deviation=config.deviation,
  ).extract((one.timestep,))
  where = (cache, one.timestep, one.layers, config.grid)
  return matrix.literal(
    feature_cache.matrix(*where), feature_cache.maps_of(*where)
  )


def predict(
  whole: Features,
  parts: Sequence[Parts],
  heads: Sequence[str],
  spot: Spot,
  training: grid.Training,
) -> tuple[dict[str, np.ndarray], dict[str, list[Settings]]]:
  """Probabilities (n, k) of each head, and what each rotation chose."""
  shape = len(whole.x), parts[0].classes
  probs = {name: np.zeros(shape) for name in heads}
  choices: dict[str, list[Settings]] = {name: [] for name in heads}
  for part in log.progress(parts, desc='folds', unit='fold'):
    found = matrix.standardise(whole.x, part.train, maps=whole.maps)
    for name in heads:
      row = grid.fitted(name, found, part, spot, training)
      probs[name][part.test] = row.test[0]
      choices[name].append(row.chosen)
  return probs, choices


def subject_of(
  one: Candidate,
  ds: data.Dataset,
  rows: np.ndarray,
  config: ConfigDict,
  folder: str,
) -> tuned.Subject:
  """A candidate as what is fine-tuned in each rotation."""
  return tuned.subject(
    one.encoder,
    ds,
    rows,
    config.data.split,
    _recipe(one, config),
    os.path.join(folder, 'features'),
    one.prefix,
  )


def predict_tuned(
  s: tuned.Subject,
  rotated: Sequence[Parts],
  ways: Sequence[str],
  folder: str,
) -> tuple[dict[str, np.ndarray], dict[str, list[Settings]]]:
  """As `predict`, of an encoder fine-tuned in each rotation.

  Beside the head on the frozen encoder that all start from.
  """
  shape = len(rotated[0].rows), rotated[0].classes
  probs: dict[str, np.ndarray] = {}
  choices: dict[str, list[Settings]] = {}
  for i, part in enumerate(rotated):
    found = tuned.answers(s, ways, part, os.path.join(folder, str(i)))
    for name, said in found.probs.items():
      probs.setdefault(name, np.zeros(shape))[part.test] = said
      choices.setdefault(name, []).append(found.chosen[name])
  return probs, choices


def _recipe(one: Candidate, config: ConfigDict) -> ConfigDict:
  """config.finetune at the noise of a candidate."""
  found = config.finetune.copy_and_resolve_references()
  with found.unlocked():
    found.timestep = one.timestep
  return found


def check_tuned(
  found: Sequence[Candidate],
  ds: data.Dataset,
  rotated: Sequence[Parts],
  config: ConfigDict,
) -> None:
  """Raises ValueError where a candidate cannot be fine-tuned as is asked."""
  fewest = min(len(part.train) for part in rotated)
  for one in found if config.finetuned else ():
    tuned.check_encoder(one.encoder)
    with tuned.flags_of_part():
      tuned.check_tuning(
        _recipe(one, config),
        one.encoder,
        ds,
        config.data.split,
        fewest,
        config.finetuned,
      )


def predict_floors(
  ds: data.Dataset,
  by_share: Mapping[float, Sequence[Parts]],
  names: Sequence[str],
  seed: int,
  folder: str,
) -> dict[Key, np.ndarray]:
  """Probabilities (n, k) of the floors, fitted on the rows that heads are."""
  cuts = [(share, x) for share, rotated in by_share.items() for x in rotated]
  parts = [part for _, part in cuts]
  shape = len(parts[0].rows), parts[0].classes
  rows = grid.floor_rows(ds, parts, names, seed, folder)
  probs: dict[Key, np.ndarray] = {}
  for (share, part), own in zip(cuts, rows, strict=True):
    for name, row in own.items():
      whole = probs.setdefault(Key('', name, share), np.zeros(shape))
      whole[part.test] = row.test[0]
  return probs


def rotate(
  whole: Parts, groups: np.ndarray, folds: int, seed: int
) -> list[Parts]:
  """Train and validation rows cut anew; what is predicted has no label."""
  at = np.concatenate([whole.train, whole.val])
  rows, y = whole.rows[at], whole.labels[at]
  found = []
  for train, val, test in rotations(y, groups, folds, seed):
    hidden = y.copy()
    hidden[test] = -1
    found.append(Parts(rows, train, val, test, hidden, whole.classes))
  return found


def with_labels(
  rotated: Sequence[Parts], groups: np.ndarray, share: float, config: ConfigDict
) -> list[Parts]:
  """The rotations with a share of the labelled groups, drawn in each anew.

  groups: of all their rows. What is predicted stays.
  """
  found = []
  for i, part in enumerate(rotated):
    (cut,) = draw_labels(
      part, groups, (share,), config.seed + i, config.validation
    )
    found.append(part._replace(train=cut.train, val=cut.val))
  return found


def predict_all(
  every: Sequence[Candidate],
  ds: data.Dataset,
  rows: np.ndarray,
  by_share: Mapping[float, Sequence[Parts]],
  config: ConfigDict,
  workdir: str,
) -> tuple[dict[Key, np.ndarray], dict[Key, files.Results]]:
  """Probabilities (n, k) of all encoders, and what is told of each row."""
  probs: dict[Key, np.ndarray] = {}
  told: dict[Key, files.Results] = {}
  training = grid.Training(config.training, (config.seed,), True, 'accuracy')
  for number, one in enumerate(every):
    folder = os.path.join(workdir, 'features', str(number))
    runs = os.path.join(workdir, 'finetuned', str(number))
    read = _features(one, ds, rows, config, folder)
    spot = Spot(one.layers, one.timestep, config.grid)
    ways = config.finetuned
    subject = subject_of(one, ds, rows, config, runs) if ways else None
    facts = {
      'images_seen': one.encoder.info.images_seen,
      'drawn_in_pretraining': drawn(one, ds, rows),
      **one.encoder.info.facts,
    }
    for share, cut in by_share.items():
      found, choices = predict(read, cut, config.heads, spot, training)
      if subject:
        own = os.path.join(runs, f'{share:g}')
        more, more_choices = predict_tuned(subject, cut, ways, own)
        found, choices = found | more, choices | more_choices
      for head in found:
        key = Key(one.name, one.prefix + head, share)
        probs[key] = found[head]
        told[key] = {'chosen': choices[head], **facts}
  return probs, told


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Predicts by every candidate; writes table, predictions and a picture.

  Features are kept in the workdir until all is done, so that a stopped run goes
  on from them.
  """
  check(config)
  ds = data.open_dataset(config.data.path, config.data.cache)
  doubts = promises.refuse(ds, config.data.split, config.allow_failed_audit)
  whole = base.labelled_parts(ds, config.data.split)
  rows = np.concatenate([whole.rows[whole.train], whole.rows[whole.val]])
  groups = data.groups(ds)[rows]
  rotated = rotate(whole, groups, config.folds, config.seed)
  absent = imagenet.told(config.floors)
  features_folder = os.path.join(workdir, 'features')
  os.makedirs(workdir, exist_ok=True)

  by_share = {
    share: with_labels(rotated, groups, share, config)
    for share in config.fractions
  }
  every = candidates(config, ds, rows)
  check_tuned(every, ds, [*itertools.chain(*by_share.values())], config)
  probs, told = predict_all(every, ds, rows, by_share, config, workdir)
  probs |= predict_floors(
    ds, by_share, config.floors, config.seed, features_folder
  )
  members = members_of(config, every)
  for key, own in members.items():
    probs[key] = committees.average([probs[one] for one in own])
    told[key] = {'members': [one._asdict() for one in own]}
  about = {
    **base.describe(ds, config.data.split, whole),
    'predicted': len(rows),
    'groups': len(np.unique(groups)),
    'predicted_patients': base.count_patients(ds, rows),
  }
  found = folds_table.score(probs, told, members, ds, rotated, config, about)
  if jax.process_index() == 0:
    folds_table.write(workdir, found)
    folds_table.save_predictions(workdir, probs, ds, rows)
    print(folds_table.text(found), flush=True)
  shutil.rmtree(features_folder, ignore_errors=True)
  results = {
    'task': 'cross_validate',
    **found.to_json(),
    'audit_reasons': doubts,
    **absent,
  }
  return files.write_results(workdir, results, config)


def members_of(
  config: ConfigDict, every: Sequence[Candidate]
) -> dict[Key, list[Key]]:
  """The rows that each committee averages, of each head.

  Of a checkpoint with several rows, the first.
  """
  named: dict[str, str] = {}
  for one in every:
    named.setdefault(one.path, one.name)
  found = {}
  for text in config.committees:
    parts = committees.parse(text, config.checkpoints, config.floors)
    title = ' + '.join(named.get(part, part) for part in parts)
    for head, share in itertools.product(config.heads, config.fractions):
      found[Key(title, head, share)] = [
        Key(named.get(part, ''), committees.row_of(part, head), share)
        for part in parts
      ]
  return found

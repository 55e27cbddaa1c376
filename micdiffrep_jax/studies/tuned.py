"""A head on a frozen encoder, and both trained on from there: two rows.

Whatever study compares them shows them the same training, validation and test
rows. Test labels are not in reach: they are -1 in Parts.

Letters: n rows of all parts, k classes.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from typing import NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders import features
from micdiffrep_jax.encoders.encoder import Encoder
from micdiffrep_jax.heads import head_file, matrix, table
from micdiffrep_jax.heads.base import Settings
from micdiffrep_jax.heads.head_file import SavedHead
from micdiffrep_jax.heads.matrix import Features
from micdiffrep_jax.heads.nets import HEADS
from micdiffrep_jax.methods import Reader
from micdiffrep_jax.methods.finetune import TUNE, read_layers
from micdiffrep_jax.pretrain import finetune
from micdiffrep_jax.pretrain.finetune import Labelled, Tuned
from micdiffrep_jax.run import files, log
from micdiffrep_jax.run.checks import not_empty, one_of, whole_number
from micdiffrep_jax.run.keys import stream
from micdiffrep_jax.scores import calibration
from micdiffrep_jax.studies import base, grid
from micdiffrep_jax.studies.base import Parts
from micdiffrep_jax.studies.grid import Row, Spot

# Heads that gradients can go through, and that begin as some.
HEAD_NAMES = tuple(n for n, head in table.HEADS.items() if head.kind in HEADS)
FROZEN, TUNED = 'frozen', 'finetuned'  # rows; of several ways finetuned_<way>


class Subject(NamedTuple):
  """What is fine-tuned: an encoder on a data set.

  found: its features of all rows of a study, raw; spot: where they are read;
  config: how; see configs/finetune.py; random: whether its weights are.
  """

  encoder: Encoder
  ds: data.Dataset
  split: str
  spot: Spot
  found: Features
  config: ConfigDict
  random: bool


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before anything runs."""
  one_of(TUNE, config.tune, 'way to fine-tune', '--config.tune')
  one_of(HEAD_NAMES, config.head, 'head', '--config.head')
  whole_number(config.grid, 1, 64, '--config.grid')
  not_empty(range(config.draws), '--config.draws')
  finetune.check(config)


def spot_of(reader: Reader, config: ConfigDict) -> Spot:
  """Where features are read; ValueError for what the encoder has not."""
  layers = read_layers(reader, tuple(config.layers))
  (t,) = features.timesteps_of(reader, (config.timestep,))
  features.check_request(reader, layers, (t,))
  return Spot(layers, t, config.grid)


def subject(
  encoder: Encoder,
  ds: data.Dataset,
  rows: np.ndarray,
  split: str,
  config: ConfigDict,
  folder: str,
  name: str = '',
) -> Subject:
  """Reads the frozen features of all rows, which are kept in a folder."""
  spot = spot_of(encoder.method, config)
  source = base.Source(
    name,
    folder,
    encoder,
    ds,
    rows,
    spot.layers,
    spot.grid,
    config.draws,
    config.seed,
    config.eval_batch_size,
    deviation=config.deviation,
  )
  t = spot.timestep
  assert isinstance(t, int)  # of one noise level
  where = (source.extract((t,)), t, spot.layers, spot.grid)
  found = matrix.literal(
    feature_cache.matrix(*where), feature_cache.maps_of(*where)
  )
  return Subject(encoder, ds, split, spot, found, config, bool(name))


def check_classes(parts: Parts, classes: Sequence[str], flags: str) -> None:
  """Raises ValueError where a share of the labels leaves a class empty.

  flags: by which a user takes others.
  """
  have = np.bincount(parts.labels[parts.train], minlength=parts.classes)
  empty = [name for name, n in zip(classes, have) if not n]
  if empty:
    raise ValueError(
      f'The share of labels leaves no training image of {empty}. Set others '
      f'with {flags}.'
    )


def frozen_row(s: Subject, parts: Parts) -> Row:
  """A head fitted on frozen features, standardised by the training rows."""
  config = s.config
  found = matrix.standardise(s.found.x, parts.train, maps=s.found.maps)
  training = grid.Training(config.training, (config.seed,), True, 'accuracy')
  return grid.fitted(config.head, found, parts, s.spot, training)


def zero_head(s: Subject) -> SavedHead:
  """A head that says nothing yet, on features as they are.

  For random weights, whose features hardly differ between images: to
  standardise them would multiply every step of the encoder.
  """
  config, kind = s.config, table.HEADS[s.config.head].kind
  d = s.found.x.shape[-1]
  key = stream(jax.random.key(config.seed), 'head')
  hidden, k = config.training.hidden, len(s.ds.classes)
  first = HEADS[kind].init(key, d, d, hidden, k, True, s.found.maps)
  params = {
    name: np.asarray(x)[None] * (name.split('.')[-1] != 'M')
    for name, x in first.items()
  }
  zero, one = np.zeros(d, np.float32), np.ones(d, np.float32)
  info = grid.new_info(kind, s.spot, standardise=False)
  return SavedHead(params, zero, one, info)


def row_of(head: SavedHead, s: Subject, parts: Parts) -> Row:
  """What a head that is given says of frozen features."""
  whole = s.found._replace(shift=head.shift, scale=head.scale)
  predict = table.HEADS[head.info.kind].predict
  val, test = (
    predict(head.params, whole._replace(x=whole.x[at]))
    for at in (parts.val, parts.test)
  )
  return _row(s.spot._asdict(), val, test, parts, head)


def _row(
  chosen: Settings,
  val: np.ndarray,
  test: np.ndarray,
  parts: Parts,
  head: SavedHead,
) -> Row:
  """A row of what a head says of validation and test rows, calibrated."""
  temperature = calibration.fit_temperature(val, parts.labels[parts.val])
  info = dataclasses.replace(head.info, temperature=temperature)
  return Row(
    chosen,
    calibration.softmax(val, temperature),
    calibration.softmax(test, temperature)[None],
    temperature,
    calibration.softmax(test),
    head._replace(info=info),
  )


def check_encoder(encoder: Encoder) -> None:
  """Raises ValueError for an encoder without weights."""
  if encoder.table is not None:
    raise ValueError(
      f'{encoder.info.path!r} is a table of features: there are no weights to '
      'train on. Set --config.checkpoint.'
    )


def check_tuning(
  config: ConfigDict,
  encoder: Encoder,
  ds: data.Dataset,
  split: str,
  images: int,
  ways: Sequence[str] = (),
) -> None:
  """Raises ValueError where an encoder cannot be fine-tuned so, at no cost.

  images: to train on; ways: to fine-tune, () for that of the config.
  """
  check_encoder(encoder)
  check(config)
  head, training = table.HEADS[config.head], config.training
  net = {
    'kind': head.kind,
    'hidden': training.hidden,
    'bias': head.fit is not None or training.bias,
  }
  spot = spot_of(encoder.method, config)
  new = grid.new_info(head.kind, spot)
  info = base.head_info(new, ds, split, spot.grid, config)
  for one in [as_way(config, way) for way in ways] or [config]:
    finetune.prepare(one, encoder, info, ConfigDict(net), images)


def as_way(config: ConfigDict, way: str) -> ConfigDict:
  """The config with another way to fine-tune."""
  found = config.copy_and_resolve_references()
  with found.unlocked():
    found.tune = way
    if way == 'full':
      found.from_stage = ''
  return found


def tuned_row(
  s: Subject, head: SavedHead, parts: Parts, workdir: str
) -> tuple[Row, Tuned]:
  """Trains on from a head, and predicts as a bundle of the result will.

  head: fitted on the frozen features; its info may lack what they are.
  """
  info = base.head_info(head.info, s.ds, s.split, s.spot.grid, s.config)
  head = head._replace(info=info)
  labels = np.full(len(s.ds.images), -1, np.int64)
  train, val = parts.rows[parts.train], parts.rows[parts.val]
  for rows, at in ((train, parts.train), (val, parts.val)):
    labels[rows] = parts.labels[at]
  known = Labelled(s.ds, train, val, labels, s.split)
  tuned = finetune.tune(s.config, s.encoder, head, known, workdir)
  rows = np.concatenate([val, parts.rows[parts.test]])
  said = logits(tuned, s.ds, rows, s.config.eval_batch_size)
  chosen = {
    **s.spot._asdict(),
    'tune': s.config.tune,
    'step': tuned.step,
    'score': -tuned.evaluated[tuned.step],
  }
  val_said, test_said = np.split(said, [len(val)])
  return _row(chosen, val_said, test_said, parts, tuned.head), tuned


def logits(
  tuned: Tuned, ds: data.Dataset, rows: np.ndarray, batch_size: int
) -> np.ndarray:
  """What encoder and head say of rows (n, k), by the way a bundle takes."""
  info, reader = tuned.head.info, tuned.encoder.method
  deviation = bool(info.deviation)
  extracted = features.extract(
    tuned.encoder,
    ds,
    rows,
    info.layers,
    info.timestep,
    info.grid,
    info.draws,
    info.feature_seed,
    batch_size,
    features.make_feature_fn(reader, info.layers, info.grid, deviation),
    'fine-tuned',
  )
  return head_file.logits(tuned.head, extracted)


@contextlib.contextmanager
def flags_of_part() -> Iterator[None]:
  """Errors name the flags of a study, in which this config is a part."""
  try:
    yield
  except ValueError as e:
    text = str(e).replace('--config.', '--config.finetune.')
    raise ValueError(text) from None


def check_ways(config: ConfigDict) -> None:
  """Raises ValueError for a study's `finetuned` and `finetune`."""
  for way in config.finetuned:
    one_of(TUNE, way, 'way to fine-tune', '--config.finetuned')
  with flags_of_part():
    check(config.finetune)


class Answers(NamedTuple):
  """What a frozen head and each way to fine-tune said of the test rows.

  probs (q, k) of q test rows, and what was chosen, by name of the row.
  """

  probs: dict[str, np.ndarray]
  chosen: dict[str, Settings]


def answers(
  s: Subject, ways: Sequence[str], parts: Parts, folder: str
) -> Answers:
  """The frozen row and one for each way, of one cut of the rows.

  Each way keeps what it said in the folder, and its checkpoints only until it
  is done, so that a stopped study goes on.
  """
  probs: dict[str, np.ndarray] = {}
  chosen: dict[str, Settings] = {}
  frozen = frozen_row(s, parts)
  probs[FROZEN], chosen[FROZEN] = frozen.test[0], frozen.chosen
  head = zero_head(s) if s.random else frozen.head
  assert head is not None
  for way in ways:
    one = s._replace(config=as_way(s.config, way))
    name, place = f'{TUNED}_{way}', os.path.join(folder, way)
    probs[name], chosen[name] = _kept(one, head, parts, place)
  return Answers(probs, chosen)


def _kept(
  s: Subject, head: SavedHead, parts: Parts, folder: str
) -> tuple[np.ndarray, Settings]:
  """Probabilities of the test rows and what was chosen, or those of before."""
  said, about = (os.path.join(folder, x) for x in ('said.npz', 'said.json'))
  rows = [parts.rows[at] for at in (parts.train, parts.val, parts.test)]
  now = files.plain(
    {
      'config': s.config,
      'encoder': s.encoder.info.to_json(),
      'rows': [hashlib.sha256(x.tobytes()).hexdigest() for x in rows],
    }
  )
  if os.path.exists(about):
    with open(about) as f:
      record = json.load(f)
    if {k: record.get(k) for k in now} == now:
      with np.load(said, allow_pickle=False) as z:
        return z['probs'], record['chosen']
  log.get_logger().info('Fine-tuning in %s.', folder)
  row, _ = tuned_row(s, head, parts, folder)
  if jax.process_index() == 0:
    files.write_arrays(said, {'probs': row.test[0]})
    files.write_json(about, {**now, 'chosen': row.chosen})
    shutil.rmtree(os.path.join(folder, 'checkpoints'), ignore_errors=True)
  return row.test[0], files.plain(row.chosen)

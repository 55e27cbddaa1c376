"""What a study is of: an encoder, a data set and its parts.

Test labels are out of reach here: they are -1 in Parts. Each study has one
function, `score`, that reads them when every choice is final.

Letters: n rows of all parts.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import identity
from micdiffrep_jax.draw.page import Line
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.encoders.cache import Cache
from micdiffrep_jax.encoders.encoder import Encoder
from micdiffrep_jax.heads.base import HeadInfo
from micdiffrep_jax.run import files
from micdiffrep_jax.run.checks import one_of
from micdiffrep_jax.scores import bootstrap
from micdiffrep_jax.scores.metrics import HEADLINE

_NORMAL = ('normal', 'no_tumor', 'notumor', 'no tumor', 'healthy')


class Parts(NamedTuple):
  """rows (n,) of the dataset; train, val, test: positions in rows.

  labels (n,): -1 on test rows, so that nothing fitted can have read them;
  classes: how many there are.
  """

  rows: np.ndarray
  train: np.ndarray
  val: np.ndarray
  test: np.ndarray
  labels: np.ndarray
  classes: int


def labelled_parts(ds: data.Dataset, split: str) -> Parts:
  """Labelled rows, train then val then test; test labels are left out."""
  labels = data.labels(ds)
  found = []
  for part in ('train', 'val', 'test'):
    rows = data.rows(ds, split, part)
    rows = rows[labels[rows] >= 0]
    if not len(rows):
      raise ValueError(
        f'Split {split!r} has no labelled {part} images in {ds.path}. Choose '
        'another with --config.data.split.'
      )
    found.append(rows)
  rows = np.concatenate(found)
  train, val, test = np.split(
    np.arange(len(rows)), np.cumsum([len(r) for r in found])[:-1]
  )
  known = labels[rows].astype(np.int64)
  known[test] = -1
  return Parts(rows, train, val, test, known, len(ds.classes))


def describe(ds: data.Dataset, split: str, parts: Parts) -> files.Results:
  """Which images a result is of."""
  return {
    'path': ds.path,
    'fingerprint': ds.fingerprint,
    'split': split,
    'split_hash': data.split_hash(ds, split),
    'classes': ds.classes,
    'images': {
      part: len(getattr(parts, part)) for part in ('train', 'val', 'test')
    },
    'patients': count_patients(ds, parts.rows),
  }


def count_patients(ds: data.Dataset, rows: np.ndarray) -> dict[str, int]:
  """Of rows: how many images, patients, and images of unknown patients."""
  return identity.count_patients(ds.manifest['patient_id'][rows].tolist())


def slices_of(ds: data.Dataset, rows: np.ndarray) -> bootstrap.Slices:
  """Whose the rows are: what intervals resample and patients pool."""
  return bootstrap.Slices(
    data.groups(ds)[rows],
    ds.manifest['variant'][rows],
    data.patients(ds)[rows],
  )


def image_sets(ds: data.Dataset, rows: np.ndarray) -> dict[str, np.ndarray]:
  """Masks (n,) of the sets that scores are of: all rows, untouched sources.

  A set without rows is left out.
  """
  masks = {
    'all': np.ones(len(rows), bool),
    'sources': ds.manifest['variant'][rows] == '',
  }
  return {name: keep for name, keep in masks.items() if keep.any()}


def normal_class(name: str, classes: tuple[str, ...]) -> str:
  """The class to report with and without; 'auto' is the one called normal."""
  if name == 'auto':
    return next((c for c in classes if c.lower() in _NORMAL), '')
  if name:
    one_of(classes, name, 'class', '--config.normal_class')
  return name


def seen_in_pretraining(
  info: encoders.EncoderInfo,
  ds: data.Dataset,
  split: str,
  allow: bool,
  mend: str = '',
) -> str:
  """Whether the encoder's pretraining drew test images: no, maybe or unknown.

  Raises ValueError where it was pretrained under another split of these data,
  unless `allow`; mend: how, where it is not by the usual fields.
  """
  if info.fingerprint != ds.fingerprint:
    return 'unknown: the encoder was pretrained on another dataset'
  known = (info.split_hash, *(info.spared or {}).values())
  if data.split_hash(ds, split) in known:
    return 'no'
  if not allow:
    mend = mend or (
      f'Set --config.data.split={info.split}, or --config.allow_seen_test=True'
    )
    raise ValueError(
      f'The encoder was pretrained on the train part of split '
      f'{info.split!r}, so it may have seen test images of split '
      f'{split!r}. {mend}, which the results will say.'
    )
  return f'maybe: pretrained on split {info.split!r}'


class Study(NamedTuple):
  """What a study is of; `seen` as seen_in_pretraining says it."""

  encoder: Encoder
  ds: data.Dataset
  parts: Parts
  layers: tuple[str, ...]
  seen: str
  started_s: float


def open_study(
  config: ConfigDict, layers_of: Callable, step: int | None = None
) -> Study:
  """Opens what a study's config names; ValueError for what does not fit.

  layers_of: (method, config) -> the layers to read; step: of the checkpoint,
  None is the newest sound one.
  """
  started_s = time.monotonic()
  encoder = encoders.load_encoder(config.checkpoint, step)
  ds = data.open_dataset(config.data.path, config.data.cache)
  features.check_images(encoder, ds)
  layers = layers_of(encoder.method, config)
  split = config.data.split
  seen = seen_in_pretraining(encoder.info, ds, split, config.allow_seen_test)
  parts = labelled_parts(ds, split)
  encoder = features.meet(encoder, ds, parts.rows)
  return Study(encoder, ds, parts, layers, seen, started_s)


def told(study: Study, split: str) -> files.Results:
  """What the results of every study say of what they are of."""
  return {
    'encoder': study.encoder.info.to_json(),
    'pretraining_saw_test_images': study.seen,
    'data': describe(study.ds, split, study.parts),
    'elapsed_s': round(time.monotonic() - study.started_s, 1),
  }


def head_info(
  info: HeadInfo, ds: data.Dataset, split: str, grid: int, config: ConfigDict
) -> HeadInfo:
  """What a head's file says, with its data and how features were extracted."""
  return dataclasses.replace(
    info,
    extracted_grid=grid,
    deviation=config.deviation,
    draws=config.draws,
    feature_seed=config.seed,
    classes=ds.classes,
    dataset=ds.fingerprint,
    preparation=ds.info.settings,
    split=split,
    split_hash=data.split_hash(ds, split),
  )


class Source(NamedTuple):
  """An encoder whose features of rows lie in a folder, once they are extracted.

  They are pooled to `grid` cells a side, over `draws` noise draws; name stands
  before those of its rows: '' or 'random/', of weights of the seed `seed`.
  deviation: whether each cell's deviation stands behind its mean.
  """

  name: str
  folder: str
  encoder: Encoder
  ds: data.Dataset
  rows: np.ndarray
  layers: tuple[str, ...]
  grid: int
  draws: int
  seed: int
  batch_size: int
  views: feature_cache.Views | None = None
  deviation: bool = False

  @property
  def weights_seed(self) -> int:
    """The seed of random weights, which their info does not tell."""
    return self.seed if self.name else 0

  def extract(
    self, timesteps: Sequence[int], feature_fn: Callable | None = None
  ) -> Cache:
    """Makes sure that the features of timesteps lie in the folder."""
    return feature_cache.fill(
      self.folder,
      self.encoder,
      self.ds,
      self.rows,
      self.layers,
      timesteps,
      self.grid,
      self.draws,
      self.seed,
      self.batch_size,
      self.weights_seed,
      feature_fn,
      self.views,
      self.deviation,
    )


def source_of(
  study: Study, config: ConfigDict, folder: str, encoder: Encoder, name: str
) -> Source:
  """An encoder as the config of a study says that its features are read."""
  views, online = None, config.online
  if online.views:
    train = study.parts.train
    views = feature_cache.Views(online.views, train, online.augment)
  return Source(
    name,
    folder,
    encoder,
    study.ds,
    study.parts.rows,
    study.layers,
    max(config.grids),
    config.draws,
    config.seed,
    config.batch_size,
    views,
    config.deviation,
  )


def sources(study: Study, config: ConfigDict, place: str) -> list[Source]:
  """The encoder and, where config.random_encoder asks for it, its twin.

  place: the path of a source's folder, with {} for the encoder.
  """
  twins = encoders.with_twin(study.encoder, config.random_encoder, config.seed)
  return [
    source_of(study, config, place.format(who_of(name)), one, name)
    for name, one in twins.items()
  ]


def who_of(name: str) -> str:
  """Its name in files and results: 'random/' -> 'random', '' -> 'encoder'."""
  return name.strip('/') or 'encoder'


def by_metric(
  head: Mapping[str, Any], scored: Mapping[str, bootstrap.Score]
) -> list[Line]:
  """Lines of a CSV file, one per headline metric: its value and bounds."""
  return [
    {**head, 'metric': name, **scored[name]._asdict()} for name in HEADLINE
  ]

"""The test part of a prepared data set, for evaluate: as it was measured on.

Letters: n images of the part.
"""

from collections.abc import Iterator

import numpy as np

from micdiffrep_jax.bundle import inputs
from micdiffrep_jax.bundle.classifier import Meta
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data.identity import UNKNOWN, Identity

_CHUNK = 128  # images at a time, a multiple of classifier.BATCH


def open_part(path: str, meta: Meta) -> tuple[data.Dataset, np.ndarray]:
  """The data set, and its rows (n,) that the bundle's split tests.

  Raises ValueError for a data set of other classes, or of other images.
  """
  ds = data.open_dataset(path)
  for what, mine, theirs in (
    ('classes', ds.classes, meta.classes),
    ('size_px', ds.info.size_px, meta.size_px),
    ('channels', ds.info.channels, meta.channels),
  ):
    if mine != theirs:
      raise ValueError(
        f'{ds.path} has {what} {mine}, the bundle takes {theirs}. Set '
        '--config.data.path to a data set as the bundle was trained on.'
      )
  return ds, data.rows(ds, meta.split or 'patient', 'test')


def is_measured_on(ds: data.Dataset, meta: Meta) -> bool:
  """Whether this is the part that the bundle's test scores are of."""
  return (
    ds.fingerprint == meta.dataset
    and meta.split is not None
    and data.split_hash(ds, meta.split) == meta.split_hash
  )


def identity_of(ds: data.Dataset, rows: np.ndarray) -> Identity:
  """Whose the rows are."""
  source, variant, patient = (
    ds.manifest[name][rows].tolist()
    for name in ('unit', 'variant', 'patient_id')
  )
  named_by = ['dataset' if name else UNKNOWN for name in patient]
  return Identity(source, variant, patient, named_by)


def chunks(ds: data.Dataset, rows: np.ndarray) -> Iterator[list[inputs.Item]]:
  """The pictures of the rows, in order."""
  names = ds.manifest['id'][rows].tolist()
  for start in range(0, len(rows), _CHUNK):
    images = ds.images[rows[start : start + _CHUNK]]
    yield [
      inputs.Item(start + i, names[start + i], '', image)
      for i, image in enumerate(images)
    ]

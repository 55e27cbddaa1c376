"""Opens a prepared dataset: images, manifest, splits.

Dimension letters: N images of the dataset, n of a selection, s their side, c
channels.
"""

from collections.abc import Sequence
import hashlib
import json
import os
import tempfile
from typing import Any, NamedTuple

import numpy as np

from micdiffrep_jax.data import splits, store
from micdiffrep_jax.data.sources import phantom
from micdiffrep_jax.run import files, log, paths
from micdiffrep_jax.run.checks import lookup

CACHE = 'images.npy'
CACHE_LIMIT_GIB = 32.0
_BATCH = 1024


class Records:
  """Images read from ArrayRecord, for sets too large to cache.

  Indexing by an integer array (n,) gives (n, s, s, c) uint8.
  """

  def __init__(self, folder: str, shape: tuple[int, ...]):
    self.shape = shape
    self.dtype = np.dtype(np.uint8)
    self._records = store.open_records(folder)

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, rows: Any) -> np.ndarray:
    rows = np.arange(len(self))[rows]
    out = np.empty((rows.size, *self.shape[1:]), np.uint8)
    records = self._records.__getitems__(rows.ravel().tolist())
    for i, record in enumerate(records):
      out[i] = record['image']
    return out.reshape(*rows.shape, *self.shape[1:])


class Dataset(NamedTuple):
  """A prepared folder; images[rows (n,)] gives (n, s, s, c) uint8."""

  path: str
  images: np.ndarray | Records
  manifest: dict[str, np.ndarray]  # columns (N,), see store.COLUMNS
  classes: tuple[str, ...]
  fingerprint: str  # sha256 over ids, labels, pixels and settings
  info: store.Info  # dataset.json


def locate(path: str) -> str:
  """The folder that a config.data.path names, whether or not it is there.

  'phantom[:size_px=32,patients=240,seed=0]' names one in the user's cache.
  """
  arguments = phantom.arguments_of(path)
  if arguments is None:
    return os.path.abspath(paths.expand(path))
  return phantom.folder(arguments)


def open_dataset(
  path: str, cache: bool = True, cache_limit_gib: float = CACHE_LIMIT_GIB
) -> Dataset:
  """Opens a prepared folder, or a phantom that has been prepared.

  With `cache`, images up to the limit become one memory-mapped array beside
  the records, checked against the manifest as it is made; else they are read
  from the records. Raises ValueError for a folder that is no dataset or
  changed since it was prepared.
  """
  folder = locate(path)
  info = store.read_info(folder)
  store.check_unchanged(folder, info)
  manifest = store.read_manifest(folder)
  shape = (info.images, info.size_px, info.size_px, info.channels)
  images: np.ndarray | Records
  if cache and np.prod(shape, dtype=float) <= cache_limit_gib * 2**30:
    images = _cached(folder, shape, manifest['sha256'])
  else:
    images = Records(folder, shape)
  return Dataset(folder, images, manifest, info.classes, info.fingerprint, info)


def labels(ds: Dataset) -> np.ndarray:
  """Class numbers (N,) int32, -1 for an unlabelled image."""
  number = {name: k for k, name in enumerate(ds.classes)}
  return np.array(
    [number[name] if name else -1 for name in ds.manifest['class'].tolist()],
    np.int32,
  )


def groups(ds: Dataset) -> np.ndarray:
  """Group numbers (N,) int32: what must stay together, and is resampled so."""
  return np.unique(ds.manifest['group'], return_inverse=True)[1].astype(
    np.int32
  )


def patients(ds: Dataset) -> np.ndarray:
  """Patient numbers (N,) int32; a source of an unknown patient stands alone."""
  known = ds.manifest['patient_id']
  unit = np.char.add('unit:', ds.manifest['unit'])
  name = np.where(known == '', unit, np.char.add('patient:', known))
  return np.unique(name, return_inverse=True)[1].astype(np.int32)


def rows(ds: Dataset, split: str, part: str) -> np.ndarray:
  """Row numbers (n,) int64 of a part of a named split, in order.

  The train part includes unlabelled images; labels(ds) tells them.
  """
  column = _split(ds, split)
  lookup(dict.fromkeys((*splits.PARTS, splits.EXCLUDED)), part, 'part')
  return np.flatnonzero(column == part).astype(np.int64)


def pretraining_rows(
  ds: Dataset, split: str, spare: Sequence[str] = ()
) -> np.ndarray:
  """The train part of a split without test images of the splits in `spare`.

  One encoder can then be probed under all of these. (n,) int64, in order.
  """
  held_out = [rows(ds, name, 'test') for name in spare]
  train = rows(ds, split, 'train')
  return train[~np.isin(train, np.concatenate([[], *held_out]))]


def split_hash(ds: Dataset, split: str) -> str:
  """sha256 over the ids and parts of a named split."""
  digest = hashlib.sha256(split.encode())
  for name, part in zip(ds.manifest['id'], _split(ds, split), strict=True):
    digest.update(f'\0{name}\0{part}'.encode())
  return digest.hexdigest()


def split_names(ds: Dataset) -> tuple[str, ...]:
  """The splits that a data set has: not all keep one that was given."""
  return tuple(name for name in splits.ALL if name in ds.manifest)


def _split(ds: Dataset, split: str) -> np.ndarray:
  names = split_names(ds)
  if split in splits.NAMES and split not in names:
    raise ValueError(
      f'{ds.path} was prepared before patients were known, so it has no split '
      f'{split!r}. Prepare it again, or take --config.data.split=grouped.'
    )
  if split == splits.GIVEN and split not in names:
    raise ValueError(
      f'{ds.path} keeps no split of its source. Prepare it again with '
      '--config.data.given_split=keep, or take --config.data.split=patient.'
    )
  table = {name: ds.manifest[name] for name in names}
  return lookup(table, split, 'split', '--config.data.split')


def _cached(
  folder: str, shape: tuple[int, ...], hashes: np.ndarray
) -> np.ndarray:
  """The images as a read-only memory map; made from the records if need be."""
  path = os.path.join(folder, CACHE)
  mark_path = f'{path}.json'
  mark = _cache_mark(folder, shape)
  try:
    with open(mark_path) as f:
      fresh = json.load(f) == {**mark, 'bytes': os.path.getsize(path)}
  except (OSError, ValueError):
    fresh = False
  if not fresh:
    _make_cache(folder, path, shape, hashes)
    files.write_json(mark_path, {**mark, 'bytes': os.path.getsize(path)})
  return np.load(path, mmap_mode='r')


def _cache_mark(folder: str, shape: tuple[int, ...]) -> dict[str, Any]:
  """What the cache was made from; a touched shard makes it stale."""
  shards = {
    name: [stat.st_size, stat.st_mtime_ns]
    for name in sorted(os.listdir(folder))
    if '.array_record-' in name
    for stat in [os.stat(os.path.join(folder, name))]
  }
  return {'shape': list(shape), 'shards': shards}


def _make_cache(
  folder: str, path: str, shape: tuple[int, ...], hashes: np.ndarray
) -> None:
  needed = int(np.prod(shape)) + (1 << 20)
  files.check_room(
    folder,
    needed,
    'cached images',
    'Free some, or set --config.data.cache=False.',
  )
  records = Records(folder, shape)
  handle, partial = tempfile.mkstemp(prefix=f'.{CACHE}.', dir=folder)
  os.close(handle)
  try:
    array = np.lib.format.open_memmap(
      partial, mode='w+', dtype=np.uint8, shape=shape
    )
    starts = range(0, len(records), _BATCH)
    for start in log.progress(starts, desc='cache images', leave=False):
      batch = records[start : start + _BATCH]
      _check_pixels(folder, batch, hashes[start : start + _BATCH])
      array[start : start + _BATCH] = batch
    array.flush()
    del array
    os.chmod(partial, 0o644)
    os.replace(partial, path)
  finally:
    if os.path.exists(partial):
      os.remove(partial)


def _check_pixels(folder: str, batch: np.ndarray, hashes: np.ndarray) -> None:
  changed = sum(
    store.pixel_hash(image) != expected
    for image, expected in zip(batch, hashes, strict=True)
  )
  if changed:
    raise ValueError(
      f'{changed} images of {folder!r} are not those of its manifest. Prepare '
      'it again, with --config.data.overwrite=True.'
    )

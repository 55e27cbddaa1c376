"""The teacher of a pretraining run: what it sees in each image, read once.

A teacher is any encoder that the program loads (a run, a bundle, weights of
others that were converted) or a table of features that a user brings. Its maps
lie beside the images as a float16 memory map with a row for every image of the
data set, and travel with them; no other part of a run knows the teacher.
Letters: N images of the data set, n rows of a table, g cells per side, d
features.
"""

from collections.abc import Callable, Sequence
import hashlib
import os
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.diffusion.process import check_timesteps
from micdiffrep_jax.encoders import cache, features, own_features
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.methods import denoising
from micdiffrep_jax.run import devices, files
from micdiffrep_jax.run.checks import in_range, lookup

_FLAG = '--config.teacher.'
_BATCH = 1024  # rows of a table that are copied at a time


class Teacher(NamedTuple):
  """What is known of a teacher before it is asked.

  flags: what its own results would be flagged with; shape: (g, g, d) of a map;
  read: rows of training images, folder -> maps (N, g, g, d) float16, of which
  those rows are filled.
  """

  name: str
  flags: tuple[str, ...]
  shape: tuple[int, int, int]
  read: Callable[[np.ndarray, str], np.ndarray]

  def fill_in(self, config: ConfigDict) -> ConfigDict:
    """The config, told of this teacher: what is saved can be loaded alone."""
    told = config.copy_and_resolve_references()
    with told.unlocked():
      told.teacher.name = self.name
      told.teacher.flags, told.teacher.shape = self.flags, self.shape
    return told


def check_given(fields: ConfigDict, flag: str) -> None:
  """Raises ValueError unless one teacher is given; flag: its flags begin so."""
  if bool(fields.checkpoint) == bool(fields.features):
    raise ValueError(
      f'teacher.checkpoint={fields.checkpoint!r} and teacher.features='
      f'{fields.features!r}: give one of them. Set {flag}checkpoint to a '
      'pretraining run, a bundle or what configs/convert_clip.py made, or '
      f'{flag}features to an .npz with id and features.'
    )


def open_teacher(config: ConfigDict, dataset: data.Dataset) -> Teacher | None:
  """The teacher of a run's config; None where it has none.

  Raises ValueError for one that does not fit the images, or that may have seen
  test images of the run's splits.
  """
  if 'teacher' not in config:
    return None
  fields = config.teacher
  check_given(fields, _FLAG)
  in_range(fields.grid, 1, 1024, f'{_FLAG}grid')
  if fields.features:
    return _of_table(fields, dataset)
  splits = (config.data.split, *config.data.spare)
  return _of_encoder(fields, dataset, splits)


def _of_encoder(
  fields: ConfigDict, dataset: data.Dataset, splits: Sequence[str]
) -> Teacher:
  encoder = encoders.load_encoder(fields.checkpoint)
  features.check_images(encoder, dataset)
  refuse_seen(encoder.info, dataset, splits)
  method, t = encoder.method, fields.timestep
  known = {name: name for name in method.layers}
  layer = lookup(known, fields.layer, 'layer of the teacher', f'{_FLAG}layer')
  check_timesteps(t, method.timesteps, f'{_FLAG}timestep')
  feature_fn = features.make_feature_fn(method, (layer,), fields.grid)
  _, g, _, d = _map_shape(feature_fn, encoder)[layer]
  size = devices.make_mesh().size
  batch_size = -(-fields.batch_size // size) * size

  def read(rows: np.ndarray, folder: str) -> np.ndarray:
    # A folder of its own: another teacher's choice of rows is not this one's.
    who = f'{fields.checkpoint} {encoder.info.step} {layer} {t} {fields.grid}'
    own = os.path.join(folder, hashlib.sha256(who.encode()).hexdigest()[:20])
    filled = cache.fill(
      own,
      encoder,
      dataset,
      rows,
      (layer,),
      (t,),
      fields.grid,
      draws=1,
      seed=0,
      batch_size=batch_size,
      feature_fn=feature_fn,
    )
    return cache.maps(filled, t, layer)

  base = os.path.basename(os.path.normpath(fields.checkpoint))
  method_name = encoder.config.get('method', 'encoder')
  name = encoder.info.name or f'{method_name} of {base}'
  # Not how it was trained: its pupil may denoise where it did not.
  flags = tuple(
    name
    for name, told in method.facts.items()
    if told is True and not name.endswith(denoising.ALONE)
  )
  return Teacher(f'{name}, {layer}', flags, (g, g, d), read)


def _map_shape(
  feature_fn: Callable, encoder: encoders.Encoder
) -> dict[str, tuple[int, ...]]:
  """{layer: (1, g, g, d)} of what feature_fn gives."""
  info = encoder.info
  shape = (1, info.size_px, info.size_px, info.channels)
  found = jax.eval_shape(
    feature_fn,
    encoder.variables,
    jax.ShapeDtypeStruct(shape, jnp.uint8),
    jax.ShapeDtypeStruct((1,), jnp.uint32),
    jax.random.key(0),
    jax.ShapeDtypeStruct((), jnp.int32),
  )
  return {name: x.shape for name, x in found.items()}


def refuse_seen(
  info: encoders.EncoderInfo, dataset: data.Dataset, splits: Sequence[str]
) -> None:
  """ValueError for a teacher that may have drawn test images of `splits`.

  Through it the run would have drawn them too. Nothing is known of a teacher
  that was trained on other data.
  """
  if info.fingerprint != dataset.fingerprint:
    return
  known = (info.split_hash, *(info.spared or {}).values())
  for name in splits:
    if data.split_hash(dataset, name) not in known:
      raise ValueError(
        f'The teacher was pretrained on split {info.split!r} of these data, so '
        f'it may have seen test images of split {name!r}. Set '
        f'--config.data.split={info.split}, or {_FLAG}checkpoint to a run '
        f'with --config.data.spare="({name!r},)".'
      )


def _of_table(fields: ConfigDict, dataset: data.Dataset) -> Teacher:
  flag = f'{_FLAG}features'
  table = own_features.read(fields.features, flag)
  maps = own_features.pool(table.features, fields.grid, f'{_FLAG}grid')
  table.compare(dataset)
  _, g, _, d = maps.shape

  def read(rows: np.ndarray, folder: str) -> np.ndarray:
    at = table.rows_of(dataset.manifest['id'][rows].tolist(), flag)
    return _write_table(
      maps, at, rows, len(dataset.images), table.sha256, folder
    )

  return Teacher(os.path.basename(table.path), (), (g, g, d), read)


def _write_table(
  table: np.ndarray,
  at: np.ndarray,
  rows: np.ndarray,
  size: int,
  sha256: str,
  folder: str,
) -> np.ndarray:
  """Lays rows `at` of the table where the images `rows` of `size` are.

  sha256: of the file that the table was read from.
  """
  who = f'{sha256} {table.shape} {size}'.encode()
  digest = hashlib.sha256(who + rows.tobytes())
  own = os.path.join(folder, digest.hexdigest()[:20])
  maps, done = os.path.join(own, 'maps.npy'), os.path.join(own, 'done.json')
  if jax.process_index() == 0 and not os.path.exists(done):
    os.makedirs(own, exist_ok=True)
    stored = np.lib.format.open_memmap(
      maps, 'w+', np.float16, (size, *table.shape[1:])
    )
    for start in range(0, len(rows), _BATCH):
      part = slice(start, start + _BATCH)
      stored[rows[part]] = table[at[part]]
    stored.flush()
    files.write_json(done, {'images': len(rows)})
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('teacher')
  return np.load(maps, mmap_mode='r')


def folder_of(dataset: data.Dataset, workdir: str) -> str:
  """Where maps are kept: beside the images, or where these cannot be written.

  Then in the run's own folder.
  """
  beside = dataset.path if os.access(dataset.path, os.W_OK) else workdir
  return os.path.join(beside, 'teacher')

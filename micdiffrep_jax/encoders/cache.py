"""Features of a data set on disk: an encoder sees an image once.

An entry is a folder of what one encoder gives at one timestep, pooled to one
grid and under one noise: <layer>.npy (N, g, g, c) float16 has a row for every
row of the data set, <layer>.filled.npy (N,) says which of them are there. It is
written after them, so a stopped run keeps what it has and nothing else.

A selection, <folder>/t51.npz, names an entry and rows of the data set in the
order in which heads want them; t51.view0.npz those of an augmented view. The
entries of a task by itself lie in the same folder; those of a pipeline where
`shared` says, so that each stage finds what the stages before it made.

Letters: N images of the data set, n of a selection, g cells per side, c
channels, d features.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
import hashlib
import io
import json
import os
import shutil
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data.dataset import Dataset
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.heads.matrix import Maps, layout, pool
from micdiffrep_jax.methods import views as changes
from micdiffrep_jax.methods.base import to_float
from micdiffrep_jax.run import archive, files, log
from micdiffrep_jax.run.keys import stream


class _Shared(NamedTuple):
  """Where the entries of a pipeline lie, and the config of all its stages."""

  folder: str
  config: ConfigDict


_SHARED: contextvars.ContextVar[_Shared | None] = contextvars.ContextVar(
  'features', default=None
)


class Cache(NamedTuple):
  """What was filled: layers and timesteps selected in `folder`, and views.

  deviation: whether each cell's deviation stands behind its mean.
  """

  folder: str
  layers: tuple[str, ...]
  timesteps: tuple[int, ...]
  views: int = 0
  deviation: bool = False


class Views(NamedTuple):
  """Fresh noise and augmentation for the rows that heads are trained on.

  number: of views; positions (m,) in the rows asked for; augment: the policy.
  """

  number: int
  positions: np.ndarray
  augment: ConfigDict


class _Part(NamedTuple):
  """One timestep, of the images as they are or of one view of some of them.

  entry: the folder of its entry; key: what decides the features there; rows
  (n,) of the data set; view: 'view0', ..., '' for none.
  """

  entry: str
  key: dict[str, Any]
  rows: np.ndarray
  view: str = ''


@contextlib.contextmanager
def shared(folder: str, config: ConfigDict) -> Iterator[None]:
  """Lets all `fill`s inside keep their entries in one folder; the outermost.

  config: of the task and its stages. A pass gives every layer that one of them
  asks for. In the end the folder is removed, unless one has keep_features. A
  run that fails leaves it: the same command goes on from there.
  """
  if _SHARED.get():
    yield
    return
  token = _SHARED.set(_Shared(folder, config))
  try:
    yield
  finally:
    _SHARED.reset(token)
  if not _keeps(config) and jax.process_index() == 0:
    shutil.rmtree(folder, ignore_errors=True)


def _stages(config: ConfigDict, field: str) -> Iterator[ConfigDict]:
  """The task, or those of its stages, that have a field."""
  if field in config:
    yield config
    return
  for value in config.values():
    if isinstance(value, ConfigDict):
      yield from _stages(value, field)


def _keeps(config: ConfigDict) -> bool:
  return any(c.keep_features for c in _stages(config, 'keep_features'))


def _widened(
  encoder: encoders.Encoder, layers: tuple[str, ...]
) -> tuple[str, ...]:
  """`layers`, and what other stages of a pipeline read of such an encoder.

  Another pass for them would cost more.
  """
  inside, known = _SHARED.get(), encoder.method.layers
  found = set(layers)
  for stage in _stages(inside.config, 'layers') if inside else ():
    asked = stage.layers
    if isinstance(asked, ConfigDict):  # by method
      asked = asked.get(encoder.config.get('method', ''), layers)
    if isinstance(asked, str):
      asked = (asked,)
    if asked:
      texts = '+'.join(asked).split('+')
      found |= {name for name in texts if name in known}
    elif stage.get('taps', 'all') == 'all':
      found |= set(known)
  return (
    layers if found == set(layers) else tuple(n for n in known if n in found)
  )


def make_view_fn(
  method: Any,
  layers: tuple[str, ...],
  grid: int,
  config: ConfigDict,
  deviation: bool = False,
) -> Callable:
  """As features.make_feature_fn, of images augmented by views.augment.

  What is drawn for an image depends on its seed and the key alone.
  """

  def one(key: jax.Array, image: jax.Array) -> jax.Array:
    x = changes.augment(stream(key, 'view'), to_float(image)[None], config)[0]
    # Back to bytes, so that a view is what a file could have held.
    return jnp.round((x + 1.0) * 127.5).astype(jnp.uint8)

  @jax.jit
  def feature_fn(
    variables: Any, images: Any, seeds: Any, key: Any, t: Any
  ) -> dict[str, jax.Array]:
    keys = features.image_keys(key, seeds)
    taps = method.features(variables, jax.vmap(one)(keys, images), keys, t)
    return {
      name: features.pool_map(taps[name], grid, deviation) for name in layers
    }

  return feature_fn


def fill(
  folder: str,
  encoder: encoders.Encoder,
  dataset: Dataset,
  rows: np.ndarray,
  layers: tuple[str, ...],
  timesteps: Sequence[int],
  grid: int,
  draws: int,
  seed: int,
  batch_size: int,
  weights_seed: int = 0,
  feature_fn: Callable | None = None,
  views: Views | None = None,
  deviation: bool = False,
) -> Cache:
  """Selects features in `folder`, extracting those that no entry holds.

  weights_seed: of an encoder of random weights, 0 for others. `feature_fn` of
  features.make_feature_fn saves its compilation at later calls. Raises
  ValueError where the disk or float16 cannot hold them.
  """
  rows = np.asarray(rows, np.int64)
  if views and encoder.table is not None:
    raise ValueError(
      f'{encoder.info.path!r} is a table of features: images cannot be shown '
      'to it anew. Set --config.online.views=0.'
    )
  inside = _SHARED.get()
  store = inside.folder if inside else folder
  key = {
    'weights': _weights_hash(encoder),
    'weights_seed': weights_seed,
    'step': encoder.info.step,
    'config': encoder.config,
    'dataset': dataset.fingerprint,
    'grid': grid,
    'seed': seed,
    **({'deviation': True} if deviation else {}),
  }
  parts = [
    part
    for t in timesteps
    for part in _parts(store, key, rows, t, draws, views)
  ]
  lacking = [_lacking(part, layers) for part in parts]
  images = sum(map(len, lacking))
  log.get_logger().info(
    'Features of %d images at t = %s into %s, %d to extract.',
    len(rows),
    ', '.join(map(str, timesteps)),
    store,
    images,
  )
  if images:
    names = _widened(encoder, layers)
    if feature_fn is None or names != layers:
      feature_fn = features.make_feature_fn(
        encoder.method, names, grid, deviation
      )
    view_fn = views and make_view_fn(
      encoder.method, names, grid, views.augment, deviation
    )
    check_space(store, images * image_bytes(feature_fn, encoder, batch_size))
    for part, missing in zip(parts, lacking):
      function = view_fn if part.view else feature_fn
      _extract(part, encoder, dataset, missing, names, batch_size, function)
  _select(folder, parts)
  number = views.number if views else 0
  return Cache(folder, layers, tuple(timesteps), number, deviation)


def _extract(
  part: _Part,
  encoder: encoders.Encoder,
  dataset: Dataset,
  rows: np.ndarray,
  layers: tuple[str, ...],
  batch_size: int,
  feature_fn: Callable | None,
) -> None:
  """Adds rows of the data set to the entry of a part."""
  if len(rows):
    key = part.key
    found = features.extract(
      encoder,
      dataset,
      rows,
      layers,
      key['t'],
      key['grid'],
      key['draws'],
      key['seed'],
      batch_size,
      feature_fn,
      f'{part.view or "features"}, t = {key["t"]}',
      key['first_draw'],
    )
    _store(part, rows, found, len(dataset.images))


def _weights_hash(encoder: encoders.Encoder) -> str:
  """sha256 of an encoder's weights: the same wherever they were read."""
  digest = hashlib.sha256()
  leaves = jax.tree.leaves(encoder.variables)
  for name, x in zip(archive.leaf_names(encoder.variables), leaves):
    digest.update(f'{name} {x.shape} {x.dtype} '.encode())
    digest.update(np.ascontiguousarray(x).tobytes())
  return digest.hexdigest()


def _parts(
  store: str,
  key: dict[str, Any],
  rows: np.ndarray,
  t: int,
  draws: int,
  views: Views | None,
) -> list[_Part]:
  """What one timestep needs; key: what decides all features of `fill`."""

  def part(rows: np.ndarray, view: str, **more: Any) -> _Part:
    whole = files.plain({**key, 't': t, **more})
    text = json.dumps(whole, sort_keys=True).encode()
    name = hashlib.sha256(text).hexdigest()[:20]
    return _Part(os.path.join(store, name), whole, rows, view)

  found = [part(rows, '', draws=draws, first_draw=0)]
  if views:
    at, augmented = rows[views.positions], {'augment': views.augment}
    for i in range(views.number):
      more = {'draws': 1, 'first_draw': draws + i, **augmented}
      found.append(part(at, f'view{i}', **more))
  return found


def _filled(part: _Part, layer: str) -> np.ndarray | None:
  """Which rows of the data set (N,) an entry holds; None for none at all."""
  try:
    return np.load(os.path.join(part.entry, f'{layer}.filled.npy'))
  except FileNotFoundError:
    return None


def _lacking(part: _Part, layers: Sequence[str]) -> np.ndarray:
  """The rows of a part that the entry has not of all layers, in their order."""
  lacks = np.zeros(len(part.rows), bool)
  for layer in layers:
    filled = _filled(part, layer)
    lacks |= True if filled is None else ~filled[part.rows]
  if jax.process_count() > 1:  # all must pass over the same rows
    lacks = multihost_utils.broadcast_one_to_all(lacks)
  return part.rows[lacks]


def _store(
  part: _Part, rows: np.ndarray, found: dict[str, np.ndarray], size: int
) -> None:
  """Writes new rows, and then that they are there; the first process does.

  size: images of the data set. Raises ValueError for what float16 cannot hold.
  """
  for layer, values in found.items():
    if not np.isfinite(values).all():
      raise ValueError(
        f'Layer {layer!r} at t = {part.key["t"]} has features that float16 '
        'cannot hold. Leave it out with --config.layers.'
      )
  if jax.process_index():
    return
  files.write_json(os.path.join(part.entry, 'key.json'), part.key)
  for layer, values in found.items():
    path = os.path.join(part.entry, f'{layer}.npy')
    filled = _filled(part, layer)
    if filled is None:
      stored = np.lib.format.open_memmap(
        path, 'w+', np.float16, (size, *values.shape[1:])
      )
      filled = np.zeros(size, bool)
    else:
      stored = np.load(path, mmap_mode='r+')
    new = ~filled[rows]  # what is there may have been read: it stays
    stored[rows[new]] = values[new]
    stored.flush()
    filled[rows] = True
    content = io.BytesIO()
    np.save(content, filled)
    whole = os.path.join(part.entry, f'{layer}.filled.npy')
    files.write_whole(whole, content.getvalue())


def _select(folder: str, parts: Sequence[_Part]) -> None:
  """Writes which rows of which entries were asked for."""
  if jax.process_index() == 0:
    for part in parts:
      entry = os.path.relpath(part.entry, folder)
      path = _selection(folder, part.key['t'], part.view)
      files.write_arrays(path, {'entry': np.array(entry), 'rows': part.rows})
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('features')


def _selection(folder: str, t: int, view: str) -> str:
  name = f't{t}.{view}.npz' if view else f't{t}.npz'
  return os.path.join(folder, name)


def image_bytes(
  feature_fn: Callable, encoder: encoders.Encoder, batch_size: int
) -> int:
  """Bytes on disk of the features of one image."""
  info = encoder.info
  shape = (batch_size, info.size_px, info.size_px, info.channels)
  maps = jax.eval_shape(
    feature_fn,
    encoder.variables,
    jax.ShapeDtypeStruct(shape, np.uint8),
    jax.ShapeDtypeStruct((batch_size,), np.uint32),
    jax.random.key(0),
    jax.ShapeDtypeStruct((), np.int32),
  )
  return 2 * sum(int(np.prod(m.shape[1:])) for m in maps.values())


def check_space(store: str, need: int) -> None:
  """ValueError where the features do not fit on the disk."""
  os.makedirs(store, exist_ok=True)
  files.check_room(
    store,
    need,
    'the features',
    'Give another --workdir, fewer --config.timesteps or smaller '
    '--config.grids.',
  )


def training_matrix(
  cache: Cache,
  t: int | Sequence[int],
  layers: Sequence[str],
  grid: int,
  positions: np.ndarray,
  rows: int | None = None,
) -> np.ndarray:
  """What heads are trained on: (n, d) or, with views, (views, n, d).

  positions (m,): rows to train on, the views' own; all other rows are the same
  in every view, so that heads are scored on images as they are. rows: how many
  from the first; None is all.
  """
  whole = matrix(cache, t, layers, grid, rows=rows)
  if not cache.views:
    return whole
  stacked = np.repeat(whole[None], cache.views, axis=0)
  for i in range(cache.views):
    stacked[i, positions] = matrix(cache, t, layers, grid, f'view{i}')
  return stacked


def maps(cache: Cache, t: int, layer: str) -> np.ndarray:
  """A layer at t of all images of the data set, (N, g, g, d) float16.

  A memory map in which the rows that were asked for are filled.
  """
  with np.load(_selection(cache.folder, t, '')) as selection:
    entry = os.path.join(cache.folder, str(selection['entry']))
  return np.load(os.path.join(entry, f'{layer}.npy'), mmap_mode='r')


def matrix(
  cache: Cache,
  t: int | Sequence[int],
  layers: Sequence[str],
  grid: int,
  view: str = '',
  rows: int | None = None,
) -> np.ndarray:
  """Features (n, d) float16 of layers side by side, pooled to grid x grid.

  Several timesteps are fused: their features too stand side by side. rows: how
  many of the selection, from the first; None is all.
  """
  parts = []
  for step in (t,) if isinstance(t, int) else t:
    with np.load(_selection(cache.folder, step, view)) as selection:
      entry = os.path.join(cache.folder, str(selection['entry']))
      chosen = selection['rows'][:rows]
    for layer in layers:
      stored = np.load(os.path.join(entry, f'{layer}.npy'), mmap_mode='r')
      parts.append(pool(stored[chosen], grid, cache.deviation))
  return np.concatenate(parts, axis=1)


def maps_of(
  cache: Cache, t: int | Sequence[int], layers: Sequence[str], grid: int
) -> Maps:
  """Which columns of `matrix` are which layer."""
  return layout(
    (
      maps(cache, step, layer).shape
      for step in ((t,) if isinstance(t, int) else t)
      for layer in layers
    ),
    grid,
  )

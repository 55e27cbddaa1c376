"""Features of a whole data set on disk: one pass of the encoder a timestep.

folder/t<timestep>/<layer>.npy holds (n, g, g, c) float16; key.json says what
they are features of, and is written last, so a stopped run keeps what it has.
view<i>/<layer>.npy beside them hold augmented views of the rows to train on,
each under noise of its own.
"""

from collections.abc import Callable, Sequence
import hashlib
import json
import os
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data.dataset import Dataset
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.heads.matrix import pool
from micdiffrep_jax.methods import views as changes
from micdiffrep_jax.methods.base import to_float
from micdiffrep_jax.run import files, log
from micdiffrep_jax.run.keys import stream


class Cache(NamedTuple):
  """Layers and timesteps whose features lie in `folder`, and how many views."""

  folder: str
  layers: tuple[str, ...]
  timesteps: tuple[int, ...]
  views: int = 0


class Views(NamedTuple):
  """Fresh noise and augmentation for the rows that heads are trained on.

  number: of views; positions (m,) in the cached rows; augment: the policy.
  """

  number: int
  positions: np.ndarray
  augment: ConfigDict


def make_view_fn(
  method: Any, layers: tuple[str, ...], grid: int, config: ConfigDict
) -> Callable:
  """As features.make_feature_fn, of images augmented by views.augment.

  What is drawn for an image depends on its seed and the key alone.
  """

  def one(key, image):
    x = changes.augment(stream(key, 'view'), to_float(image)[None], config)[0]
    # Back to bytes, so that a view is what a file could have held.
    return jnp.round((x + 1.0) * 127.5).astype(jnp.uint8)

  @jax.jit
  def feature_fn(variables, images, seeds, key, t):
    keys = features.image_keys(key, seeds)
    taps = method.features(variables, jax.vmap(one)(keys, images), keys, t)
    return {name: features.pool_map(taps[name], grid) for name in layers}

  return feature_fn


def _key(
  encoder: encoders.Encoder, dataset: Dataset, rows: np.ndarray, **settings: Any
) -> dict[str, Any]:
  """What decides the features; weights are told by where they come from."""
  return files.plain(
    {
      'encoder': encoder.info,
      'config': encoder.config,
      'dataset': dataset.fingerprint,
      'rows': hashlib.sha256(np.asarray(rows, np.int64).tobytes()).hexdigest(),
      **settings,
    }
  )


def _finished(folder: str, key: dict[str, Any]) -> bool:
  try:
    with open(os.path.join(folder, 'key.json')) as f:
      return json.load(f) == key
  except (OSError, ValueError):
    return False


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
) -> Cache:
  """Extracts what `folder` does not hold yet.

  weights_seed tells apart encoders of random weights, whose info does not.
  `feature_fn` of features.make_feature_fn saves its compilation at later calls.
  """
  log.get_logger().info(
    'Features of %d images at t = %s into %s.',
    len(rows),
    ', '.join(map(str, timesteps)),
    folder,
  )
  feature_fn = feature_fn or features.make_feature_fn(
    encoder.method, layers, grid
  )
  view_fn, seen_so = None, {}
  number, positions = 0, np.zeros(0, np.int64)
  if views:
    number, positions = views.number, np.asarray(views.positions, np.int64)
    view_fn = make_view_fn(encoder.method, layers, grid, views.augment)
    seen_so = {
      'views': number,
      'view_rows': hashlib.sha256(positions.tobytes()).hexdigest(),
      'augment': views.augment,
    }
  for t in timesteps:
    place = os.path.join(folder, f't{t}')
    key = _key(
      encoder,
      dataset,
      rows,
      layers=layers,
      t=t,
      grid=grid,
      draws=draws,
      seed=seed,
      weights_seed=weights_seed,
      **seen_so,
    )
    if _finished(place, key):
      continue
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(place)
    found = features.extract(
      encoder,
      dataset,
      rows,
      layers,
      t,
      grid,
      draws,
      seed,
      batch_size,
      feature_fn,
      desc=f'features, t = {t}',
    )
    _save(place, found, t)
    for i in range(number):
      found = features.extract(
        encoder,
        dataset,
        rows[positions],
        layers,
        t,
        grid,
        1,
        seed,
        batch_size,
        view_fn,
        desc=f'view {i}, t = {t}',
        first_draw=draws + i,
      )
      _save(os.path.join(place, f'view{i}'), found, t)
    files.write_json(os.path.join(place, 'key.json'), key)
  return Cache(folder, layers, tuple(timesteps), number)


def _save(place: str, found: dict[str, np.ndarray], t: int) -> None:
  """Writes one file per layer; ValueError for what float16 cannot hold."""
  os.makedirs(place, exist_ok=True)
  for layer, value in found.items():
    if not np.isfinite(value).all():
      raise ValueError(
        f'Layer {layer!r} at t = {t} has features that float16 cannot hold. '
        'Leave it out with --config.layers.'
      )
    np.save(os.path.join(place, f'{layer}.npy'), value)


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
  whole = matrix(cache, t, layers, grid)[:rows]
  if not cache.views:
    return whole
  stacked = np.repeat(whole[None], cache.views, axis=0)
  for i in range(cache.views):
    stacked[i, positions] = matrix(cache, t, layers, grid, f'view{i}')
  return stacked


def matrix(
  cache: Cache,
  t: int | Sequence[int],
  layers: Sequence[str],
  grid: int,
  view: str = '',
) -> np.ndarray:
  """Features (n, d) float16 of layers side by side, pooled to grid x grid.

  Several timesteps are fused: their features too stand side by side.
  """
  parts = []
  for step in (t,) if isinstance(t, int) else t:
    for layer in layers:
      path = os.path.join(cache.folder, f't{step}', view, f'{layer}.npy')
      parts.append(pool(np.load(path, mmap_mode='r'), grid))
  return np.concatenate(parts, axis=1)

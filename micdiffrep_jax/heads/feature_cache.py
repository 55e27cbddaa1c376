"""Features of a whole data set on disk: one pass of the encoder a timestep.

folder/t<timestep>/<layer>.npy holds (n, g, g, c) float16; key.json says what
they are features of, and is written last, so a stopped run keeps what it has.
"""

from collections.abc import Callable, Sequence
import hashlib
import json
import os
import shutil
from typing import Any, NamedTuple

import numpy as np

from micdiffrep_jax import features, log
from micdiffrep_jax.data.dataset import Dataset


class Cache(NamedTuple):
  """Layers and timesteps whose features lie in `folder`."""

  folder: str
  layers: tuple[str, ...]
  timesteps: tuple[int, ...]


def _key(
  encoder: features.Encoder, dataset: Dataset, rows: np.ndarray, **settings: Any
) -> dict[str, Any]:
  """What decides the features; weights are told by where they come from."""
  return log.plain(
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
  encoder: features.Encoder,
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
    for layer, value in found.items():
      if not np.isfinite(value).all():
        raise ValueError(
          f'Layer {layer!r} at t = {t} has features that float16 cannot hold. '
          'Leave it out with --config.layers.'
        )
      np.save(os.path.join(place, f'{layer}.npy'), value)
    log.write_json(os.path.join(place, 'key.json'), key)
  return Cache(folder, layers, tuple(timesteps))


def matrix(
  cache: Cache, t: int | Sequence[int], layers: Sequence[str], grid: int
) -> np.ndarray:
  """Features (n, d) float16 of layers side by side, pooled to grid x grid.

  Several timesteps are fused: their features too stand side by side.
  """
  parts = []
  for step in (t,) if isinstance(t, int) else t:
    for layer in layers:
      path = os.path.join(cache.folder, f't{step}', f'{layer}.npy')
      parts.append(features.pool(np.load(path, mmap_mode='r'), grid))
  return np.concatenate(parts, axis=1)

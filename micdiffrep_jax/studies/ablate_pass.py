"""One pass over the images per timestep, and the heads trained from it.

Interrupted, it goes on from the finished timesteps.
"""

import os
import shutil
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.run import log
from micdiffrep_jax.studies import ablate_grid, probe
from micdiffrep_jax.studies.ablate_grid import Level, Scored
from micdiffrep_jax.studies.probe_rows import Parts


def levels_of(config: ConfigDict) -> list[Level]:
  """What is searched: each timestep, then each fusion of several."""
  return [
    *((t,) for t in config.timesteps),
    *(ablate_grid.parse(text) for text in config.fused),
  ]


def size_bytes(feature_fn: Any, encoder: encoders.Encoder, images: int) -> int:
  """Bytes on disk of the features of one timestep."""
  info = encoder.info
  shape = (1, info.size_px, info.size_px, info.channels)
  maps = jax.eval_shape(
    feature_fn,
    encoder.variables,
    jax.ShapeDtypeStruct(shape, np.uint8),
    jax.ShapeDtypeStruct((1,), np.uint32),
    jax.random.key(0),
    jax.ShapeDtypeStruct((), np.int32),
  )
  return images * 2 * sum(int(np.prod(m.shape[1:])) for m in maps.values())


def check_space(folder: str, need: int, timesteps: int, images: int) -> None:
  """States the size of the features; ValueError where they do not fit."""
  os.makedirs(folder, exist_ok=True)
  total, free = need * timesteps, shutil.disk_usage(folder).free
  log.get_logger().info(
    'Features: %d timesteps x %d images = %.2f GiB float16 in %s (%.0f GiB '
    'free).',
    timesteps,
    images,
    total / 2**30,
    folder,
    free / 2**30,
  )
  if total > free:
    raise ValueError(
      f'The features take {total / 2**30:.1f} GiB, {folder} has '
      f'{free / 2**30:.1f} free. Give another --workdir, fewer '
      '--config.timesteps or smaller --config.grids.'
    )


def fill(
  folder: str,
  encoder: encoders.Encoder,
  ds: data.Dataset,
  parts: Parts,
  layers: tuple[str, ...],
  config: ConfigDict,
  weights_seed: int = 0,
) -> tuple[list[Scored], feature_cache.Cache]:
  """Validation scores of the whole grid; what is finished is not done again.

  folder gets features/ and one results file per timestep. The cache that is
  returned names all timesteps; `extract` makes sure that one is there.
  """
  levels = levels_of(config)
  steps = tuple(sorted({t for level in levels for t in level}))
  cache = feature_cache.Cache(
    os.path.join(folder, 'features'), layers, steps, config.online.views
  )
  keys = [
    ablate_grid.key(encoder, ds, layers, level, config, weights_seed)
    for level in levels
  ]
  paths = [ablate_grid.path(folder, level) for level in levels]
  found = [ablate_grid.read(p, key) for p, key in zip(paths, keys)]
  todo = [i for i, heads in enumerate(found) if heads is None]
  log.get_logger().info(
    '%d of %d timesteps are finished.', len(levels) - len(todo), len(levels)
  )
  if todo:
    feature_fn = features.make_feature_fn(
      encoder.method, layers, max(config.grids)
    )
    need = size_bytes(
      feature_fn,
      encoder,
      len(parts.rows) + config.online.views * len(parts.train),
    )
    new = {t for i in todo for t in levels[i]}
    check_space(folder, need, len(new), len(parts.rows))
    started = time.monotonic()
  for done, i in enumerate(todo, 1):
    extract(
      cache, encoder, ds, parts, levels[i], config, weights_seed, feature_fn
    )
    heads = ablate_grid.search(
      cache,
      parts,
      len(ds.classes),
      config,
      levels[i],
      f't = {ablate_grid.name(levels[i])}, heads',
    )
    found[i] = heads
    if jax.process_index() == 0:
      ablate_grid.write(paths[i], keys[i], heads)
    elapsed = time.monotonic() - started
    best = max(heads, key=lambda h: getattr(h, config.select))
    log.get_logger().info(
      't = %s done, best %.1f %% on validation (%s, %s, grid %d). %d of %d; '
      'about %.0f min to go.',
      best.timestep,
      100 * getattr(best, config.select),
      best.kind,
      best.layers[0] if len(best.layers) == 1 else 'all layers',
      best.grid,
      done,
      len(todo),
      elapsed / done * (len(todo) - done) / 60,
    )
  return [h for heads in found for h in heads or ()], cache


def extract(
  cache: feature_cache.Cache,
  encoder: encoders.Encoder,
  ds: data.Dataset,
  parts: Parts,
  level: Level,
  config: ConfigDict,
  weights_seed: int = 0,
  feature_fn: Any = None,
) -> None:
  """Makes sure that the features of a level lie in the cache."""
  feature_cache.fill(
    cache.folder,
    encoder,
    ds,
    parts.rows,
    cache.layers,
    level,
    max(config.grids),
    config.draws,
    config.seed,
    config.batch_size,
    weights_seed,
    feature_fn,
    views=probe.views_of(config, parts),
  )

"""Draws the images of a sampling run, over all devices, and keeps them.

Dimension letters: n images, h w pixels, c channels, k frames.
"""

import json
import time
from typing import Any
import zlib

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.diffusion import samplers
from micdiffrep_jax.draw import grids
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.methods import ddpm
from micdiffrep_jax.run import devices, log


def options(config: ConfigDict) -> dict[str, Any]:
  """config.sampler as the keywords of plans.make_plan."""
  fields = config.sampler.to_dict()
  fields.pop('clip')
  return {'sampler': fields.pop('name'), **fields}


def drawn(
  config: ConfigDict,
  encoder: encoders.Encoder,
  model: ddpm.Denoiser,
  steps: int,
  workdir: str,
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
  """Images (n, h, w, c), frames (k, few, h, w, c), both uint8, and seconds.

  Taken from samples.npz where it holds just these, else drawn and saved.
  """
  mark = 0
  for leaf in jax.tree.leaves(encoder.variables):
    mark = zlib.crc32(np.asarray(devices.fetch(leaf)).tobytes(), mark)
  settings = json.dumps(
    {
      'weights': mark,
      'seed': config.seed,
      'images': config.images,
      'frames': [config.figure.trajectory, config.figure.trajectory_images],
      **config.sampler.to_dict(),
    }
  )
  path = epath.Path(workdir) / 'samples.npz'
  if path.exists():
    with path.open('rb') as f, np.load(f) as saved:
      if str(saved['settings']) == settings:
        log.get_logger().info('The same images are in %s.', path)
        seconds = json.loads(str(saved['seconds']))
        return saved['images'], saved['frames'], seconds
  images, frames, seconds = draw(config, encoder, model, steps)
  if jax.process_index() == 0:
    save_images(path.parent / 'images', images)
    # Last, and in one move: that it is there says that all of it is.
    partial = path.parent / '.samples.npz.partial'
    with partial.open('wb') as f:
      np.savez(
        f,
        images=images,
        frames=frames,
        settings=settings,
        seconds=json.dumps(seconds),
      )
    partial.replace(path)
  return images, frames, seconds


def save_images(folder: epath.Path, images: np.ndarray) -> None:
  """Writes 00000.png and so on; older files of that kind beyond them go."""
  folder.mkdir(parents=True, exist_ok=True)
  for file in folder.glob('[0-9]*.png'):
    if file.stem.isdigit() and int(file.stem) >= len(images):
      file.unlink()
  for i, image in enumerate(images):
    grids.save_png(str(folder / f'{i:05d}.png'), image)


def draw(
  config: ConfigDict,
  encoder: encoders.Encoder,
  model: ddpm.Denoiser,
  steps: int,
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
  """Draws in batches over all devices; the rows that fill up the last one go.

  seconds: first_batch, with compilation, and per_image of the others; where
  there are none, it is that of the first.
  """
  size, channels = encoder.info.size_px, encoder.info.channels
  mesh = devices.make_mesh()
  run_sampler = samplers.make_sampler(
    model.process,
    lambda variables, x_t, t: model.apply(variables, x_t, t)[0],
    (size, size, channels),
    clip=config.sampler.clip,
    frames=config.figure.trajectory,
    **options(config),
  )
  keys_of = jax.jit(lambda index: samplers.image_keys(config.seed, index))
  images, frames, times = [], np.zeros((0,), np.uint8), []
  batches = range(0, config.images, config.batch_size)
  bar = log.progress(
    total=len(batches) * steps, desc=f'{config.images} samples', unit='step'
  )
  for start in batches:
    began = time.perf_counter()
    index = np.arange(start, start + config.batch_size, dtype=np.int32)
    keys = keys_of(devices.place_whole(index, mesh))
    found = run_sampler(encoder.variables, keys, tick=bar.update)
    if config.figure.trajectory:
      found, kept = found
      if not start:
        few = kept[:, : min(config.figure.trajectory_images, config.images)]
        frames = grids.to_uint8(devices.fetch(few))
    images.append(grids.to_uint8(devices.fetch(found)))
    times.append(time.perf_counter() - began)
  bar.close()
  seconds = {
    'first_batch': times[0],
    'per_image': float(np.mean(times[1:] or times)) / config.batch_size,
  }
  return np.concatenate(images)[: config.images], frames, seconds

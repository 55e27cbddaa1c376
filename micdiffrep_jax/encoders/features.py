"""Frozen features: encoder and images -> pooled taps.

One forward pass gives every layer; what is not asked for the compiler drops.
The noise of an image is seeded by its own pixels, so its features are a
function of the image alone: the same for any order, batch or number of devices.
Letters: b batch, n images, h w pixels, g grid cells per side, d features.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from micdiffrep_jax.data.dataset import Dataset
from micdiffrep_jax.diffusion.process import check_timesteps
from micdiffrep_jax.encoders.encoder import Encoder
from micdiffrep_jax.heads import head_file
from micdiffrep_jax.methods import Method
from micdiffrep_jax.run import devices, log
from micdiffrep_jax.run.checks import lookup
from micdiffrep_jax.run.keys import stream
from micdiffrep_jax.scores import calibration


def check_request(
  method: Method, layers: Sequence[str], timesteps: Sequence[int]
) -> tuple[str, ...]:
  """Returns the layers asked for, () meaning all.

  Raises ValueError for an unknown layer or a timestep out of range.
  """
  known = {name: name for name in method.layers}
  names = tuple(
    lookup(known, name, 'layer', '--config.layers') for name in layers
  )
  check_timesteps(timesteps, method.timesteps, '--config.timesteps')
  return names or method.layers


@functools.cache
def _cells(size: int, grid: int) -> np.ndarray:
  """Weights (grid, size) of the average over each of `grid` equal spans.

  A span that ends within a pixel takes its share of it, so spans nest exactly.
  """
  edges = np.linspace(0.0, size, grid + 1)
  pixels = np.arange(size)
  overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(
    edges[:-1, None], pixels
  )
  return (np.clip(overlap, 0, None) * grid / size).astype(np.float32)


def pool_map(x: jax.Array, grid: int) -> jax.Array:
  """Area averages: x (b, h, w, d) -> (b, g, g, d) float32, g = min(grid, h)."""
  if x.ndim == 2:  # a vector per image, e.g. a class token
    x = x[:, None, None, :]
  rows = _cells(x.shape[1], min(grid, x.shape[1]))
  columns = _cells(x.shape[2], min(grid, x.shape[2]))
  return jnp.einsum('bhwd,gh,kw->bgkd', x.astype(jnp.float32), rows, columns)


def image_seeds(images: np.ndarray) -> np.ndarray:
  """A seed (n,) uint32 per image (n, h, w, c) uint8, from its pixels alone."""
  return np.array([zlib.crc32(x.tobytes()) for x in images], np.uint32)


def image_keys(key: jax.Array, seeds: jax.Array) -> jax.Array:
  """One typed key (b,) per image."""
  return jax.vmap(lambda s: jax.random.fold_in(key, s))(seeds)


def make_feature_fn(
  method: Method, layers: tuple[str, ...], grid: int
) -> Callable:
  """Compiles (variables, images, seeds, key, t) -> {layer: (b, g, g, d)}.

  images (b, h, w, c) uint8, seeds (b,) uint32, t () int32. The output is
  float32, pooled inside, so that maps never leave the device.
  """

  @jax.jit
  def feature_fn(variables, images, seeds, key, t):
    taps = method.features(variables, images, image_keys(key, seeds), t)
    return {name: pool_map(taps[name], grid) for name in layers}

  return feature_fn


def extract(
  encoder: Encoder,
  dataset: Dataset,
  rows: np.ndarray,
  layers: Sequence[str] = (),
  t: int = 0,
  grid: int = 4,
  draws: int = 1,
  seed: int = 0,
  batch_size: int = 128,
  feature_fn: Callable | None = None,
  desc: str = 'features',
  first_draw: int = 0,
) -> dict[str, np.ndarray]:
  """Features of dataset rows, {layer: (n, g, g, d) float16}, in their order.

  Averaged over `draws` noise draws, numbered from `first_draw`. Pass the
  `feature_fn` of make_feature_fn to share its compilation. Raises
  ValueError for images of another size than the encoder's, an unknown layer or
  a timestep out of range.
  """
  names = check_request(encoder.method, layers, (t,))
  check_images(encoder, dataset)
  mesh = devices.make_mesh()
  devices.check_batch_size(batch_size, mesh, '--config.batch_size')
  feature_fn = feature_fn or make_feature_fn(encoder.method, names, grid)
  root = stream(jax.random.key(seed), 'features')
  keys = [
    devices.replicate(jax.random.fold_in(root, first_draw + i), mesh)
    for i in range(draws)
  ]
  level = devices.replicate(np.int32(t), mesh)
  found: dict[str, np.ndarray] = {}
  bar = log.progress(total=len(rows) * draws, desc=desc, unit='img')
  for start in range(0, len(rows), batch_size):
    part = rows[start : start + batch_size]
    images = dataset.images[part]
    padding = batch_size - len(part)
    if padding:  # one shape, one compilation; padded rows are dropped below
      images = np.concatenate([images, np.repeat(images[:1], padding, axis=0)])
    batch = devices.place_whole((images, image_seeds(images)), mesh)
    total: dict[str, np.ndarray] = {}
    for key in keys:
      out = devices.fetch(feature_fn(encoder.variables, *batch, key, level))
      total = {k: total[k] + out[k] if total else out[k] for k in names}
      bar.update(len(part))
    for name in names:
      mean = total[name][: len(part)] / draws
      if name not in found:
        found[name] = np.empty((len(rows), *mean.shape[1:]), np.float16)
      found[name][start : start + len(part)] = mean
  bar.close()
  return found


def check_images(encoder: Encoder, dataset: Dataset) -> None:
  """Raises ValueError where images are not of the encoder's format."""
  want = (encoder.info['size_px'], encoder.info['channels'])
  have = (dataset.info['size_px'], dataset.info['channels'])
  if want != have:
    raise ValueError(
      f'The encoder takes images of {want[0]} px with {want[1]} channel(s), '
      f'the dataset {dataset.path} has {have[0]} px and {have[1]}. Prepare it '
      'with '
      f'--config.data.size_px={want[0]} --config.data.channels={want[1]}.'
    )


def extract_for_head(
  info: dict[str, Any],
  encoder: Encoder,
  dataset: Dataset,
  rows: np.ndarray,
  batch_size: int = 128,
) -> dict[str, np.ndarray]:
  """The features of images that a head with this info was made for."""
  return extract(
    encoder,
    dataset,
    rows,
    tuple(info['layers']),
    info['timestep'],
    info['extracted_grid'],
    info['draws'],
    info['feature_seed'],
    batch_size,
  )


def predict(
  head: head_file.SavedHead,
  encoder: Encoder,
  dataset: Dataset,
  rows: np.ndarray,
  batch_size: int = 128,
) -> np.ndarray:
  """Calibrated probabilities (len(rows), k) of images."""
  info = head.info
  extracted = extract_for_head(info, encoder, dataset, rows, batch_size)
  return calibration.softmax(
    head_file.logits(head, extracted), info['temperature']
  )

"""Averages of feature maps over cells, the same for training and for use.

Letters: b images, h w pixels, g grid cells per side, d features.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


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


def pool_map(x: jax.Array, grid: int, deviation: bool = False) -> jax.Array:
  """Area averages: x (b, h, w, d) -> (b, g, g, d) float32, g = min(grid, h).

  With the deviation within each cell behind them: (b, g, g, 2 d).
  """
  if x.ndim == 2:  # a vector per image, e.g. a class token
    x = x[:, None, None, :]
  rows = _cells(x.shape[1], min(grid, x.shape[1]))
  columns = _cells(x.shape[2], min(grid, x.shape[2]))
  # A GPU or TPU would round what it averages to TF32 or bfloat16.
  average = functools.partial(
    jnp.einsum, 'bhwd,gh,kw->bgkd', precision='highest'
  )
  x = x.astype(jnp.float32)
  mean = average(x, rows, columns)
  if not deviation:
    return mean
  square = average(jnp.square(x), rows, columns)
  spread = jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0))
  return jnp.concatenate([mean, spread], axis=-1)

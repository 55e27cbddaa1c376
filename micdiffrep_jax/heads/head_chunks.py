"""Packs heads to be trained together into chunks that fit into memory.

Letters: n rows, d features, k classes, r noise draws.
"""

from collections.abc import Callable, Sequence

import numpy as np

from micdiffrep_jax.heads.matrix import Features
from micdiffrep_jax.heads.train_head import BLOCK, Options


def bucket(width: int) -> int:
  """The next width of 16, 24, 32, 48, 64 ...: few shapes, few compilations."""
  size = 16
  while size < width:
    if size * 3 // 2 >= width:
      return size * 3 // 2
    size *= 2
  return size


def cell_memory(
  options: Options, d: int, k: int, settings: int, rows: int
) -> int:
  """Estimated device memory of one cell beside its features."""
  hidden = options.hidden if options.kind == 'mlp' else k
  params = (d + k) * hidden
  copies = 4 + options.best_epoch  # parameters, two moments, gradient, best
  scored = BLOCK * (d + settings * hidden) + settings * rows * k
  batch = 3 * options.batch_size * (d + settings * hidden)
  return 4 * (settings * params * copies + scored + batch)


def plan(
  sets: Sequence[Features],
  which: Sequence[int],
  cell_bytes: Callable[[int], int],
  memory_mb: int,
) -> list[list[int]]:
  """Chunks of cell numbers that fit into memory and share a padded width.

  which: the feature set of each cell; cell_bytes: padded width -> bytes.

  A chunk holds at least one cell, however large. Cells of one feature set stay
  together, so that it is moved to the device once.
  """
  order = sorted(
    range(len(which)),
    key=lambda i: (
      bucket(sets[which[i]].x.shape[-1]),
      which[i],
      i,
    ),
  )
  chunks: list[list[int]] = []
  held: set[int] = set()
  width, used = 0, 0
  for i in order:
    number = which[i]
    x = sets[number].x
    d = bucket(x.shape[-1])
    new = 0 if number in held else x.nbytes // x.shape[-1] * d
    need = cell_bytes(d) + new
    if not chunks or d != width or used + need > memory_mb * 2**20:
      chunks.append([])
      held, used = set(), 0
      need = cell_bytes(d) + x.nbytes // x.shape[-1] * d
    chunks[-1].append(i)
    held.add(number)
    width, used = d, used + need
  return chunks


def stack(sets: Sequence[Features], d: int) -> tuple[np.ndarray, ...]:
  """Joins sets: (sets, r, n, d), shift and scale (sets, d), zero-padded."""
  xs = [s.x[None] if s.x.ndim == 2 else s.x for s in sets]
  if len(sets) == 1 and xs[0].shape[-1] == d:
    return xs[0][None], sets[0].shift[None], sets[0].scale[None]
  x = np.zeros((len(sets), *xs[0].shape[:2], d), xs[0].dtype)
  shift, scale = np.zeros((2, len(sets), d), np.float32)
  for i, (one, s) in enumerate(zip(xs, sets)):
    w = one.shape[-1]
    x[i, ..., :w], shift[i, :w], scale[i, :w] = one, s.shift, s.scale
  return x, shift, scale

"""Feature matrices and the statistics that standardise them.

Letters: n rows, d features, r noise draws, g cells per side, c channels.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Map(NamedTuple):
  """Columns that are one layer: its cells, row by row, of so many channels."""

  cells: int
  channels: int

  @property
  def width(self) -> int:
    """Its columns."""
    return self.cells * self.channels


Maps = tuple[Map, ...]


class Features(NamedTuple):
  """A feature matrix and how its columns are standardised.

  x (n, d) or (r, n, d), float16 or float32; shift and scale (d,) float32: a
  head sees (x - shift) * scale. maps: the layers that stand side by side in x,
  () where nothing tells.
  """

  x: np.ndarray
  shift: np.ndarray
  scale: np.ndarray
  maps: Maps = ()


def layout(shapes: Iterable[Sequence[int]], to: int) -> Maps:
  """The maps of layers of shape (n, g, g, c) that are pooled to `to`."""
  return tuple(Map(min(to, g) ** 2, c) for _, g, _, c in shapes)


def spans(maps: Maps) -> list[slice]:
  """The columns of each map."""
  ends = np.cumsum([one.width for one in maps]).tolist()
  return [slice(end - one.width, end) for end, one in zip(ends, maps)]


def split(features: Features) -> list[Features]:
  """The features of each map alone; all of them where nothing tells maps."""
  if not features.maps:
    return [features]
  return [
    Features(
      features.x[..., at], features.shift[at], features.scale[at], (one,)
    )
    for at, one in zip(spans(features.maps), features.maps)
  ]


def standardise(
  x: np.ndarray,
  rows: np.ndarray | None = None,
  block: int = 1024,
  maps: Maps = (),
) -> Features:
  """Features of x with mean 0 and deviation 1 over `rows` (default all).

  Sums run in float64 over blocks. A deviation below a thousandth of the median
  one is rounding of a dead feature and is floored there.
  """
  d = x.shape[-1]
  pick = np.arange(x.shape[-2]) if rows is None else np.asarray(rows)
  draws = x[None] if x.ndim == 2 else x
  first = np.asarray(draws[0, pick[0]], np.float64)  # against cancellation
  total, square, count = np.zeros(d), np.zeros(d), 0
  for draw in draws:
    for start in range(0, len(pick), block):
      part = draw[pick[start : start + block]].astype(np.float64) - first
      total += part.sum(0)
      square += np.einsum('nd,nd->d', part, part)
      count += len(part)
  mean = total / count
  std = np.sqrt(np.maximum(square / count - np.square(mean), 0))
  std = np.maximum(std, 1e-3 * np.median(std) + 1e-8)
  shift = (first + mean).astype(np.float32)
  return Features(x, shift, (1 / std).astype(np.float32), maps)


def literal(x: np.ndarray, maps: Maps = ()) -> Features:
  """Features as they are: what the paper's text says."""
  d = x.shape[-1]
  return Features(x, np.zeros(d, np.float32), np.ones(d, np.float32), maps)


def as_float32(features: Features, rows: np.ndarray) -> np.ndarray:
  """Standardised rows (len(rows), d) float32, made without a float64 copy."""
  if features.x.ndim != 2:
    raise ValueError(
      f'Features of shape {features.x.shape}: average the noise draws first.'
    )
  z = features.x[rows].astype(np.float32)
  z -= features.shift
  z *= features.scale
  return z


def unit(z: np.ndarray) -> np.ndarray:
  """Rows of length 1."""
  norm = np.linalg.norm(z, axis=1, keepdims=True)
  return z / np.maximum(norm, 1e-12)


def pool(features: np.ndarray, to: int, deviation: bool = False) -> np.ndarray:
  """Pools cached features further: (n, g, g, d) -> (n, to * to * d) float16.

  Exact, as cells nest when `to` divides g; a smaller g stays as it is.
  deviation: the second half of d is deviations within a cell of the first.
  """
  n, g = features.shape[:2]
  to = min(to, g)
  if to == g:
    return features.reshape(n, -1)
  if g % to:
    raise ValueError(f'A grid of {g} does not pool to {to}; use a divisor.')
  f = g // to
  cells = features.reshape(n, to, f, to, f, -1)
  if deviation:
    mean, within = np.split(cells.astype(np.float32), 2, axis=-1)
    pooled = mean.mean(axis=(2, 4))
    square = (np.square(mean) + np.square(within)).mean(axis=(2, 4))
    spread = np.sqrt(np.maximum(square - np.square(pooled), 0))
    pooled = np.concatenate([pooled, spread], axis=-1)
  else:
    pooled = cells.mean(axis=(2, 4), dtype=np.float32)
  return pooled.reshape(n, -1).astype(features.dtype)

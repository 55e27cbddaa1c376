"""Near-duplicates of many pictures, without comparing each with each.

Up to LARGE pictures all pairs are compared. Above, the details of the crops are
projected to a few directions, where no pair lies farther apart than before:
those that lie too far apart there are no near-duplicates, and faiss need not
look at them. What it finds is decided as in duplicates.py. Cells that it does
not visit are what it can miss: of 5,599 pairs among 17,115 pictures of Crystal
Clean none.

Letters: n m pictures, d pixels of a crop, k directions.
"""

from collections.abc import Iterator
import importlib.util
from typing import Any

import cv2
import numpy as np

from micdiffrep_jax.data import duplicates
from micdiffrep_jax.data.duplicates import Thresholds
from micdiffrep_jax.run import log

LARGE = 20_000  # pictures; their pairs take some ten seconds of a core
_DIRECTIONS = 128  # of 1,024; they hold three quarters of the detail
_ITERATIONS = 6
_PER_CELL = 100  # pictures, at least
_VISITED = 16  # cells around a picture
_LEARNED_FROM = 40  # pictures per cell
_BLOCK = 8192
_SLACK = 1e-3  # of a correlation: rounding may lose no pair
_EXACT_PAIRS_PER_S = 2e7  # of a core


def within(crops: np.ndarray, limits: Thresholds) -> np.ndarray:
  """Near-duplicate pairs i < j of head crops (n, 32, 32) uint8: (m, 2) int64.

  In order, as duplicates.pairs_within gives them.
  """
  if not _helped(len(crops), len(crops)):
    return duplicates.pairs_within(duplicates.describe(crops), limits)
  return _decided(crops, crops, limits)


def between(
  crops: np.ndarray, known: np.ndarray, limits: Thresholds
) -> np.ndarray:
  """Near-duplicate pairs (row of crops, row of known), (m, 2) int64, in order.

  Both are head crops (n, 32, 32) uint8.
  """
  if not _helped(len(crops), len(known)):
    return duplicates.pairs_between(
      duplicates.describe(crops), duplicates.describe(known), limits
    )
  return _decided(crops, known, limits)


def _helped(n: int, m: int) -> bool:
  """Whether n x m pairs are many, and faiss is there; says so if it is not."""
  if n * m <= LARGE**2:
    return False
  if importlib.util.find_spec('faiss'):
    return True
  log.get_logger().warning(
    'Near-duplicates: %d x %d pictures are compared pair by pair, about %.0f '
    "minutes of a core; faiss is faster: pip install -e '.[large]'.",
    n,
    m,
    n * m / _EXACT_PAIRS_PER_S / 60,
  )
  return False


def _details(crops: np.ndarray) -> np.ndarray:
  """duplicates.describe(crops).detail (n, d) up to rounding, but fast."""
  side = crops.shape[1]
  # Blurring a column is a product with this matrix, edges reflected.
  column = (1, 2 * round(4 * duplicates.BLUR_PX) + 1)
  blur = cv2.GaussianBlur(
    np.eye(side, dtype=np.float32), column, duplicates.BLUR_PX
  )
  x = crops.astype(np.float32)
  flat = x.std((1, 2)) < duplicates.FLAT
  smooth = (x.reshape(-1, side) @ blur.T).reshape(x.shape)  # along rows
  smooth = (smooth.transpose(0, 2, 1).reshape(-1, side) @ blur.T).reshape(
    x.shape
  )
  x -= smooth.transpose(0, 2, 1)
  x = x.reshape(len(x), -1)
  x -= x.mean(1, keepdims=True)
  x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
  x[flat] = 0
  return x


def _blocks(n: int) -> Iterator[slice]:
  for start in range(0, n, _BLOCK):
    yield slice(start, start + _BLOCK)


def _directions(crops: np.ndarray) -> np.ndarray:
  """Orthonormal columns (d, k), nearly those in which details differ most.

  Any would do; these leave the fewest pairs to decide. By subspace iteration.
  """
  some = np.linspace(0, len(crops) - 1, min(len(crops), _BLOCK)).astype(int)
  x = _details(crops[some])
  found = np.random.default_rng(0).standard_normal((x.shape[1], _DIRECTIONS))
  for _ in range(_ITERATIONS):
    found = np.linalg.qr(x.T @ (x @ found.astype(np.float32)))[0]
  return found.astype(np.float32)


def _index(projected: np.ndarray) -> Any:
  """A faiss index of rows (m, k) in cells of neighbours."""
  import faiss  # for large sets alone

  m, k = projected.shape
  cells = max(1, int(min(m // _PER_CELL, 4 * m**0.5)))
  some = np.linspace(0, m - 1, min(m, _LEARNED_FROM * cells)).astype(int)
  index = faiss.IndexIVFFlat(faiss.IndexFlatL2(k), k, cells)
  index.train(projected[some])
  index.add(projected)
  index.nprobe = min(_VISITED, cells)
  return index


def _decided(
  crops: np.ndarray, known: np.ndarray, limits: Thresholds
) -> np.ndarray:
  """Pairs (row of crops, row of known) that the index finds, decided exactly.

  Of the known 512 bytes each are held beside the crops, descriptors a block at
  a time. Where crops are the known ones, row i is paired with later rows only.
  """
  least = min(limits.detail, limits.detail_alone) - _SLACK
  directions = _directions(known)
  rows = np.flatnonzero(_has_detail(known))
  if not len(rows):
    return np.zeros((0, 2), np.int64)
  projected = np.empty((len(rows), directions.shape[1]), np.float32)
  for at in _blocks(len(rows)):
    projected[at] = _details(known[rows[at]]) @ directions
  index = _index(projected)
  del projected
  found = [np.zeros((0, 2), np.int64)]
  with log.progress(total=len(crops), desc='near-duplicates') as bar:
    for at in _blocks(len(crops)):
      x = _details(crops[at])
      # Of unit vectors, |x - y|^2 = 2 - 2 x y; projections lie no farther.
      ends, _, j = index.range_search(x @ directions, 2 - 2 * least)
      i, j = np.repeat(np.arange(len(x)), np.diff(ends).astype(int)), rows[j]
      if crops is known:
        later = i + at.start < j
        i, j = i[later], j[later]
      for part in _blocks(len(i)):
        pairs = _near(x, i[part], j[part], known, least)
        pairs[:, 0] += at.start
        found.append(_confirmed(crops, known, pairs, limits))
      bar.update(len(x))
  pairs = np.concatenate(found)
  return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _has_detail(crops: np.ndarray) -> np.ndarray:
  """(n,) bool: flat pictures would all lie at one point, near each other."""
  found = np.zeros(len(crops), bool)
  for at in _blocks(len(crops)):
    found[at] = crops[at].std((1, 2)) >= duplicates.FLAT
  return found


def _near(
  x: np.ndarray, i: np.ndarray, j: np.ndarray, known: np.ndarray, least: float
) -> np.ndarray:
  """Those pairs (row of x, row of known) whose details correlate: (m, 2)."""
  distinct, place = np.unique(j, return_inverse=True)
  y = _details(known[distinct])
  keep = np.einsum('md,md->m', x[i], y[place]) >= least
  return np.stack([i[keep], j[keep]], axis=1).astype(np.int64)


def _confirmed(
  crops: np.ndarray, known: np.ndarray, pairs: np.ndarray, limits: Thresholds
) -> np.ndarray:
  """Those pairs that duplicates.py would have found."""
  (a, i), (b, j) = (np.unique(x, return_inverse=True) for x in pairs.T)
  x, y = duplicates.describe(crops[a]), duplicates.describe(known[b])
  full = np.einsum('md,md->m', x.full[i], y.full[j])
  detail = np.einsum('md,md->m', x.detail[i], y.detail[j])
  return pairs[duplicates.agree(full, detail, limits)]

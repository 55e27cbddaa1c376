"""How good generated images are, and whether they are copies; numpy only.

Every number holds in the feature space it was worked out in, and depends on
the number of images; compare it with the same number for real images.
Dimension letters: n m images, d features.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


def _check(a: np.ndarray, b: np.ndarray, least: int) -> None:
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise ValueError(
      f'Features of shapes {a.shape} and {b.shape} cannot be compared; both '
      'must be (images, features) from one feature space.'
    )
  if min(len(a), len(b)) < least:
    raise ValueError(
      f'{len(a)} and {len(b)} images given; at least {least} of each are '
      'needed. Set --config.images.'
    )


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
  """Frechet distance of two Gaussians fitted to a (n, d) and b (m, d).

  On Inception features it is FID (Heusel et al. 2017). It is biased upward,
  the more the fewer images: compare only equal n. Raises ValueError for shapes
  that do not match.
  """
  _check(a, b, 2)
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)

  def factor(x):  # F with F^T F = the covariance, at most (d, d)
    return np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode='r')

  f_a, f_b = factor(a), factor(b)
  # tr sqrt(A B) is the sum of the singular values of F_a F_b^T: no root of a
  # matrix, so fewer images than features, whose covariance is singular, do no
  # harm.
  cross = np.linalg.svd(f_a @ f_b.T, compute_uv=False).sum()
  mean = np.sum((a.mean(0) - b.mean(0)) ** 2)
  return float(mean + np.sum(f_a**2) + np.sum(f_b**2) - 2 * cross)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
  """Squared MMD of a (n, d) and b (m, d), kernel (x y / d + 1)^3, unbiased.

  On Inception features it is KID (Binkowski et al. 2018). Unbiased, so it may
  be a little below 0 for equal distributions.
  """
  _check(a, b, 2)
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)

  def kernel(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3

  def within(x):
    k = kernel(x, x)
    return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

  return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Squared Euclidean distances (n, m) of rows of a and of b."""
  cross = a @ b.T
  square = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)[None]
  return np.maximum(square - 2 * cross, 0)


def precision_recall(
  real: np.ndarray, generated: np.ndarray, k: int = 3
) -> tuple[float, float]:
  """Share of generated images on the real manifold, and the reverse.

  A manifold is the union of balls around its images, each reaching to its k-th
  neighbour (Kynkaanniemi et al. 2019). real (n, d), generated (m, d).
  """
  _check(real, generated, k + 1)
  real = np.asarray(real, np.float64)
  generated = np.asarray(generated, np.float64)

  def radii(x):  # index k, as the nearest of all is the image itself
    return np.partition(squared_distances(x, x), k, axis=1)[:, k]

  between = squared_distances(real, generated)
  precision = (between <= radii(real)[:, None]).any(axis=0).mean()
  recall = (between <= radii(generated)[None]).any(axis=1).mean()
  return float(precision), float(recall)


def compare(
  generated: np.ndarray, val: np.ndarray, train: np.ndarray
) -> dict[str, Any]:
  """Generated and training images, each against validation; features (., d).

  'floor' is what as many real training images score: no generator can be asked
  for more. Of `train` the same number as of `generated` is taken, evenly
  spread; features are put on the scale of train's mean and deviation first.
  """
  mean, deviation = train.mean(0), train.std(0) + 1e-6
  generated, val, train = (
    (np.asarray(x, np.float64) - mean) / deviation
    for x in (generated, val, train)
  )
  take = np.linspace(0, len(train) - 1, min(len(generated), len(train)))
  found: dict[str, Any] = {
    'features': generated.shape[1],
    'images': {
      'generated': len(generated),
      'val': len(val),
      'floor': len(take),
    },
  }
  for name, x in (('generated', generated), ('floor', train[take.astype(int)])):
    precision, recall = precision_recall(val, x)
    found[name] = {
      'frechet_distance': frechet_distance(x, val),
      'kernel_distance': kernel_distance(x, val),
      'precision': precision,
      'recall': recall,
    }
  return found


class Nearest(NamedTuple):
  """The nearest reference of each query: distance (n,), row (n,) int64."""

  distance: np.ndarray
  row: np.ndarray


def nearest(queries: np.ndarray, blocks: Iterable[np.ndarray]) -> Nearest:
  """Nearest neighbours among all blocks, rows counted through them.

  queries (n, d); blocks of (m_i, d). The distance is the root mean square over
  the d features, in float32; ties go to the lower row. Raises ValueError where
  there are no references.
  """
  queries = np.asarray(queries, np.float32)
  centre = queries.mean(0)  # smaller numbers: less is lost to cancellation
  centred = queries - centre
  best = np.full(len(queries), np.inf, np.float32)
  row = np.zeros(len(queries), np.int64)
  match = np.zeros_like(queries)
  seen = 0
  for block in blocks:
    block = np.asarray(block, np.float32)
    square = squared_distances(centred, block - centre)
    at = square.argmin(axis=1)
    found = square[np.arange(len(queries)), at]
    better = found < best
    best[better], row[better] = found[better], seen + at[better]
    match[better] = block[at[better]]
    seen += len(block)
  if not seen:
    raise ValueError('There are no training images to compare with.')
  # Again and directly, so that the distance to an exact copy is exactly 0.
  rms = np.sqrt(np.mean((queries - match) ** 2, axis=1))
  return Nearest(rms, row)


def memorisation(
  sample: np.ndarray, val: np.ndarray, percentile: float, warn_share: float
) -> dict[str, Any]:
  """Whether samples lie closer to training images than unseen images do.

  sample (n,), val (m,): distances to the nearest training image. A sample is
  called close where its distance is under the given percentile (0 to 100) of
  val's: of unseen images that is the share percentile / 100 by definition, so
  a larger share of samples speaks for copies. Blurred samples are close in
  pixels without being copies: look at the figure. `warning` is set above
  warn_share.
  """
  if not 0 < percentile < 100 or not 0 <= warn_share <= 1:
    raise ValueError(
      f'percentile={percentile} must be in (0, 100) and '
      f'warn_share={warn_share} in [0, 1]. '
      'Set --config.memorisation.percentile and .warn_share.'
    )
  threshold = float(np.percentile(val, percentile))
  share = float(np.mean(sample < threshold))
  return {
    'share_close': share,
    'share_expected': percentile / 100,
    'warn_share': warn_share,
    'warning': share > warn_share,
    'threshold': threshold,
    'median_distance': float(np.median(sample)),
    'median_distance_val': float(np.median(val)),
  }

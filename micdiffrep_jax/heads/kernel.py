"""Kernel ridge classifier on frozen features: close training images vote.

Standardised features to unit length, to principal components divided by the
root of their deviations (half whitened), then ridge regression of the classes
under a Gaussian kernel. Its parameters serve as those of a trained head.

Letters: n rows, d features, p components, m rows kept, k classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import linalg
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import rbf_kernel

from micdiffrep_jax.heads.classic import as_float32, unit
from micdiffrep_jax.heads.matrix import Features

COMPONENTS = 128
GAMMAS = (1.0, 2.0, 4.0)  # per mean squared distance, wide to narrow
STRENGTHS = (1e-2, 1e-1)  # ridge, for a kernel of 1 on itself
ROWS = 20_000  # at most kept: their kernel has 1.6 GB
_ROWS_PER_COMPONENT = 4
_HALF = 0.5  # power of the deviations that components are divided by


class Kernel(NamedTuple):
  """A fitted kernel classifier.

  params: W (1, p, d), W_bias (1, p), centres (1, m, p), M (1, k, m) and M_bias
  (1, k), see models.heads; scores: the validation accuracy of each (gamma,
  strength) tried.
  """

  params: dict[str, np.ndarray]
  gamma: float
  strength: float
  scores: dict[tuple[float, float], float]


def _components(z: np.ndarray, most: int, seed: int) -> tuple:
  """W (p, d) and W_bias (p,), scaled to a mean squared distance of 1."""
  # Small deviations of few rows are noise, which whitening would blow up.
  p = max(min(most, z.shape[1], len(z) // _ROWS_PER_COMPONENT), 1)
  pca = PCA(p, svd_solver='randomized', random_state=seed).fit(z)
  deviation = np.sqrt(np.maximum(pca.explained_variance_, 1e-12))
  scale = deviation**-_HALF
  # Two rows are apart by twice the variance, on average.
  scale /= np.sqrt(2 * np.square(deviation * scale).sum())
  weights = (pca.components_ * scale[:, None]).astype(np.float32)
  return weights, -(weights @ pca.mean_).astype(np.float32)


def _ridge(
  w: np.ndarray, y: np.ndarray, k: int, gamma: float, strength: float
) -> tuple[np.ndarray, np.ndarray]:
  """M (k, n) and M_bias (k,); a class that no row has never wins.

  The shares of the classes are taken off and not put back: what is read is how
  far each class rises above its share, so frequent ones have no advantage.
  """
  share = np.bincount(y, minlength=k) / len(y)
  # float32, and at most ROWS rows: the LAPACK of SciPy 1.17 crashes on a matrix
  # of more than 2 GiB.
  kernel = rbf_kernel(w.astype(np.float32), gamma=gamma)
  kernel[np.diag_indices(len(w))] += strength
  factor = linalg.cho_factor(kernel, overwrite_a=True, check_finite=False)
  targets = (np.eye(k)[y] - share).astype(np.float32)
  m = linalg.cho_solve(factor, targets, check_finite=False)
  bias = np.where(share > 0, 0.0, -1e4)
  return m.T.astype(np.float32), bias.astype(np.float32)


def kernel_ridge(
  features: Features,
  labels: np.ndarray,
  classes: int,
  train: np.ndarray,
  validation: np.ndarray,
  gammas: Sequence[float] = GAMMAS,
  strengths: Sequence[float] = STRENGTHS,
  components: int = COMPONENTS,
  seed: int = 0,
) -> Kernel:
  """Fits on the rows `train`; gamma and strength are the best on `validation`.

  labels (n,) of all rows of `features`. Of more than ROWS training rows a
  random ROWS are used. Raises ValueError where they are of one class.
  """
  if len(np.unique(labels[train])) < 2:
    raise ValueError('The training rows hold a single class.')
  if len(train) > ROWS:
    at = np.random.default_rng(seed).permutation(len(train))[:ROWS]
    train = train[np.sort(at)]
  y, y_val = labels[train], labels[validation]
  z = unit(as_float32(features, train))
  weights, offset = _components(z, components, seed)
  w = z @ weights.T + offset
  w_val = unit(as_float32(features, validation)) @ weights.T + offset
  scores: dict[tuple[float, float], float] = {}
  best: tuple | None = None
  for gamma in gammas:
    near = rbf_kernel(w_val, w, gamma=gamma)
    for strength in strengths:
      m, bias = _ridge(w, y, classes, gamma, strength)
      right = (near @ m.T + bias).argmax(1) == y_val
      scores[gamma, strength] = float(right.mean())
      if best is None or scores[gamma, strength] > scores[best[:2]]:
        best = (gamma, strength, m, bias)
  assert best is not None
  gamma, strength, m, bias = best
  root = np.float32(np.sqrt(gamma))  # folded in: the head's own gamma is 1
  params = {
    'W': root * weights,
    'W_bias': root * offset,
    'centres': root * w,
    'M': m,
    'M_bias': bias,
  }
  params = {name: value[None] for name, value in params.items()}
  return Kernel(params, gamma, strength, scores)

"""Kernel ridge classifier on frozen features: close training images vote.

Standardised features to unit length, to principal components divided by the
root of their deviations (half whitened), then ridge regression of the classes
under a Gaussian kernel.

Letters: n rows, d features, p components, m rows kept, k classes, b batch.
"""

from collections.abc import Sequence

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
from scipy import linalg

from micdiffrep_jax.heads.base import Fitted, Head, Problem, predict_with
from micdiffrep_jax.heads.matrix import as_float32, unit
from micdiffrep_jax.heads.nets import Params, dense

COMPONENTS = 128
GAMMAS = (1.0, 2.0, 4.0)  # per mean squared distance, wide to narrow
STRENGTHS = (1e-2, 1e-1)  # ridge, for a kernel of 1 on itself
ROWS = 20_000  # at most kept: their kernel has 1.6 GB
_ROWS_PER_COMPONENT = 4
_HALF = 0.5  # power of the deviations that components are divided by


def apply(params: Params, x: Array) -> Array:
  """M exp(-|W x / |x| - centre|^2), a term per centre; centres (m, p)."""
  norm = jnp.linalg.norm(x, axis=1, keepdims=True)
  centres = params['centres']
  # A distance is the small difference of large numbers, which the TF32 of a GPU
  # and the bfloat16 of a TPU do not keep.
  with jax.default_matmul_precision('highest'):
    w = dense(params, 'W', x / jnp.maximum(norm, 1e-12))
    apart = jnp.square(w).sum(1)[:, None] + jnp.square(centres).sum(1)[None, :]
    distance = apart - 2 * jnp.einsum('bm,nm->bn', w, centres)
    return dense(params, 'M', jnp.exp(-jnp.maximum(distance, 0)))


def _components(
  z: np.ndarray, most: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """W (p, d) and W_bias (p,), scaled to a mean squared distance of 1."""
  from sklearn.decomposition import PCA  # for fitting alone

  # Small deviations of few rows are noise, which whitening would blow up.
  p = max(min(most, z.shape[1], len(z) // _ROWS_PER_COMPONENT), 1)
  pca = PCA(p, svd_solver='randomized', random_state=seed).fit(z)
  deviation = np.sqrt(np.maximum(pca.explained_variance_, 1e-12))
  scale = deviation**-_HALF
  # Two rows are apart by twice the variance, on average.
  scale /= np.sqrt(2 * np.square(deviation * scale).sum())
  weights = (pca.components_ * scale[:, None]).astype(np.float32)
  return weights, -(weights @ pca.mean_).astype(np.float32)


def _near(x: np.ndarray, y: np.ndarray | None, gamma: float) -> np.ndarray:
  """exp(-gamma |x - y|^2) of rows, y None for x itself."""
  # On use, as PCA above: predicting needs no scikit-learn, which takes seconds.
  from sklearn.metrics.pairwise import rbf_kernel

  return rbf_kernel(x, y, gamma=gamma)


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
  kernel = _near(w.astype(np.float32), None, gamma)
  kernel[np.diag_indices(len(w))] += strength
  factor = linalg.cho_factor(kernel, overwrite_a=True, check_finite=False)
  targets = (np.eye(k)[y] - share).astype(np.float32)
  m = linalg.cho_solve(factor, targets, check_finite=False)
  bias = np.where(share > 0, 0.0, -1e4)
  return m.T.astype(np.float32), bias.astype(np.float32)


def fit(
  problem: Problem,
  gamma: Sequence[float] = GAMMAS,
  strength: Sequence[float] = STRENGTHS,
  seed: int = 0,
) -> Fitted:
  """Fits on the rows to train on; each setting is the best on validation.

  Of more than ROWS training rows a random ROWS are used. params: W
  (1, p, d), W_bias (1, p), centres (1, m, p), M (1, k, m) and M_bias (1, k).
  Raises ValueError where the rows are of one class.
  """
  features, labels, classes, train, validation = problem
  if len(np.unique(labels[train])) < 2:
    raise ValueError('The training rows hold a single class.')
  if len(train) > ROWS:
    at = np.random.default_rng(seed).permutation(len(train))[:ROWS]
    train = train[np.sort(at)]
  y, y_val = labels[train], labels[validation]
  z = unit(as_float32(features, train))
  weights, offset = _components(z, COMPONENTS, seed)
  w = z @ weights.T + offset
  w_val = unit(as_float32(features, validation)) @ weights.T + offset
  scores: list[list[float]] = []
  best: Fitted | None = None
  for g in gamma:
    near = _near(w_val, w, g)
    root = np.float32(np.sqrt(g))  # folded in: the head's own gamma is 1
    for s in strength:
      m, bias = _ridge(w, y, classes, g, s)
      score = float(((near @ m.T + bias).argmax(1) == y_val).mean())
      scores.append([g, s, score])
      if best is None or score > best.score:
        params = {
          'W': root * weights,
          'W_bias': root * offset,
          'centres': root * w,
          'M': m,
          'M_bias': bias,
        }
        params = {name: value[None] for name, value in params.items()}
        chosen = {'gamma': g, 'strength': s}
        best = Fitted(params, chosen, score, {'scores': scores})
  assert best is not None
  tried = (({'gamma': g, 'strength': s}, score) for g, s, score in scores)
  return best._replace(tried=tuple(tried))


HEAD = Head(predict_with(apply), fit, ('gamma', 'strength'), kind='kernel')

"""Kernel ridge classifier on frozen features: close training images vote.

Standardised features to unit length, to principal components divided by the
root of their deviations (half whitened), then ridge regression of the classes
under a Gaussian kernel. Of a committee each layer has components of its own,
and the kernel is the mean of theirs.

Letters: n rows, d features, p components, m rows kept, k classes, b batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
from scipy import linalg

from micdiffrep_jax.heads.base import Fitted, Problem, head_of
from micdiffrep_jax.heads.matrix import (
  Features,
  Maps,
  as_float32,
  spans,
  split,
  unit,
)
from micdiffrep_jax.heads.nets import Params, dense, member

COMPONENTS = 128
GAMMAS = (1.0, 2.0, 4.0)  # per mean squared distance, wide to narrow
STRENGTHS = (1e-2, 1e-1)  # ridge, for a kernel of 1 on itself
ROWS = 20_000  # at most kept: their kernel has 1.6 GB
_ROWS_PER_COMPONENT = 4
_Arrays = dict[str, np.ndarray]
_SAME = 0.02  # between centres of one image whose features were made twice
_HALF = 0.5  # power of the deviations that components are divided by


def _closeness(params: Params, x: Array) -> Array:
  """exp(-|W x / |x| - centre|^2) of every centre (b, m); centres (m, p)."""
  norm = jnp.linalg.norm(x, axis=1, keepdims=True)
  centres = params['centres']
  # A distance is the small difference of large numbers, which the TF32 of a GPU
  # and the bfloat16 of a TPU do not keep.
  with jax.default_matmul_precision('highest'):
    w = dense(params, 'W', x / jnp.maximum(norm, 1e-12))
    apart = jnp.square(w).sum(1)[:, None] + jnp.square(centres).sum(1)[None, :]
    distance = apart - 2 * jnp.einsum('bm,nm->bn', w, centres)
  return jnp.exp(-jnp.maximum(distance, 0))


def _vote(params: Params, closeness: Array) -> Array:
  """M times closeness: sums over thousands of centres cancel."""
  with jax.default_matmul_precision('highest'):
    return dense(params, 'M', closeness)


def apply(params: Params, x: Array, maps: Maps = ()) -> Array:
  """M times the closeness to every centre (b, k)."""
  del maps
  return _vote(params, _closeness(params, x))


def apply_layers(params: Params, x: Array, maps: Maps = ()) -> Array:
  """M times the mean over maps of the closeness to every centre (b, k)."""
  each = [
    _closeness(member(params, i), x[:, at]) for i, at in enumerate(spans(maps))
  ]
  return _vote(params, jnp.stack(each).mean(0))


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


class _Projected(NamedTuple):
  """A map in components: W and W_bias, rows to train on and to choose on."""

  weights: np.ndarray
  offset: np.ndarray
  train: np.ndarray
  validation: np.ndarray


def _project(
  features: Features, train: np.ndarray, validation: np.ndarray, seed: int
) -> _Projected:
  z = unit(as_float32(features, train))
  weights, offset = _components(z, COMPONENTS, seed)
  # float32, and at most ROWS rows: the LAPACK of SciPy 1.17 crashes on a matrix
  # of more than 2 GiB.
  w = (z @ weights.T + offset).astype(np.float32)
  w_val = unit(as_float32(features, validation)) @ weights.T + offset
  return _Projected(weights, offset, w, w_val)


def _near(
  x: Sequence[np.ndarray], y: Sequence[np.ndarray], gamma: float
) -> np.ndarray:
  """exp(-gamma |x - y|^2) of rows, the mean over maps."""
  # On use, as PCA above: predicting needs no scikit-learn, which takes seconds.
  from sklearn.metrics.pairwise import rbf_kernel

  total = rbf_kernel(x[0], y[0], gamma=gamma)
  for one, other in zip(x[1:], y[1:]):
    total += rbf_kernel(one, other, gamma=gamma)
  total /= len(x)
  return total


def _ridge(
  w: Sequence[np.ndarray], y: np.ndarray, k: int, gamma: float, strength: float
) -> tuple[np.ndarray, np.ndarray]:
  """M (k, n) and M_bias (k,); a class that no row has never wins.

  The shares of the classes are taken off and not put back: what is read is how
  far each class rises above its share, so frequent ones have no advantage.
  """
  share = np.bincount(y, minlength=k) / len(y)
  kernel = _near(w, w, gamma)
  kernel[np.diag_indices(len(y))] += strength
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
  return _fit(problem, [problem.features], ('',), gamma, strength, seed)


def fit_layers(
  problem: Problem,
  gamma: Sequence[float] = GAMMAS,
  strength: Sequence[float] = STRENGTHS,
  seed: int = 0,
) -> Fitted:
  """As `fit`, with W, W_bias and centres of each map: '0.W', '1.W', ..."""
  parts = split(problem.features)
  names = [f'{i}.' for i in range(len(parts))]
  return _fit(problem, parts, names, gamma, strength, seed)


def _at_most(train: np.ndarray, seed: int) -> np.ndarray:
  if len(train) <= ROWS:
    return train
  at = np.random.default_rng(seed).permutation(len(train))[:ROWS]
  return train[np.sort(at)]


def refit(
  problem: Problem, before: _Arrays, gamma: float, strength: float
) -> tuple[_Arrays, _Arrays]:
  """The head fitted again on all rows to train on, and `before` beside it.

  Components need no label, so they stay. Where the first rows are those that
  `before` was fitted on, it gets the new centres, and no vote at those that it
  did not have: the two then differ in M and M_bias alone.
  """
  del gamma  # it is in W
  features, labels, classes, train, _ = problem
  train = _at_most(train, 0)
  names = [name.removesuffix('W') for name in before if name.endswith('W')]
  parts = [features] if names == [''] else split(features)
  w = [
    unit(as_float32(part, train)) @ before[f'{name}W'][0].T
    + before[f'{name}W_bias'][0]
    for name, part in zip(names, parts, strict=True)
  ]
  m, bias = _ridge(w, labels[train], classes, 1.0, strength)
  centres = {f'{name}centres': x[None] for name, x in zip(names, w)}
  after = {**before, **centres, 'M': m[None], 'M_bias': bias[None]}
  n = before['M'].shape[-1]
  if n <= len(train) and all(
    np.allclose(x[:, :n], before[name], atol=_SAME)
    for name, x in centres.items()
  ):
    votes = np.pad(before['M'], ((0, 0), (0, 0), (0, len(train) - n)))
    before = {**after, 'M': votes, 'M_bias': before['M_bias']}
  return after, before


def _fit(
  problem: Problem,
  parts: Sequence[Features],
  names: Sequence[str],
  gamma: Sequence[float],
  strength: Sequence[float],
  seed: int,
) -> Fitted:
  """names: what the parameters of each part start with."""
  _, labels, classes, train, validation = problem
  if len(np.unique(labels[train])) < 2:
    raise ValueError('The training rows hold a single class.')
  train = _at_most(train, seed)
  y, y_val = labels[train], labels[validation]
  projected = [_project(part, train, validation, seed) for part in parts]
  w = [part.train for part in projected]
  w_val = [part.validation for part in projected]
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
        params = {'M': m, 'M_bias': bias}
        for name, part in zip(names, projected):
          params |= {
            f'{name}W': root * part.weights,
            f'{name}W_bias': root * part.offset,
            f'{name}centres': root * part.train,
          }
        params = {name: value[None] for name, value in params.items()}
        chosen = {'gamma': g, 'strength': s}
        best = Fitted(params, chosen, score, {'scores': scores})
  assert best is not None
  tried = (({'gamma': g, 'strength': s}, score) for g, s, score in scores)
  return best._replace(tried=tuple(tried))


# M: sums over thousands of training images cancel.
_CHOOSES = ('gamma', 'strength')
HEAD = head_of(apply, fit, _CHOOSES, 'kernel', exact=('M',), refit=refit)
LAYERS = head_of(
  apply_layers,
  fit_layers,
  _CHOOSES,
  'kernel_layers',
  exact=('M',),
  refit=refit,
)

"""Heads without a learning rate: regression, neighbours, prototypes, a kernel.

Each chooses its settings on validation rows.

Letters: n rows, d features, k classes, q query rows.
"""

from collections.abc import Sequence
import functools
from typing import TYPE_CHECKING
import warnings

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from micdiffrep_jax.heads import kernel, nets
from micdiffrep_jax.heads.base import (
  Fitted,
  Head,
  Params,
  Problem,
  head_of,
)
from micdiffrep_jax.heads.matrix import Features, Maps, as_float32, unit

if TYPE_CHECKING:
  from sklearn.linear_model import LogisticRegression

STRENGTHS = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)  # L2 per row, strong to weak
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
_BLOCK = 512  # query rows at a time
_SHARPNESS = 1 / 0.07  # of cosine similarities, Wu et al. 2018


def _coefficients(model: 'LogisticRegression', k: int) -> dict[str, np.ndarray]:
  """Weights of all k classes; one that was not trained on never wins."""
  weight, bias = model.coef_, model.intercept_
  if len(model.classes_) == 2:  # scikit-learn keeps the difference alone
    weight = np.concatenate([-weight, weight]) / 2
    bias = np.concatenate([-bias, bias]) / 2
  m = np.zeros((1, k, weight.shape[1]), np.float32)
  m_bias = np.full((1, k), -1e4, np.float32)
  m[0, model.classes_], m_bias[0, model.classes_] = weight, bias
  return {'M': m, 'M_bias': m_bias}


def logistic(problem: Problem, strength: Sequence[float] = STRENGTHS) -> Fitted:
  """Multinomial logistic regression; L2 strength chosen on validation.

  Minimises mean cross-entropy + strength / 2 |M|^2 by L-BFGS (scikit-learn, C
  = 1 / (strength n)), each strength from the solution of the one before, and
  stops once two in a row are worse than the best. Needs n x d float32 memory.
  params are those of a linear head; told: `converged`, whether the chosen one
  stopped by its tolerance, and `scores` of each strength tried.
  """
  # On use: predicting needs no scikit-learn, which takes seconds.
  from sklearn.exceptions import ConvergenceWarning
  from sklearn.linear_model import LogisticRegression

  features, labels, classes, train, validation = problem
  z, y = as_float32(features, train), labels[train]
  z_val, y_val = as_float32(features, validation), labels[validation]
  if len(np.unique(y)) < 2:
    raise ValueError('The training rows hold a single class.')
  model = LogisticRegression(max_iter=300, warm_start=True)
  scores: dict[float, float] = {}
  best: Fitted | None = None
  worse = 0
  for s in strength:
    model.set_params(C=1 / (s * len(z)))
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always', ConvergenceWarning)
      model.fit(z, y)
    converged = not any(w.category is ConvergenceWarning for w in caught)
    params = _coefficients(model, classes)
    logits = z_val @ params['M'][0].T + params['M_bias'][0]
    scores[s] = float((logits.argmax(1) == y_val).mean())
    if best is None or scores[s] > best.score:
      told = {'converged': converged, 'scores': scores}
      best, worse = Fitted(params, {'strength': s}, scores[s], told), 0
    else:
      worse += 1
    if worse == 2:
      break
  assert best is not None
  tried = (({'strength': s}, score) for s, score in scores.items())
  return best._replace(tried=tuple(tried))


@functools.partial(jax.jit, static_argnames='most')
def _similar(query: Array, bank: Array, most: int) -> tuple[Array, Array]:
  return jax.lax.top_k(jnp.einsum('qd,nd->qn', query, bank), most)


def nearest(
  bank: np.ndarray, query: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cosine similarity and number of the `most` nearest bank rows: (q, most)."""
  most = min(most, len(bank))
  on_device = jnp.asarray(unit(bank))
  found = []
  for start in range(0, len(query), _BLOCK):
    at = np.arange(start, min(len(query), start + _BLOCK))
    block = unit(query[np.resize(at, min(_BLOCK, len(query)))])
    near = jax.device_get(_similar(block, on_device, most))
    found.append([part[: len(at)] for part in near])
  similarity, index = (np.concatenate(parts) for parts in zip(*found))
  return similarity, index


def vote(
  similarity: np.ndarray, labels: np.ndarray, classes: int, k: int
) -> np.ndarray:
  """Probabilities (q, classes) from the k nearest: exp(similarity / 0.07).

  similarity and labels (q, most), nearest first.
  """
  k = min(k, labels.shape[1])
  weight = np.exp(_SHARPNESS * (similarity[:, :k] - similarity[:, :1]))
  counts = (labels[:, :k, None] == np.arange(classes)) * weight[..., None]
  return counts.sum(1) / weight.sum(1, keepdims=True)


def knn(problem: Problem, neighbours: Sequence[int] = NEIGHBOURS) -> Fitted:
  """Nearest neighbours by cosine similarity of standardised features.

  Their number is the best on validation; told: `scores` of all tried.
  """
  features, labels, classes, train, validation = problem
  bank, y = as_float32(features, train), labels[train]
  query = as_float32(features, validation)
  similarity, index = nearest(bank, query, max(neighbours))
  scores = {
    k: float(
      (
        vote(similarity, y[index], classes, k).argmax(1) == labels[validation]
      ).mean()
    )
    for k in neighbours
  }
  k = max(scores, key=lambda k: scores[k])
  params = {'bank': bank, 'labels': y, 'classes': classes, 'neighbours': k}
  tried = tuple(({'neighbours': k}, score) for k, score in scores.items())
  return Fitted(
    params, {'neighbours': k}, scores[k], {'scores': scores}, tried=tried
  )


def knn_predict(params: Params, features: Features) -> np.ndarray:
  """Probabilities (n, k) of all rows by the labelled rows that knn keeps."""
  query = as_float32(features, np.arange(len(features.x)))
  k = params['neighbours']
  similarity, index = nearest(params['bank'], query, k)
  return vote(similarity, params['labels'][index], params['classes'], k)


def prototypes(problem: Problem) -> Fitted:
  """The mean direction of each class, for few labels: nothing to choose.

  Of standardised rows of length 1, made of length 1 again. The temperature that
  calibrates it is its only other number. params: M (1, k, d) and M_bias (1, k),
  which keeps a class without rows from winning. Source: Snell et al. 2017, with
  the cosine of Gidaris and Komodakis 2018.
  """
  features, labels, classes, train, validation = problem
  z, y = unit(as_float32(features, train)), labels[train]
  one_hot = (y[:, None] == np.arange(classes)).astype(np.float32)
  absent = one_hot.sum(0) == 0
  m = _SHARPNESS * unit(one_hot.T @ z)
  bias = np.where(absent, -1e4, 0.0).astype(np.float32)
  params = {'M': m[None], 'M_bias': bias[None]}
  said = unit(as_float32(features, validation)) @ m.T + bias
  score = float((said.argmax(1) == labels[validation]).mean())
  return Fitted(params, {}, score, tried=(({}, score),))


def _similarity(params: Params, x: Array, maps: Maps = ()) -> Array:
  """Cosine of rows (b, d) and prototypes, sharpened: (b, k)."""
  del maps
  norm = jnp.linalg.norm(x, axis=1, keepdims=True)
  return nets.dense(params, 'M', x / jnp.maximum(norm, 1e-12))


HEADS: dict[str, Head] = {
  'logistic': head_of(
    nets.HEADS['linear'].apply,
    logistic,
    ('strength',),
    kind='linear',
  ),
  'knn': Head(knn_predict, knn, ('neighbours',), calibrated=False),
  'prototypes': head_of(_similarity, prototypes, kind='prototypes'),
  'kernel': kernel.HEAD,
  'kernel_layers': kernel.LAYERS,
}

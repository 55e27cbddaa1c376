"""Probes without a learning rate: logistic regression and nearest neighbours.

Each chooses its one number on validation rows.

Letters: n rows, d features, k classes, q query rows.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple
import warnings

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from micdiffrep_jax.heads.matrix import Features

STRENGTHS = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)  # L2 per row, strong to weak
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
_BLOCK = 512  # query rows at a time
_SHARPNESS = 1 / 0.07  # of neighbour weights, Wu et al. 2018


class Logistic(NamedTuple):
  """A fitted logistic regression.

  params: M (1, k, d) and M_bias (1, k), those of one linear head; scores: the
  validation accuracy of each strength tried; converged: whether the chosen one
  stopped by its tolerance.
  """

  params: dict[str, np.ndarray]
  strength: float
  scores: dict[float, float]
  converged: bool


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


def _coefficients(model: LogisticRegression, k: int) -> dict[str, np.ndarray]:
  """Weights of all k classes; one that was not trained on never wins."""
  weight, bias = model.coef_, model.intercept_
  if len(model.classes_) == 2:  # scikit-learn keeps the difference alone
    weight = np.concatenate([-weight, weight]) / 2
    bias = np.concatenate([-bias, bias]) / 2
  m = np.zeros((1, k, weight.shape[1]), np.float32)
  m_bias = np.full((1, k), -1e4, np.float32)
  m[0, model.classes_], m_bias[0, model.classes_] = weight, bias
  return {'M': m, 'M_bias': m_bias}


def logistic_regression(
  features: Features,
  labels: np.ndarray,
  classes: int,
  train: np.ndarray,
  validation: np.ndarray,
  strengths: Sequence[float] = STRENGTHS,
  max_iter: int = 300,
) -> Logistic:
  """Multinomial logistic regression; L2 strength chosen on validation.

  Minimises mean cross-entropy + strength / 2 |M|^2 by L-BFGS (scikit-learn, C
  = 1 / (strength n)), each strength from the solution of the one before, and
  stops once two in a row are worse than the best. Needs n x d float32 memory.
  """
  z, y = as_float32(features, train), labels[train]
  z_val, y_val = as_float32(features, validation), labels[validation]
  if len(np.unique(y)) < 2:
    raise ValueError('The training rows hold a single class.')
  model = LogisticRegression(max_iter=max_iter, warm_start=True)
  scores: dict[float, float] = {}
  best = None
  worse = 0
  for strength in strengths:
    model.set_params(C=1 / (strength * len(z)))
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always', ConvergenceWarning)
      model.fit(z, y)
    converged = not any(w.category is ConvergenceWarning for w in caught)
    params = _coefficients(model, classes)
    logits = z_val @ params['M'][0].T + params['M_bias'][0]
    scores[strength] = float((logits.argmax(1) == y_val).mean())
    if best is None or scores[strength] > scores[best.strength]:
      best, worse = Logistic(params, strength, scores, converged), 0
    else:
      worse += 1
    if worse == 2:
      break
  assert best is not None
  return best


@functools.partial(jax.jit, static_argnames='most')
def _similar(query: Array, bank: Array, most: int) -> tuple[Array, Array]:
  return jax.lax.top_k(jnp.einsum('qd,nd->qn', query, bank), most)


def unit(z: np.ndarray) -> np.ndarray:
  """Rows of length 1."""
  norm = np.linalg.norm(z, axis=1, keepdims=True)
  return z / np.maximum(norm, 1e-12)


def neighbours(
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


def knn(
  features: Features,
  labels: np.ndarray,
  classes: int,
  train: np.ndarray,
  validation: np.ndarray,
  ks: Sequence[int] = NEIGHBOURS,
) -> tuple[int, dict[int, float]]:
  """Number of neighbours with the best validation accuracy, and all of them.

  Cosine similarity of standardised features.
  """
  bank = as_float32(features, train)
  query = as_float32(features, validation)
  similarity, index = neighbours(bank, query, max(ks))
  y = labels[train][index]
  scores = {
    k: float(
      (vote(similarity, y, classes, k).argmax(1) == labels[validation]).mean()
    )
    for k in ks
  }
  return max(scores, key=lambda k: scores[k]), scores


def knn_predict(
  bank: np.ndarray, labels: np.ndarray, query: np.ndarray, classes: int, k: int
) -> np.ndarray:
  """Probabilities (q, classes) of query rows by the labelled bank rows."""
  similarity, index = neighbours(bank, query, k)
  return vote(similarity, labels[index], classes, k)

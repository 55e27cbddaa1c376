"""Rows of a probe table: what is predicted on, what was predicted.

Letters: n rows of all parts, v validation rows, q test rows, k classes.
"""

from typing import Any, NamedTuple

import numpy as np

from micdiffrep_jax.data.dataset import Dataset
from micdiffrep_jax.heads import classic, kernel, trained
from micdiffrep_jax.heads.matrix import Features
from micdiffrep_jax.scores import calibration


class Parts(NamedTuple):
  """rows (n,) of the dataset; train, val, test: positions in rows.

  labels (n,): -1 on test rows, so that nothing fitted can have read them.
  """

  rows: np.ndarray
  train: np.ndarray
  val: np.ndarray
  test: np.ndarray
  labels: np.ndarray


def image_sets(ds: Dataset, rows: np.ndarray) -> dict[str, np.ndarray]:
  """Masks (n,) of the sets that scores are of: all rows, untouched sources.

  A set without rows is left out.
  """
  masks = {
    'all': np.ones(len(rows), bool),
    'sources': ds.manifest['variant'][rows] == '',
  }
  return {name: keep for name, keep in masks.items() if keep.any()}


class Row(NamedTuple):
  """Predictions of one method.

  chosen: what validation chose; val (v, k) and test (seeds, q, k)
  probabilities, val those of the first seed; temperature of that seed.
  """

  chosen: dict[str, Any]
  val: np.ndarray
  test: np.ndarray
  temperature: float = 1.0
  test_uncalibrated: np.ndarray | None = None
  params: dict[str, np.ndarray] | None = None  # of a head that can be bundled


def _head_row(
  kind: str,
  params: dict[str, np.ndarray],
  found: Features,
  parts: Parts,
  chosen: dict[str, Any],
) -> Row:
  """The calibrated predictions of a head."""
  val, test = (
    trained.predict(kind, params, found._replace(x=found.x[at]))[0]
    for at in (parts.val, parts.test)
  )
  t = calibration.fit_temperature(val, parts.labels[parts.val])
  return Row(
    chosen,
    calibration.softmax(val, t),
    calibration.softmax(test, t)[None],
    t,
    calibration.softmax(test),
    params,
  )


def logistic_row(
  found: Features, parts: Parts, k: int, chosen: dict[str, Any]
) -> Row:
  """Logistic regression on standardised features, the headline probe."""
  fitted = classic.logistic_regression(
    found, parts.labels, k, parts.train, parts.val
  )
  chosen = {
    **chosen,
    'strength': fitted.strength,
    'converged': fitted.converged,
    'scores': fitted.scores,
  }
  return _head_row('linear', fitted.params, found, parts, chosen)


def kernel_row(
  found: Features, parts: Parts, k: int, chosen: dict[str, Any]
) -> Row:
  """Kernel ridge regression on standardised features."""
  fitted = kernel.kernel_ridge(found, parts.labels, k, parts.train, parts.val)
  chosen = {
    **chosen,
    'gamma': fitted.gamma,
    'strength': fitted.strength,
    'scores': [[*tried, score] for tried, score in fitted.scores.items()],
  }
  return _head_row('kernel', fitted.params, found, parts, chosen)


def knn_row(
  found: Features, parts: Parts, k: int, chosen: dict[str, Any]
) -> Row:
  """Cosine nearest neighbours of standardised features."""
  nearest, scores = classic.knn(found, parts.labels, k, parts.train, parts.val)
  bank = classic.as_float32(found, parts.train)
  y = parts.labels[parts.train]
  val, test = (
    classic.knn_predict(bank, y, classic.as_float32(found, at), k, nearest)
    for at in (parts.val, parts.test)
  )
  return Row(
    {**chosen, 'neighbours': nearest, 'scores': scores}, val, test[None]
  )

"""Predictions of a patient from those of the slices.

A doctor asks about patients; a table of slices counts a patient with many
slices often.

Letters: n slices, p patients, k classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from micdiffrep_jax.run.checks import lookup

_EPS = 1e-12


class Pooled(NamedTuple):
  """What a patient is told, by patient in order of first appearance.

  labels (p,); probs (p, k), rows sum to one; first (p,): a slice of each;
  mixed: patients left out, since their slices have several labels.
  """

  labels: np.ndarray
  probs: np.ndarray
  first: np.ndarray
  mixed: int


def _mean(sums: Callable, probs: np.ndarray) -> np.ndarray:
  return sums(probs)


def _geometric(sums: Callable, probs: np.ndarray) -> np.ndarray:
  counts = sums(np.ones((len(probs), 1)))
  means = sums(np.log(np.maximum(probs, _EPS))) / counts
  return np.exp(means - means.max(1, keepdims=True))


def _vote(sums: Callable, probs: np.ndarray) -> np.ndarray:
  return sums(np.eye(probs.shape[1])[probs.argmax(1)])


# How slices are pooled: a function of `sums`, which adds rows up by patient.
POOLS: dict[str, Callable[[Callable, np.ndarray], np.ndarray]] = {
  'mean': _mean,
  'geometric': _geometric,
  'vote': _vote,
}


def pool(
  labels: np.ndarray, probs: np.ndarray, patients: np.ndarray, how: str = 'mean'
) -> Pooled:
  """Pools slices by patient: labels (n,), probs (n, k), patients (n,).

  how: mean of the probabilities, their geometric mean, or the share of slices
  that a class is said of. Raises ValueError for another.
  """
  of = lookup(POOLS, how, 'pooling', '--config.pooling')
  _, first, number = np.unique(patients, return_index=True, return_inverse=True)

  def sums(values: np.ndarray) -> np.ndarray:
    total = np.zeros((len(first), values.shape[1]))
    np.add.at(total, number, values)
    return total

  one_label = np.ones(len(first), bool)
  one_label[number[labels != labels[first][number]]] = False
  found = of(sums, np.asarray(probs, np.float64))
  found /= found.sum(1, keepdims=True)
  order = np.argsort(first)
  order = order[one_label[order]]
  return Pooled(
    labels[first[order]], found[order], first[order], int((~one_label).sum())
  )

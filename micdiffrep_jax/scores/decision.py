"""Decision curves: what it is worth to act on a probability.

Who acts from a threshold p on holds a false alarm to cost p / (1 - p) of what a
find is worth. Net benefit is the share of finds less that of false alarms, so
weighed. At a threshold the classifier with more of it is the better one; one
below acting on all, or on none (0), is of no use there. Source: Vickers and
Elkin 2006, doi 10.1177/0272989X06295361.

Letters: n rows, m thresholds, g groups, r resamples.
"""

from typing import NamedTuple

import numpy as np

from micdiffrep_jax.scores import bootstrap

THRESHOLDS = np.linspace(0.05, 0.95, 19)


class NetBenefit(NamedTuple):
  """Net benefit (m,) per row at thresholds (m,), with 95 % intervals."""

  thresholds: np.ndarray
  value: np.ndarray
  low: np.ndarray
  high: np.ndarray


def net_benefit(
  positive: np.ndarray,
  risk: np.ndarray,
  groups: np.ndarray,
  resamples: int = 1000,
  seed: int = 0,
  thresholds: np.ndarray = THRESHOLDS,
) -> NetBenefit:
  """The decision curve of risks (n,) for rows that are positive (n,) or not.

  Intervals are over resamples of groups (n,), the same for every curve of the
  same groups. Raises ValueError for a threshold that is not in (0, 1).
  """
  thresholds = np.asarray(thresholds, np.float64)
  if ((thresholds <= 0) | (thresholds >= 1)).any():
    raise ValueError(f'Thresholds {thresholds.tolist()}: each lies in (0, 1).')
  odds = thresholds / (1 - thresholds)
  worth = np.where(np.asarray(positive, bool)[:, None], 1.0, -odds)
  acted = np.asarray(risk)[:, None] >= thresholds
  weights, index = bootstrap.group_weights(groups, resamples, seed)
  size = weights.shape[1]
  sums = np.zeros((size, len(thresholds)))
  np.add.at(sums, index, worth * acted)  # (g, m)
  rows = np.bincount(index, minlength=size)
  drawn = (weights @ sums) / (weights @ rows)[:, None]  # (r, m)
  bounds = [bootstrap.interval(column) for column in drawn.T]
  low, high = np.array(bounds).T
  return NetBenefit(thresholds, sums.sum(0) / rows.sum(), low, high)

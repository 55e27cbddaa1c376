"""Decision curves: what it is worth to act on a probability.

Who acts from a threshold p on holds a false alarm to cost p / (1 - p) of what a
find is worth. Net benefit is the share of finds less that of false alarms, so
weighed. At a threshold the classifier with more of it is the better one; one
below acting on all, or on none (0), is of no use there. Source: Vickers and
Elkin 2006, doi 10.1177/0272989X06295361.

Letters: n images, k classes, m thresholds.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from micdiffrep_jax.scores import bootstrap, metrics

THRESHOLDS = np.linspace(0.05, 0.95, 19)
ALL = 'act on all'


class NetBenefit(NamedTuple):
  """Net benefit per image at thresholds, with 95 % intervals; (m,) each."""

  thresholds: np.ndarray
  value: np.ndarray
  low: np.ndarray
  high: np.ndarray


def net_benefit(
  rows: metrics.Rows, j: int, thresholds: np.ndarray = THRESHOLDS
) -> NetBenefit:
  """The decision curve of class j against the rest.

  Raises ValueError for a threshold that is not in (0, 1).
  """
  thresholds = np.asarray(thresholds, np.float64)
  if ((thresholds <= 0) | (thresholds >= 1)).any():
    raise ValueError(f'Thresholds {thresholds.tolist()}: each lies in (0, 1).')
  odds = thresholds / (1 - thresholds)
  worth = np.where((rows.labels == j)[:, None], 1.0, -odds)
  gain = worth * (rows.probs[:, j, None] >= thresholds)  # (n, m)
  scores = [bootstrap.score(rows.mean(column)) for column in gain.T]
  return NetBenefit(thresholds, *np.array(scores).T)


def curves(
  labels: np.ndarray,
  probs: Mapping[str, np.ndarray],
  groups: np.ndarray,
  classes: Sequence[str],
  resamples: int,
  seed: int,
) -> dict[str, dict[str, NetBenefit]]:
  """{class: {name: curve}} for the classes that labels (n,) have.

  Names are those of probs, (n, k) each, and ALL. Intervals are over resamples
  of groups (n,), the same for every curve. Raises ValueError for labels and
  probabilities that do not fit together.
  """
  found: dict[str, dict[str, NetBenefit]] = {
    label: {} for j, label in enumerate(classes) if (labels == j).any()
  }
  everyone = np.ones((len(labels), len(classes)))
  for name, said in {**probs, ALL: everyone}.items():
    said = np.asarray(said, np.float64)
    if name != ALL:
      metrics.check(labels, said)
    rows = bootstrap.resampled_rows(labels, said, groups, resamples, seed)
    for label in found:
      found[label][name] = net_benefit(rows, list(classes).index(label))
  return found

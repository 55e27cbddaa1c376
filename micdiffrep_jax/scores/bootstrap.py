"""Intervals and comparisons that resample groups, not images.

Images of one patient or one source picture are not independent, so a bootstrap
over images gives intervals several times too narrow. A resample draws as many
groups as there are, with replacement: it is a vector of group weights, and
every metric is a vectorised function of such weights.

Letters: n rows, k classes, g groups, r resamples, d draws of labels.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from micdiffrep_jax.run.checks import lookup
from micdiffrep_jax.scores import metrics, pooling
from micdiffrep_jax.scores.metrics import HEADLINE, METRICS, Rows

BOUNDS = ('value', 'low', 'high')
SETS = ('all', 'sources', 'patients')  # what scores are of, see sets_of


class Score(NamedTuple):
  """A value and its 95 % interval; nan where there is none."""

  value: float
  low: float
  high: float

  def to_json(self) -> dict[str, float | None]:
    """By name; None for nan."""
    known = self._asdict().items()
    return {name: None if math.isnan(x) else x for name, x in known}


class OverDraws(NamedTuple):
  """A mean over draws with a 95 % interval over draws and test groups.

  each: the value of every draw; deviation: of these, None of one.
  """

  value: float
  low: float
  high: float
  each: tuple[float, ...] = ()  # of older results
  deviation: float | None = None


def group_weights(
  groups: np.ndarray, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """How often each resample draws each group.

  groups (n,) of any type. Returns weights (r, g) float32, rows sum to g, and
  the group number (n,) of each row.
  """
  names, index = np.unique(groups, return_inverse=True)
  rng = np.random.default_rng(seed)
  share = np.full(len(names), 1 / len(names))
  weights = rng.multinomial(len(names), share, size=resamples)
  return weights.astype(np.float32), index.reshape(-1)


def resampled_rows(
  labels: np.ndarray,
  probs: np.ndarray,
  groups: np.ndarray,
  resamples: int,
  seed: int,
) -> Rows:
  """Rows with 1 + r weightings: all groups once, then the resamples."""
  weights, index = group_weights(groups, resamples, seed)
  once = np.ones((1, weights.shape[1]), np.float32)
  return Rows(labels, probs, index, np.concatenate([once, weights]))


def interval(resampled: np.ndarray, level: float = 0.95) -> tuple[float, float]:
  """Percentile interval of resampled values (r,), those that are not nan."""
  good = resampled[~np.isnan(resampled)]
  if not len(good):
    return math.nan, math.nan
  low, high = np.quantile(good, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def score(values: np.ndarray) -> Score:
  """The score of values (1 + r,): of all rows, then of the resamples."""
  return Score(float(values[0]), *interval(values[1:]))


def compare(
  labels: np.ndarray,
  probs_a: np.ndarray,
  probs_b: np.ndarray,
  groups: np.ndarray,
  metric: str = 'accuracy',
  resamples: int = 2000,
  seed: int = 0,
) -> dict[str, float | int | str]:
  """Paired comparison of two methods on the same rows: a minus b.

  Both are scored on the same resampled groups. The p-value is two-sided:
  twice the smaller share of resamples on one side of zero, which never is
  below 2 / (resamples + 1). Raises ValueError for an unknown metric or for
  rows that differ.
  """
  if probs_a.shape != probs_b.shape:
    raise ValueError(
      f'Paired comparison of {probs_a.shape} with {probs_b.shape}: both must '
      'be probabilities of the same rows and classes.'
    )
  of = lookup(metrics.CRITERIA, metric, 'metric').of
  rows = resampled_rows(labels, probs_a, groups, resamples, seed)
  a, b = of(rows), of(dataclasses.replace(rows, probs=probs_b))
  difference = score(a - b)
  spread = (a - b)[1:]
  spread = spread[~np.isnan(spread)]
  tail = min((spread <= 0).sum(), (spread >= 0).sum())
  return {
    'metric': metric,
    'a': float(a[0]),
    'b': float(b[0]),
    'difference': difference.value,
    'low': difference.low,
    'high': difference.high,
    'p_value': min(1.0, 2 * (1 + int(tail)) / (len(spread) + 1)),
    'groups': rows.weights.shape[1],
    'resamples': resamples,
  }


class Resampled(NamedTuple):
  """A metric once per draw (d,), and its mean over draws (1 + r,).

  The mean is that of all rows, then of each resample.
  """

  once: np.ndarray
  mean: np.ndarray


def resample(
  labels: np.ndarray,
  said: np.ndarray,
  groups: np.ndarray,
  k: int,
  resamples: int,
  seed: int,
) -> dict[str, Resampled]:
  """The headline metrics over draws, and resamples of draws and groups.

  labels (n,), said (d, n) classes, groups (n,). Each resample draws groups,
  the same for all draws, and draws of labels, both with replacement; the same
  for all methods of as many draws, so that differences are paired.
  """
  rows = resampled_rows(labels, np.eye(k)[said[0]], groups, resamples, seed)
  by_draw = [
    dataclasses.replace(rows, probs=np.eye(k)[classes]) for classes in said
  ]
  rng = np.random.default_rng([seed, 1])
  pick = rng.integers(len(said), size=(resamples, len(said)))
  found = {}
  for name in HEADLINE:
    table = np.stack([METRICS[name].of(one) for one in by_draw], axis=1)
    spread = np.take_along_axis(table[1:], pick, axis=1).mean(1)
    found[name] = Resampled(table[0], np.r_[table[0].mean(), spread])
  return found


def interval_over_draws(found: Resampled) -> OverDraws:
  """What the mean over draws is."""
  deviation = float(found.once.std(ddof=1)) if len(found.once) > 1 else None
  return OverDraws(
    *score(found.mean), each=tuple(found.once.tolist()), deviation=deviation
  )


def difference(a: Resampled, b: Resampled) -> Score:
  """Mean of a minus b over draws, with a 95 % interval, paired."""
  return score(a.mean - b.mean)


class Slices(NamedTuple):
  """Whose the rows to score are, (n,) each, None where nothing is known.

  groups: what resamples draw; variants: '' for an untouched source; patients:
  numbers or names of those whose the rows are.
  """

  groups: np.ndarray
  variants: np.ndarray | None = None
  patients: np.ndarray | None = None


class Scored(NamedTuple):
  """Rows to score: labels (n,), probs (n, k), groups (n,).

  pooling and mixed: as Summary tells them, of patients.
  """

  labels: np.ndarray
  probs: np.ndarray
  groups: np.ndarray
  pooling: str | None = None
  mixed: int | None = None


def sets_of(
  labels: np.ndarray, probs: np.ndarray, slices: Slices, how: str = 'mean'
) -> dict[str, Scored]:
  """The sets that scores are of: 'all', 'sources' and 'patients'.

  Sources are the untouched ones; patients are theirs, pooled as pooling.pool
  says of `how`. A set without rows is left out.
  """
  groups = np.asarray(slices.groups)
  sets = {'all': Scored(labels, probs, groups)}
  if slices.variants is not None and (slices.variants == '').any():
    keep = slices.variants == ''
    sets['sources'] = Scored(labels[keep], probs[keep], groups[keep])
  if slices.patients is not None:
    patients = slices.patients
    if 'sources' in sets:
      patients = patients[slices.variants == '']
    of = sets.get('sources', sets['all'])
    pooled = pooling.pool(of.labels, of.probs, patients, how)
    if len(pooled.labels):
      first = of.groups[pooled.first]
      sets['patients'] = Scored(
        pooled.labels, pooled.probs, first, how, pooled.mixed
      )
  return sets

"""Classification metrics on numpy arrays: one table, METRICS.

Every metric is a function of rows and of how often each group of rows counts,
so that one definition gives the value of a table and those of its resamples.

Letters: n rows, k classes, g groups, r resamples. Labels are int in [0, k),
probabilities (n, k) sum to one. A metric without a value (of a class without
rows) is nan.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from micdiffrep_jax.scores import calibration

_CELLS = 2**23  # elements of the largest temporary, so memory stays bounded
_EPS = float(np.finfo(np.float64).eps)


@dataclasses.dataclass(frozen=True)
class Rows:
  """Rows to score, and how often each of r resamples counts their groups.

  labels (n,) int; probs (n, k); group (n,) numbers of the rows' groups, in
  [0, g); weights (r, g).
  """

  labels: np.ndarray
  probs: np.ndarray
  group: np.ndarray
  weights: np.ndarray

  @functools.cached_property
  def confusion(self) -> np.ndarray:
    """Counts (r, k, k) of true against most probable class."""
    k = self.probs.shape[1]
    cell = self.labels * k + self.probs.argmax(1)
    return self.sums(np.ones(len(cell)), cell, k * k).reshape(-1, k, k)

  @property
  def total(self) -> np.ndarray:
    """Rows in each resample (r,)."""
    return self.confusion.sum((1, 2))

  @property
  def true(self) -> np.ndarray:
    """Rows of each class (r, k)."""
    return self.confusion.sum(2)

  @property
  def said(self) -> np.ndarray:
    """Rows that each class is said of (r, k)."""
    return self.confusion.sum(1)

  @property
  def hits(self) -> np.ndarray:
    """Rows of each class that it is said of (r, k)."""
    return np.diagonal(self.confusion, axis1=1, axis2=2)

  @property
  def rejected(self) -> np.ndarray:
    """Rows of other classes that a class is not said of (r, k)."""
    return self.total[:, None] - self.true - self.said + self.hits

  @functools.cached_property
  def rankings(self) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision (r, k) of each class against the rest."""
    r, k = len(self.weights), self.probs.shape[1]
    auroc, precision = np.full((2, r, k), np.nan)
    block = max(1, _CELLS // len(self.labels))
    for start in range(0, r, block):
      part = slice(start, start + block)
      weights = self.weights[part][:, self.group]
      for j in range(k):
        auroc[part, j], precision[part, j] = ranking_metrics(
          self.labels == j, self.probs[:, j], weights
        )
    return auroc, precision

  def sums(
    self, values: np.ndarray, cell: np.ndarray | int = 0, cells: int = 1
  ) -> np.ndarray:
    """Sums of values (n,) in each resample, apart by cell (n,): (r, cells)."""
    g = self.weights.shape[1]
    by_group = np.bincount(self.group * cells + cell, values, g * cells)
    return self.weights @ by_group.reshape(g, cells)

  def mean(self, values: np.ndarray) -> np.ndarray:
    """Means (r,) of values (n,)."""
    return self.sums(values)[:, 0] / self.total


def once(labels: np.ndarray, probs: np.ndarray) -> Rows:
  """Every row counted once, so that each metric has one value: r is 1."""
  group = np.zeros(len(labels), np.int64)
  return Rows(labels, probs, group, np.ones((1, 1)))


def nanmean(x: np.ndarray) -> np.ndarray:
  """Mean over the last axis of what is not nan; nan where nothing is."""
  good = ~np.isnan(x)
  with np.errstate(invalid='ignore'):
    return np.where(good, x, 0).sum(-1) / good.sum(-1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  """part / whole, nan where the whole is nothing."""
  with np.errstate(invalid='ignore', divide='ignore'):
    return part / whole


def _sensitivity(rows: Rows) -> np.ndarray:
  return _ratio(rows.hits, rows.true)


def _f1(rows: Rows) -> np.ndarray:
  return _ratio(2 * rows.hits, rows.true + rows.said)


def _brier(rows: Rows) -> np.ndarray:
  """Mean of the multiclass sum of squares."""
  truth = rows.labels[:, None] == np.arange(rows.probs.shape[1])
  return rows.mean(np.square(rows.probs - truth).sum(1))


def _nll(rows: Rows) -> np.ndarray:
  """-log p(label), clipped as scikit-learn does (float64 eps)."""
  p = rows.probs[np.arange(len(rows.labels)), rows.labels]
  return rows.mean(-np.log(np.clip(p, _EPS, 1.0)))


def _ece(rows: Rows) -> np.ndarray:
  """Count-weighted |confidence - accuracy| over bins of confidence."""
  right = (rows.probs.argmax(1) == rows.labels).astype(np.float64)
  bins = calibration.confidence_bin(rows.probs)
  gap = rows.sums(rows.probs.max(1) - right, bins, calibration.ECE_BINS)
  return np.abs(gap).sum(1) / rows.total


class Metric(NamedTuple):
  """A metric: its name on a page, its function, and how its values are read.

  of: rows -> (r,), or (r, k) where it is per class. A loss is better when it is
  lower, and shown as it is; the others are shown in percent.
  """

  title: str
  of: Callable[[Rows], np.ndarray]
  per_class: bool = False
  loss: bool = False
  bounds: tuple[float, float] = (0.0, 1.0)


# Balanced accuracy runs over classes with rows and macro F1 over classes with
# rows or predictions, as in scikit-learn. The order is that of the pages.
METRICS: dict[str, Metric] = {
  'accuracy': Metric('accuracy', lambda x: x.hits.sum(1) / x.total),
  'balanced_accuracy': Metric(
    'balanced accuracy', lambda x: nanmean(_sensitivity(x))
  ),
  'macro_f1': Metric('macro F1', lambda x: nanmean(_f1(x))),
  'macro_auroc': Metric('macro AUROC', lambda x: nanmean(x.rankings[0])),
  'macro_auprc': Metric('macro AUPRC', lambda x: nanmean(x.rankings[1])),
  'brier': Metric('Brier', _brier, loss=True, bounds=(0.0, 2.0)),
  'nll': Metric('NLL', _nll, loss=True, bounds=(0.0, -math.log(_EPS))),
  'ece': Metric('ECE', _ece, loss=True),
  'sensitivity': Metric('sensitivity', _sensitivity, per_class=True),
  'specificity': Metric(
    'specificity',
    lambda x: _ratio(x.rejected, x.total[:, None] - x.true),
    per_class=True,
  ),
  'ppv': Metric('PPV', lambda x: _ratio(x.hits, x.said), per_class=True),
  'npv': Metric(
    'NPV',
    lambda x: _ratio(x.rejected, x.total[:, None] - x.said),
    per_class=True,
  ),
  'auroc': Metric('AUROC', lambda x: x.rankings[0], per_class=True),
  'auprc': Metric('AUPRC', lambda x: x.rankings[1], per_class=True),
}
PER_CLASS = {name: m for name, m in METRICS.items() if m.per_class}
# One number each: what a head can be chosen by, and methods be compared by.
CRITERIA = {name: m for name, m in METRICS.items() if not m.per_class}
HEADLINE = ('accuracy', 'balanced_accuracy')  # what every study tells


def check(labels: np.ndarray, probs: np.ndarray) -> None:
  """Raises ValueError unless labels (n,) and probs (n, k) fit together."""
  if probs.ndim != 2 or labels.shape != probs.shape[:1]:
    raise ValueError(
      f'labels {labels.shape} and probabilities {probs.shape} given; they '
      'must be (n,) and (n, k).'
    )
  if not len(labels):
    raise ValueError('No rows to score.')
  if labels.min() < 0 or labels.max() >= probs.shape[1]:
    raise ValueError(
      f'Labels lie in [{labels.min()}, {labels.max()}], not in '
      f'[0, {probs.shape[1]}). Mask unlabelled and padded rows out.'
    )
  if not np.isfinite(probs).all():
    raise ValueError('Some probabilities are not finite.')


def value(name: str, labels: np.ndarray, probs: np.ndarray) -> float:
  """One of CRITERIA, of one set of rows."""
  return float(CRITERIA[name].of(once(labels, probs))[0])


def criterion(name: str, labels: np.ndarray, logits: np.ndarray) -> float:
  """What a head is chosen by: one of CRITERIA where larger is better.

  logits (n, k). A loss counts negatively. A head that diverged, or whose
  metric has no value, gets one less than the worst.
  """
  low, high = CRITERIA[name].bounds
  sign = -1.0 if CRITERIA[name].loss else 1.0
  if np.isfinite(logits).all():
    found = value(name, labels, calibration.softmax(logits))
    if not math.isnan(found):
      return sign * found
  return min(sign * low, sign * high) - 1.0


def ranking_metrics(
  positive: np.ndarray, score: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """AUROC and average precision for many weightings of the same rows.

  positive (n,) bool; score (n,); weights (r, n). Returns two (r,) arrays, nan
  where a weighting leaves no positive or no negative row. Ties share a
  threshold, as in scikit-learn.
  """
  order = np.argsort(-score, kind='stable')
  ordered = score[order]
  starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
  w = weights[:, order].astype(np.float64)
  p = np.add.reduceat(w * positive[order], starts, axis=1)
  q = np.add.reduceat(w, starts, axis=1) - p
  true_above, false_above = np.cumsum(p, 1), np.cumsum(q, 1)
  p_all, q_all = true_above[:, -1], false_above[:, -1]
  with np.errstate(invalid='ignore', divide='ignore'):
    precision = true_above / (true_above + false_above)
    ap = np.where(p > 0, precision * p, 0).sum(1) / p_all
    wins = (q_all[:, None] - false_above + q / 2) * p
    auroc = wins.sum(1) / (p_all * q_all)
  return auroc, np.where((p_all > 0) & (q_all > 0), ap, np.nan)


def without_class(
  labels: np.ndarray, probs: np.ndarray, drop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Leaves one class out: its rows go, the others are told apart given that.

  Probabilities are conditioned on the remaining classes (divided by their
  sum; uniform where it is zero). Returns labels, probs of the kept rows, in
  the numbering of the k - 1 classes left, and keep (n,) bool.
  """
  keep = labels != drop
  rest = np.delete(probs[keep], drop, axis=1)
  total = rest.sum(1, keepdims=True)
  uniform = np.full_like(rest, 1 / rest.shape[1])
  rest = np.where(total > 0, rest / np.where(total > 0, total, 1), uniform)
  return labels[keep] - (labels[keep] > drop), rest, keep


def kept_share(first: np.ndarray, second: np.ndarray) -> float:
  """The share of variance between images that two readings of them agree on.

  Features (n, d) of n images, read twice, under other views and other noise ->
  [-1, 1]: the covariance of both readings over their mean variance, summed over
  d; an intraclass correlation. 0 where nothing varies. After Li et al. 2026,
  arXiv 2606.09718, without its Fisher directions.
  """
  a, b = (np.asarray(x, np.float64) for x in (first, second))
  a, b = a - a.mean(axis=0), b - b.mean(axis=0)
  whole = (np.sum(a * a) + np.sum(b * b)) / 2
  return float(np.sum(a * b) / whole) if whole else 0.0


def effective_rank(features: np.ndarray) -> float:
  """How many directions a cloud of features fills.

  exp of the entropy of the normalised singular values of centred features
  (n, d) -> [1, min(n, d)]; 0 where all rows are equal. RankMe, Garrido et al.
  2023, eq. 1; ours: centred, so that a common offset does not count.
  """
  x = np.asarray(features, np.float64)
  x = x - x.mean(axis=0)
  values = np.linalg.svd(x, compute_uv=False)
  # Rounding of float32 features must not pass for a direction.
  values = values[values > 1e-6 * np.abs(features).max(initial=0.0)]
  if not values.size:
    return 0.0
  share = values / values.sum()
  return float(np.exp(-np.sum(share * np.log(share))))

"""Intervals and comparisons that resample groups, not images.

Images of one patient or one source picture are not independent, so a bootstrap
over images gives intervals several times too narrow. A resample draws as many
groups as there are, with replacement: it is a vector of group weights, and
every metric here is a vectorised function of such weights.

Letters: n rows, k classes, g groups, r resamples, m bins.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

_CELLS = 2**23  # elements of the largest temporary, so memory stays bounded


def nanmean(x: np.ndarray, axis: int | None = None) -> Any:
  """Mean over what is not nan; nan, without a warning, where nothing is."""
  good = ~np.isnan(x)
  count = good.sum(axis)
  with np.errstate(invalid='ignore'):
    mean = np.where(good, x, 0).sum(axis) / count
  return mean if np.ndim(mean) else float(mean)


def confidence_bin(probs: np.ndarray, bins: int) -> np.ndarray:
  """Bin (n,) of the highest probability: `bins` of equal width on [0, 1]."""
  index = np.ceil(probs.max(1) * bins).astype(np.int64) - 1
  return np.clip(index, 0, bins - 1)


def nll(labels: np.ndarray, probs: np.ndarray) -> np.ndarray:
  """-log p(label) per row, clipped as scikit-learn does (float64 eps)."""
  p = probs[np.arange(len(labels)), labels]
  return -np.log(np.clip(p, np.finfo(np.float64).eps, 1.0))


def count_metrics(confusion: np.ndarray) -> dict[str, np.ndarray]:
  """All metrics that counts decide, of confusion matrices (..., k, k).

  Rows are true classes. Returns accuracy, balanced_accuracy, macro_f1 of shape
  (...) and sensitivity, specificity, ppv, npv of shape (..., k). Balanced
  accuracy runs over classes with rows, macro F1 over classes with rows or
  predictions, as scikit-learn does; undefined ratios are nan.
  """
  c = np.asarray(confusion, np.float64)
  total = c.sum((-2, -1))[..., None]
  hit = np.diagonal(c, axis1=-2, axis2=-1)
  true, said = c.sum(-1), c.sum(-2)
  rest = total - true - said + hit
  with np.errstate(invalid='ignore', divide='ignore'):
    sensitivity = hit / true
    f1 = 2 * hit / (true + said)
    return {
      'accuracy': hit.sum(-1) / total[..., 0],
      'balanced_accuracy': np.asarray(nanmean(sensitivity, -1)),
      'macro_f1': np.asarray(nanmean(f1, -1)),
      'sensitivity': sensitivity,
      'specificity': rest / (total - true),
      'ppv': hit / said,
      'npv': rest / (total - said),
    }


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


def _group_sums(values: np.ndarray, index: np.ndarray, g: int) -> np.ndarray:
  """Sums the rows of values (n, ...) by group: (g, ...) float64."""
  sums = np.zeros((g, *values.shape[1:]))
  np.add.at(sums, index, values)
  return sums


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


def _ranking(
  labels: np.ndarray, probs: np.ndarray, weights: np.ndarray, index: np.ndarray
) -> dict[str, np.ndarray]:
  """AUROC and AUPRC (r, k) of one class against the rest."""
  r, k = len(weights), probs.shape[1]
  out = {name: np.full((r, k), np.nan) for name in ('auroc', 'auprc')}
  block = max(1, _CELLS // len(labels))
  for start in range(0, r, block):
    part = slice(start, start + block)
    rows = weights[part][:, index]
    for j in range(k):
      out['auroc'][part, j], out['auprc'][part, j] = ranking_metrics(
        labels == j, probs[:, j], rows
      )
  return out


def resample(
  labels: np.ndarray,
  probs: np.ndarray,
  groups: np.ndarray,
  resamples: int,
  seed: int,
  bins: int,
) -> dict[str, np.ndarray]:
  """Every metric of metrics.scores in every resample: (r,) or (r, k) each."""
  weights, index = group_weights(groups, resamples, seed)
  n, k = probs.shape
  g = weights.shape[1]
  said = probs.argmax(1)
  cells = np.zeros((g, k * k))
  np.add.at(cells, (index, labels * k + said), 1.0)
  out = count_metrics((weights @ cells).reshape(-1, k, k))

  truth = labels[:, None] == np.arange(k)
  gap = np.zeros((g, bins))
  right = (said == labels).astype(np.float64)
  np.add.at(gap, (index, confidence_bin(probs, bins)), probs.max(1) - right)
  rows = np.stack(
    [np.ones(n), np.square(probs - truth).sum(1), nll(labels, probs)], axis=1
  )
  total, brier, loss = (weights @ _group_sums(rows, index, g)).T
  out |= {'brier': brier / total, 'nll': loss / total}
  out['ece'] = np.abs(weights @ gap).sum(1) / total
  out |= _ranking(labels, probs, weights, index)
  for name in ('auroc', 'auprc'):
    out['macro_' + name] = nanmean(out[name], 1)
  return out


def interval(resampled: np.ndarray, level: float = 0.95) -> tuple[float, float]:
  """Percentile interval of resampled values (r,), those that are not nan."""
  good = resampled[~np.isnan(resampled)]
  if not len(good):
    return float('nan'), float('nan')
  low, high = np.quantile(good, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def _paired_metric(
  name: str, labels: np.ndarray, probs: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
  """(weights (r, g), index) -> (r,) values of one metric."""
  k = probs.shape[1]

  def counted(weights: np.ndarray, index: np.ndarray) -> np.ndarray:
    cells = np.zeros((weights.shape[1], k * k))
    np.add.at(cells, (index, labels * k + probs.argmax(1)), 1.0)
    return count_metrics((weights @ cells).reshape(-1, k, k))[name]

  def ranked(weights: np.ndarray, index: np.ndarray) -> np.ndarray:
    values = _ranking(labels, probs, weights, index)
    return nanmean(values[name.removeprefix('macro_')], 1)

  table: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    'accuracy': counted,
    'balanced_accuracy': counted,
    'macro_f1': counted,
    'macro_auroc': ranked,
  }
  if name not in table:
    raise ValueError(f'Unknown metric {name!r}; one of {sorted(table)}.')
  return table[name]


def compare(
  labels: np.ndarray,
  probs_a: np.ndarray,
  probs_b: np.ndarray,
  groups: np.ndarray,
  metric: str = 'accuracy',
  resamples: int = 2000,
  seed: int = 0,
) -> dict[str, Any]:
  """Paired comparison of two methods on the same rows: a minus b.

  Both are scored on the same resampled groups. The p-value is two-sided:
  twice the smaller share of resamples on one side of zero, which never is
  below 2 / (resamples + 1).
  """
  if probs_a.shape != probs_b.shape:
    raise ValueError(
      f'Paired comparison of {probs_a.shape} with {probs_b.shape}: both must '
      'be probabilities of the same rows and classes.'
    )
  weights, index = group_weights(groups, resamples, seed)
  once = np.ones((1, weights.shape[1]), np.float32)
  values = np.concatenate([once, weights])
  a = _paired_metric(metric, labels, probs_a)(values, index)
  b = _paired_metric(metric, labels, probs_b)(values, index)
  difference, spread = (a - b)[0], (a - b)[1:]
  spread = spread[~np.isnan(spread)]
  low, high = interval(spread)
  tail = min((spread <= 0).sum(), (spread >= 0).sum())
  p_value = min(1.0, 2 * (1 + int(tail)) / (len(spread) + 1))
  return {
    'metric': metric,
    'a': float(a[0]),
    'b': float(b[0]),
    'difference': float(difference),
    'low': low,
    'high': high,
    'p_value': p_value,
    'groups': weights.shape[1],
    'resamples': resamples,
  }

"""Classification metrics on numpy arrays, with group-bootstrap intervals.

Letters: n rows, k classes. Labels are int in [0, k), probabilities
(n, k) sum to one. A metric that has no value (a class without rows) is nan in
arrays and None in what `summarise` returns.
"""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np
from sklearn import metrics as skm

from micdiffrep_jax.scores import bootstrap, calibration

PER_CLASS = ('sensitivity', 'specificity', 'ppv', 'npv', 'auroc', 'auprc')


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


def confusion_matrix(labels: np.ndarray, probs: np.ndarray) -> np.ndarray:
  """Counts of true class (rows) against the most probable class (columns)."""
  return skm.confusion_matrix(
    labels, probs.argmax(1), labels=np.arange(probs.shape[1])
  )


def scores(labels: np.ndarray, probs: np.ndarray) -> dict[str, Any]:
  """All metrics of one set of rows, without intervals.

  Returns floats, and a (k,) array for each name of PER_CLASS. Macro means run
  over the classes that have a value. Brier is the multiclass sum of squares,
  in [0, 2].
  """
  check(labels, probs)
  k = probs.shape[1]
  values: dict[str, Any] = {
    name: value if value.ndim else float(value)
    for name, value in bootstrap.count_metrics(
      confusion_matrix(labels, probs)
    ).items()
  }
  truth = labels[:, None] == np.arange(k)
  both = truth.any(0) & ~truth.all(0)
  for name, metric in (
    ('auroc', skm.roc_auc_score),
    ('auprc', skm.average_precision_score),
  ):
    values[name] = np.array(
      [
        metric(truth[:, j], probs[:, j]) if both[j] else math.nan
        for j in range(k)
      ]
    )
    values['macro_' + name] = bootstrap.nanmean(values[name])
  values['brier'] = float(np.square(probs - truth).sum(1).mean())
  values['nll'] = float(bootstrap.nll(labels, probs).mean())
  values['ece'] = calibration.ece(labels, probs)
  return values


def _json(x: Any) -> Any:
  """Python numbers and lists; None for nan."""
  if isinstance(x, np.ndarray):
    return [_json(v) for v in x.tolist()]
  return None if isinstance(x, float) and math.isnan(x) else x


def _with_interval(value: float, resampled: np.ndarray) -> dict[str, Any]:
  low, high = bootstrap.interval(resampled)
  return {'value': _json(float(value)), 'low': _json(low), 'high': _json(high)}


def summarise_rows(
  labels: np.ndarray,
  probs: np.ndarray,
  groups: np.ndarray,
  classes: Sequence[str],
  resamples: int = 1000,
  seed: int = 0,
) -> dict[str, Any]:
  """Every metric of one set of rows with its 95 % group-bootstrap interval."""
  values = scores(labels, probs)
  spread = bootstrap.resample(
    labels, probs, groups, resamples, seed, calibration.ECE_BINS
  )
  curve = calibration.reliability(labels, probs)
  overall = {
    name: _with_interval(value, spread[name])
    for name, value in values.items()
    if name not in PER_CLASS
  }
  per_class = {
    label: {
      name: _with_interval(values[name][j], spread[name][:, j])
      for name in PER_CLASS
    }
    | {'n': int((labels == j).sum())}
    for j, label in enumerate(classes)
  }
  return {
    'n': len(labels),
    'groups': len(np.unique(groups)),
    **overall,
    'per_class': per_class,
    'classes': list(classes),
    'confusion': _json(confusion_matrix(labels, probs)),
    'reliability': {
      name: _json(value) for name, value in curve._asdict().items()
    },
    'ece_bins': f'{calibration.ECE_BINS} of equal width',
    'interval': f'95 %, percentile, {resamples} resamples of groups',
  }


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


def summarise(
  labels: np.ndarray,
  probs: np.ndarray,
  groups: np.ndarray,
  classes: Sequence[str],
  variants: np.ndarray | None = None,
  normal: str = '',
  mask: np.ndarray | None = None,
  resamples: int = 1000,
  seed: int = 0,
) -> dict[str, Any]:
  """What every results table is made of, as a dict that JSON can hold.

  labels (n,) int; probs (n, k); groups (n,) any type; variants (n,) str, ''
  for an untouched source; mask (n,) bool, False for padded rows. Keys: 'all';
  'sources' where variants are given; 'all_without_normal' and
  'sources_without_normal' where `normal` names a class (see without_class).
  """
  labels, probs = np.asarray(labels), np.asarray(probs, np.float64)
  groups = np.asarray(groups)
  if normal and normal not in classes:
    raise ValueError(
      f'Unknown normal class {normal!r}; one of {list(classes)}, or empty for '
      'none. Set it with --config.normal_class.'
    )
  keep = np.ones(len(labels), bool) if mask is None else np.asarray(mask, bool)
  subsets = {'all': keep}
  if variants is not None:
    subsets['sources'] = keep & (np.asarray(variants) == '')
  result: dict[str, Any] = {}
  for name, rows in subsets.items():
    if not rows.any():
      continue
    y, p, g = labels[rows], probs[rows], groups[rows]
    check(y, p)
    result[name] = summarise_rows(y, p, g, classes, resamples, seed)
    if normal and len(classes) > 2:
      drop = list(classes).index(normal)
      y, p, kept = without_class(y, p, drop)
      if len(y):
        left = [c for c in classes if c != normal]
        result[name + '_without_normal'] = summarise_rows(
          y, p, g[kept], left, resamples, seed
        )
  return result

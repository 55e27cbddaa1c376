"""What results say of predictions: every metric of every set of rows.

Letters: n rows, k classes, s seeds.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from micdiffrep_jax.run.records import Record
from micdiffrep_jax.scores import calibration, metrics
from micdiffrep_jax.scores.bootstrap import (
  Score,
  Slices,
  resampled_rows,
  score,
  sets_of,
)
from micdiffrep_jax.scores.metrics import METRICS, PER_CLASS

_NO_CURVE = calibration.Reliability(*[np.zeros(0)] * 4)


@dataclasses.dataclass(frozen=True)
class ClassSummary(Record):
  """What metrics say of one class: of its n rows against the rest."""

  REST = 'scores'
  n: int
  scores: Mapping[str, Score]


@dataclasses.dataclass(frozen=True)
class Summary(Record):
  """What every results table is made of: the metrics of one set of rows.

  Attributes:
    n: rows.
    groups: that they are of.
    scores: by the names of metrics.CRITERIA.
    per_class: by the names of the classes.
    classes: names, in the order of `confusion`.
    confusion: counts of true against most probable class.
    reliability: of the most probable class.
    ece_bins: of the expected calibration error, in words.
    interval: what the intervals are, in words.
    pooling: of patients' slices, where the rows are patients.
    of_several_labels: patients who were left out for that.
  """

  REST = 'scores'
  n: int
  groups: int
  scores: Mapping[str, Score]
  per_class: Mapping[str, ClassSummary]
  classes: tuple[str, ...]
  confusion: tuple[tuple[int, ...], ...]
  reliability: calibration.Reliability = _NO_CURVE  # of older results
  ece_bins: str = ''
  interval: str = ''
  pooling: str | None = None
  of_several_labels: int | None = None


class Spread(NamedTuple):
  """A metric of every seed; std is None of one."""

  each: Sequence[float]
  mean: float
  std: float | None


class RowSummary(NamedTuple):
  """What results say of one method: summaries by set of images, and more.

  chosen: what validation chose; temperature: of the calibration; uncalibrated:
  ECE and NLL before it, None where there is none; seeds: the headline metrics.
  """

  chosen: Mapping[str, Any] = MappingProxyType({})
  temperature: float = 1.0
  uncalibrated: Mapping[str, float] | None = None
  seeds: Mapping[str, Spread] = MappingProxyType({})
  validation: Mapping[str, Summary] = MappingProxyType({})
  test: Mapping[str, Summary] = MappingProxyType({})

  @property
  def no_variants(self) -> bool:
    """Whether every test image is an untouched source: nothing differs."""
    sources = self.test.get('sources')
    return sources is None or sources.n == self.test['all'].n


def summarise_rows(
  labels: np.ndarray,
  probs: np.ndarray,
  groups: np.ndarray,
  classes: Sequence[str],
  resamples: int = 1000,
  seed: int = 0,
) -> Summary:
  """Every metric of one set of rows with its 95 % group-bootstrap interval.

  Raises ValueError for labels and probabilities that do not fit together.
  """
  metrics.check(labels, probs)
  rows = resampled_rows(labels, probs, groups, resamples, seed)
  values = {name: metric.of(rows) for name, metric in METRICS.items()}
  return Summary(
    len(labels),
    rows.weights.shape[1],
    {name: score(values[name]) for name in metrics.CRITERIA},
    {
      label: ClassSummary(
        int((labels == j).sum()),
        {name: score(values[name][:, j]) for name in PER_CLASS},
      )
      for j, label in enumerate(classes)
    },
    tuple(classes),
    tuple(map(tuple, rows.confusion[0].astype(int).tolist())),
    calibration.reliability(labels, probs),
    f'{calibration.ECE_BINS} of equal width',
    f'95 %, percentile, {resamples} resamples of groups',
  )


def summarise(
  labels: np.ndarray,
  probs: np.ndarray,
  slices: Slices,
  classes: Sequence[str],
  normal: str = '',
  resamples: int = 1000,
  seed: int = 0,
  how: str = 'mean',
) -> dict[str, Summary]:
  """The summaries of all sets of rows.

  labels (n,) int; probs (n, k). Keys are those of sets_of, and each of them
  with '_without_normal' where `normal` names a class (see without_class).
  """
  if normal and normal not in classes:
    raise ValueError(
      f'Unknown normal class {normal!r}; one of {list(classes)}, or empty for '
      'none. Set it with --config.normal_class.'
    )
  labels, probs = np.asarray(labels), np.asarray(probs, np.float64)
  result: dict[str, Summary] = {}
  for name, one in sets_of(labels, probs, slices, how).items():
    y, p, g, pooled, mixed = one
    result[name] = dataclasses.replace(
      summarise_rows(y, p, g, classes, resamples, seed),
      pooling=pooled,
      of_several_labels=mixed,
    )
    if normal and len(classes) > 2:
      y, p, kept = metrics.without_class(y, p, list(classes).index(normal))
      if len(y):
        left = [c for c in classes if c != normal]
        result[name + '_without_normal'] = summarise_rows(
          y, p, g[kept], left, resamples, seed
        )
  return result

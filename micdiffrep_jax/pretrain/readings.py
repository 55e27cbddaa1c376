"""What the numbers of a running pretraining mean, in words and intervals."""

from typing import NamedTuple

import numpy as np

from micdiffrep_jax.run import log
from micdiffrep_jax.scores import bootstrap
from micdiffrep_jax.scores.metrics import METRICS

# Share of the effective rank with initial weights below which a warning is
# given. In results/experiments.md, runs that collapsed ended at 0.46 and 0.67
# of it. Useful ones ended at 1.0 and more, the quickstart with noise as its
# target at 0.89. One that ended at 1.0 was at 0.55 early: a warning may pass.
COLLAPSE = 0.75


class QuickProbe(NamedTuple):
  """Balanced accuracy in [0, 1] of a quick probe, with its 95 % interval.

  fitted, scored: how many training and validation images it saw; classes: how
  many classes there are.
  """

  accuracy: float
  low: float
  high: float
  fitted: int
  scored: int
  classes: int


class Reading(NamedTuple):
  """What is measured of the features of some weights; None where it cannot be.

  rank: effective rank of the output layer's averages; kept: the share of their
  variance that two views and two noises of an image keep.
  """

  rank: float | None
  probe: QuickProbe | None
  kept: float | None = None


def score(
  labels: np.ndarray,
  guesses: np.ndarray,
  groups: np.ndarray,
  classes: int,
  fitted: int,
) -> QuickProbe:
  """Scores guesses (n,) of labels (n,), both in [0, classes); groups (n,).

  The interval resamples groups. It is of these images, for one fit.
  """
  said = np.eye(classes)[guesses]
  rows = bootstrap.resampled_rows(labels, said, groups, 500, 0)
  scored = bootstrap.score(METRICS['balanced_accuracy'].of(rows))
  return QuickProbe(*scored, fitted, len(labels), classes)


def metrics(now: Reading, initial: Reading) -> dict[str, float]:
  """The numbers of metrics.jsonl; `initial` is of initial weights."""
  found = {}
  if now.rank is not None and initial.rank is not None:
    found['feature_rank'] = now.rank
    found['feature_rank_init'] = initial.rank
  if now.kept is not None:
    found['features_kept'] = now.kept
  if now.probe:
    found['probe_accuracy'] = now.probe.accuracy
  return found


def may_collapse(rank: float, initial: float) -> bool:
  """Whether an effective rank is low beside that of initial weights."""
  return rank < COLLAPSE * initial


def warn_of_collapse(now: Reading, initial: Reading) -> None:
  """Warns where the rank `may_collapse`; without one nothing is said."""
  if now.rank is None or initial.rank is None:
    return
  if may_collapse(now.rank, initial.rank):
    log.get_logger().warning('%s', warning(now.rank, initial.rank))


def warning(rank: float, initial: float) -> str:
  """What a user should look at where `may_collapse`."""
  return (
    f'Features may be collapsing: their effective rank is {rank:.1f}, '
    f'{initial:.1f} with initial weights. Early in training this can pass. '
    'Look at feature_rank and probe_accuracy in metrics.jsonl as it goes on: '
    'where the rank does not rise again and the probe falls, the features '
    'lose what they knew of the images.'
  )


def line(
  step: int, val_loss: float | None, now: Reading, initial: Reading
) -> str:
  """One line of the log: what was measured, on what, and what to expect."""
  parts = []
  if val_loss is not None:
    parts.append(f'validation loss {val_loss:.4f}')
  if now.probe and initial.probe:
    parts.append(
      f'quick probe {_percent(now.probe)}, {_percent(initial.probe)} with '
      f'initial weights, {100 / now.probe.classes:.0f} by chance (balanced '
      'accuracy in percent, 95 % interval; fitted on '
      f'{now.probe.fitted} training images, scored on {now.probe.scored} '
      'validation images)'
    )
  if now.rank is not None:
    parts.append(
      f'effective rank of the features {now.rank:.1f}, {initial.rank:.1f} with '
      'initial weights'
    )
  if now.kept is not None:
    parts.append(f'two views of an image share {100 * now.kept:.1f} % of them')
  return f'step {step}: ' + '; '.join(parts)


def _percent(probe: QuickProbe) -> str:
  return (
    f'{100 * probe.accuracy:.1f} '
    f'[{100 * probe.low:.1f}, {100 * probe.high:.1f}]'
  )

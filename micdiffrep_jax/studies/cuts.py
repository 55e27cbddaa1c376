"""What choices are made by: folds of groups, or the validation part.

Validation of a small set holds few patients, so two choices that differ by less
than its interval are not told apart there. Folds ask every patient of train and
validation. Test rows are in neither.

Letters: n rows, g groups.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.run import log
from micdiffrep_jax.run.checks import one_of
from micdiffrep_jax.studies.base import Parts

SELECT = ('auto', 'folds', 'validation')
VALIDATION = ('share', 'all')  # labels of it that choices may use
_FEW_GROUPS = 1000  # of train and validation; below it, auto means folds


class Cut(NamedTuple):
  """Positions of rows to fit on, and of rows to score."""

  train: np.ndarray
  val: np.ndarray


def cuts_of(
  ds: data.Dataset, parts: Parts, select: str, folds: int, seed: int
) -> list[Cut]:
  """What choices are made by: folds of train and validation, or validation.

  'auto' takes folds where train and validation hold few groups. Test rows are
  in no cut. Raises ValueError for another name.
  """
  one_of(SELECT, select, 'choice', '--config.select')
  seen = np.concatenate([parts.train, parts.val])
  groups = data.groups(ds)[parts.rows[seen]]
  if select == 'auto':
    few = len(np.unique(groups)) < _FEW_GROUPS
    select = 'folds' if few else 'validation'
  if select == 'validation':
    return [Cut(parts.train, parts.val)]
  held_out = group_folds(parts.labels[seen], groups, folds, seed)
  return [Cut(np.delete(seen, at), seen[at]) for at in held_out]


def group_folds(
  labels: np.ndarray, groups: np.ndarray, folds: int, seed: int, least: int = 2
) -> list[np.ndarray]:
  """Positions (n,) of each fold: groups whole, classes in proportion.

  There are at most as many folds as a class has groups. Raises ValueError
  where that leaves fewer than `least`.
  """
  fewest = int(np.bincount(group_classes(labels, groups)[1]).min())
  if fewest < least:
    raise ValueError(
      f'A class has {fewest} group(s) in train and validation, too few for '
      f'{least} folds of groups. Choose on validation with '
      '--config.select=validation, or add patients.'
    )
  if fewest < folds:
    log.get_logger().warning(
      '%d folds instead of %d: a class has no more groups.', fewest, folds
    )
  cutter = StratifiedGroupKFold(
    min(folds, fewest), shuffle=True, random_state=seed
  )
  return [test for _, test in cutter.split(labels, labels, groups)]


def group_classes(
  labels: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Group numbers (g,) and the class that most rows of each have (g,)."""
  numbers, index = np.unique(groups, return_inverse=True)
  counts = np.zeros((len(numbers), int(labels.max()) + 1), np.int64)
  np.add.at(counts, (index, labels), 1)
  return numbers, counts.argmax(1)


def subsets(
  labels: np.ndarray,
  groups: np.ndarray,
  fractions: Sequence[float],
  seed: int,
) -> list[np.ndarray]:
  """Positions of the rows of each share of the groups, one draw.

  labels (n,) int >= 0, groups (n,). Groups are drawn within each class, at
  least one, and whole; a smaller share lies within every larger one.
  """
  bad = [f for f in fractions if not 0 < f <= 1]
  if bad:
    raise ValueError(
      f'Shares {bad} are outside (0, 1]. Set them with --config.fractions.'
    )
  numbers, of_class = group_classes(labels, groups)
  rng = np.random.default_rng(seed)
  order = [rng.permutation(numbers[of_class == c]) for c in np.unique(of_class)]
  found = []
  for fraction in fractions:
    kept = np.concatenate(
      [o[: max(1, round(fraction * len(o)))] for o in order]
    )
    found.append(np.flatnonzero(np.isin(groups, kept)))
  return found


def draw_labels(
  parts: Parts,
  groups: np.ndarray,
  fractions: Sequence[float],
  seed: int,
  validation: str,
) -> list[Cut]:
  """Rows to fit on and to choose by for each share of the groups, one draw.

  groups: of all rows of the parts. validation: one of VALIDATION.
  """
  train, val = (
    [
      at[kept]
      for kept in subsets(parts.labels[at], groups[at], fractions, seed)
    ]
    for at in (parts.train, parts.val)
  )
  if validation == 'all':
    val = [parts.val] * len(train)
  return [Cut(*both) for both in zip(train, val, strict=True)]


def in_words(cuts: Sequence[Cut]) -> str:
  """'validation images', or how many folds of groups."""
  if len(cuts) == 1:
    return 'validation images'
  return f'{len(cuts)} folds of groups of train and validation'

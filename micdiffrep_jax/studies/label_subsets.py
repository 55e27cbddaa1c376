"""Parts of the training groups, for learning curves against labels.

Letters: n rows, g groups, k classes.
"""

from collections.abc import Sequence

import numpy as np


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

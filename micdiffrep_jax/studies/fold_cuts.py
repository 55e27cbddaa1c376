"""Folds of groups for cross-validation."""

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from micdiffrep_jax.studies.label_subsets import group_classes


def rotations(
  labels: np.ndarray, groups: np.ndarray, folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """(train, val, test) rows of each rotation; every row is in one test.

  labels (n,) int >= 0, groups (n,). Groups stay whole, classes in proportion as
  far as groups allow; the fold after the one predicted is the one to choose on.
  Raises ValueError where a class has fewer groups than there are folds.
  """
  fewest = np.bincount(group_classes(labels, groups)[1]).min()
  if fewest < folds:
    raise ValueError(
      f'A class has {fewest} groups in train and validation, too few for '
      f'{folds} folds. Lower --config.folds.'
    )
  cut = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
  parts = [test for _, test in cut.split(labels, labels, groups)]
  found = []
  for i, test in enumerate(parts):
    val = parts[(i + 1) % folds]
    held_out = np.concatenate([val, test])
    train = np.setdiff1d(np.arange(len(labels)), held_out)
    found.append((train, val, test))
  return found

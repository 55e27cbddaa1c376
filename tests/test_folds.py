"""Folds of groups."""

import numpy as np
import pytest

from micdiffrep_jax.studies import folds


def labelled(seed=0):
  """Groups of 1 to 6 rows in three classes of unequal size, shuffled."""
  rng = np.random.default_rng(seed)
  sizes = rng.integers(1, 7, 90)
  groups = np.repeat(500 - np.arange(90), sizes)
  labels = np.repeat(np.repeat([0, 1, 2], [50, 30, 10]), sizes)
  order = rng.permutation(len(groups))
  return labels[order], groups[order]


@pytest.mark.parametrize('number', [3, 5])
def test_each_row_is_predicted_once_and_no_group_is_cut(number):
  labels, groups = labelled()
  cuts = folds.rotations(labels, groups, number, 0)
  tests = np.concatenate([test for *_, test in cuts])
  assert sorted(tests) == list(range(len(labels)))
  for train, val, test in cuts:
    together = np.concatenate([train, val, test])
    assert sorted(together) == list(range(len(labels)))
    for a, b in ((train, val), (train, test), (val, test)):
      assert not set(groups[a]) & set(groups[b])
    assert set(labels[train]) == set(labels[test]) == {0, 1, 2}
  # What one rotation chooses on, the next predicts.
  assert (cuts[0][1] == cuts[1][2]).all()
  again = folds.rotations(labels, groups, number, 0)
  other = folds.rotations(labels, groups, number, 1)
  assert all((a[2] == b[2]).all() for a, b in zip(cuts, again))
  assert any(len(a[2]) != len(b[2]) or (a[2] != b[2]).any()
             for a, b in zip(cuts, other))  # fmt: skip


def test_a_class_of_too_few_groups_is_refused():
  labels, groups = labelled()
  with pytest.raises(ValueError, match=r'10 groups.*--config\.folds'):
    folds.rotations(labels, groups, 11, 0)

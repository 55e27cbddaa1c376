"""Folds of groups."""

import numpy as np
import pytest

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import prepare
from micdiffrep_jax.studies import base, cuts, folds


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
  found = folds.rotations(labels, groups, number, 0)
  tests = np.concatenate([test for *_, test in found])
  assert sorted(tests) == list(range(len(labels)))
  for train, val, test in found:
    together = np.concatenate([train, val, test])
    assert sorted(together) == list(range(len(labels)))
    for a, b in ((train, val), (train, test), (val, test)):
      assert not set(groups[a]) & set(groups[b])
    assert set(labels[train]) == set(labels[test]) == {0, 1, 2}
  # What one rotation chooses on, the next predicts.
  assert (found[0][1] == found[1][2]).all()
  again = folds.rotations(labels, groups, number, 0)
  other = folds.rotations(labels, groups, number, 1)
  assert all((a[2] == b[2]).all() for a, b in zip(found, again))
  assert any(len(a[2]) != len(b[2]) or (a[2] != b[2]).any()
             for a, b in zip(found, other))  # fmt: skip


def test_folds_are_no_more_than_a_class_has_groups(caplog):
  labels, groups = labelled()
  cut = folds.rotations(labels, groups, 11, 0)
  assert len(cut) == 10
  assert '10 folds instead of 11' in caplog.text


@pytest.mark.parametrize('few', [3, 4, 5])
def test_few_patients_of_a_class_are_enough(few):
  groups = np.repeat(np.arange(4 * few), 5)
  cut = folds.rotations(groups // few, groups, 5, 0)
  assert len(cut) == few
  for train, val, test in cut:
    assert set(groups[train]).isdisjoint(groups[np.r_[val, test]])


def test_a_class_of_two_groups_is_refused():
  groups = np.repeat(np.arange(4), 5)
  with pytest.raises(ValueError, match=r'2 group.*3 folds'):
    folds.rotations(groups // 2, groups, 5, 0)


@pytest.mark.parametrize(
  ('select', 'number'), [('auto', 3), ('folds', 3), ('validation', 1)]
)
def test_choices_are_made_on_every_patient_but_those_of_test(select, number):
  ds = data.open_dataset(prepare.resolve('phantom:size_px=16,patients=60'))
  parts = base.labelled_parts(ds, 'patient')
  found = cuts.cuts_of(ds, parts, select, 3, 0)
  assert len(found) == number
  groups = data.groups(ds)[parts.rows]
  scored = np.concatenate([cut.val for cut in found])
  assert not set(scored) & set(parts.test)
  if number > 1:
    assert sorted(scored) == sorted([*parts.train, *parts.val])
  for cut in found:
    assert set(groups[cut.train]).isdisjoint(groups[cut.val])
    assert not set(cut.train) & set(parts.test)


def test_auto_takes_validation_where_groups_are_many(monkeypatch):
  ds = data.open_dataset(prepare.resolve('phantom:size_px=16,patients=60'))
  parts = base.labelled_parts(ds, 'patient')
  monkeypatch.setattr(cuts, '_FEW_GROUPS', 10)
  assert len(cuts.cuts_of(ds, parts, 'auto', 3, 0)) == 1

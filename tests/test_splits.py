import numpy as np
import pytest

from micdiffrep_jax.data import splits


@pytest.fixture
def table():
  """Three classes of 40, 25 and 15 sources with 3 variants; some joined."""
  units = np.repeat(np.arange(80), 3)
  labels = np.repeat(['a'] * 40 + ['b'] * 25 + ['c'] * 15, 3)
  groups = np.where(units < 78, units // 2, units)  # neighbours are joined
  return labels, units, groups


def cut(table, seed=0, **kwargs):
  return splits.make_splits(*table, np.ones(240, bool), seed=seed, **kwargs)


def test_parts_cover_each_row_once(table):
  made = cut(table)
  assert set(made) == {'paper', 'grouped', 'leaky'}
  for part in made.values():
    assert set(part) == {'train', 'val', 'test'}


def test_paper_takes_a_fifth_of_the_sources_rounded_up(table):
  labels, units, _ = table
  part = cut(table)['paper']
  for label, n in (('a', 8), ('b', 5), ('c', 3)):
    held_out = np.unique(units[(part == 'test') & (labels == label)])
    assert len(held_out) == n
  odd = cut(table, test_share=0.21)['paper']
  assert len(np.unique(units[(odd == 'test') & (labels == 'c')])) == 4


def test_val_is_a_share_of_the_rest(table):
  labels, units, _ = table
  part = cut(table, val_share=0.25)['paper']
  assert len(np.unique(units[(part == 'val') & (labels == 'a')])) == 8


def test_no_unit_and_no_group_is_torn(table):
  _labels, units, groups = table
  for seed in range(5):
    made = cut(table, seed)
    for name, key in (('paper', units), ('grouped', groups)):
      for k in np.unique(key):
        assert len(set(made[name][key == k])) == 1


def test_leaky_tears_sources_apart(table):
  _, units, _ = table
  part = cut(table)['leaky']
  assert sum(len(set(part[units == u])) > 1 for u in range(80)) > 20


def test_grouped_keeps_the_proportions_of_classes(table):
  labels, _, _ = table
  part = cut(table)['grouped']
  for label in 'abc':
    share = (part[labels == label] == 'test').mean()
    assert 0.1 < share < 0.31


def test_seed_decides(table):
  one, same, other = cut(table, 1), cut(table, 1), cut(table, 2)
  for name in one:
    np.testing.assert_array_equal(one[name], same[name])
    assert (one[name] != other[name]).any()


def test_unusable_rows_are_excluded_everywhere(table):
  usable = np.ones(240, bool)
  usable[:6] = False
  made = splits.make_splits(*table, usable)
  for part in made.values():
    np.testing.assert_array_equal(part == 'excluded', ~usable)


def test_disjointness_check_names_the_groups():
  part = np.array(['train', 'test', 'val', 'excluded'])
  splits.check_disjoint('grouped', part, np.array(['a', 'b', 'c', 'a']))
  with pytest.raises(ValueError, match='x: train and test'):
    splits.check_disjoint('grouped', part, np.array(['x', 'x', 'c', 'a']))


def test_class_of_too_few_groups_is_an_error():
  labels = np.array(['a'] * 9 + ['b'] * 6)
  groups = np.r_[np.arange(9), [20, 20, 20, 21, 21, 21]]
  with pytest.raises(ValueError, match="Class 'b' has 2 groups"):
    splits.make_splits(labels, groups, groups, np.ones(15, bool))


def test_empty_part_is_an_error():
  part = np.array(['train', 'val', 'test', 'test', 'val'])
  splits.check_parts('paper', part, np.array(['a'] * 5))
  with pytest.raises(ValueError, match="class 'b' without a train image"):
    splits.check_parts('paper', part, np.array(['a', 'a', 'a', 'b', 'b']))


def test_share_outside_0_1_is_an_error(table):
  with pytest.raises(ValueError, match=r'test_share=1\.2'):
    cut(table, test_share=1.2)


def test_unlabelled_repeats_of_held_out_groups_are_excluded():
  part = np.array(['train', 'test', 'val', 'train', '', '', '', ''])
  group = np.array([0, 1, 2, 1, 4, 5, 6, 7])
  seen = np.array([[4, 0], [5, 2], [6, 3]])  # 3 shares the group of 1
  out = splits.exclude_seen(part, part == '', seen, group)
  assert out[4:].tolist() == ['train', 'excluded', 'excluded', 'train']
  assert out[:4].tolist() == part[:4].tolist()
  assert (part[4:] == '').all()  # the input is left alone


def test_a_class_of_few_groups_still_gets_its_share_of_each_part():
  labels = np.array(['a'] * 60 + ['b'] * 4)
  groups = np.arange(64)
  for seed in range(8):
    made = splits.make_splits(
      labels, groups, groups, np.ones(64, bool), seed=seed
    )
    assert set(made['grouped'][labels == 'b']) == {'train', 'val', 'test'}
    assert (made['grouped'][labels == 'a'] == 'train').sum() >= 30

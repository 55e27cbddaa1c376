import numpy as np
import pytest

from micdiffrep_jax.data import groups, splits


@pytest.fixture
def table():
  """Three classes of 40, 25 and 15 sources with 3 variants; some joined."""
  units = np.repeat(np.arange(80), 3)
  labels = np.repeat(['a'] * 40 + ['b'] * 25 + ['c'] * 15, 3)
  near = np.where(units < 78, units // 2, units)  # neighbours are joined
  group = np.where(units < 76, units // 4, units)  # and those of a patient
  return labels, splits.Units(units, near, group)


def cut(table, seed=0, **kwargs):
  return splits.make_splits(*table, np.ones(240, bool), seed=seed, **kwargs)


def test_parts_cover_each_row_once(table):
  made = cut(table)
  assert set(made) == {'patient', 'grouped', 'paper', 'leaky'}
  for part in made.values():
    assert set(part) == {'train', 'val', 'test'}


def test_paper_takes_a_fifth_of_the_sources_rounded_up(table):
  labels, (units, _, _) = table
  part = cut(table)['paper']
  for label, n in (('a', 8), ('b', 5), ('c', 3)):
    held_out = np.unique(units[(part == 'test') & (labels == label)])
    assert len(held_out) == n
  odd = cut(table, test_share=0.21)['paper']
  assert len(np.unique(units[(odd == 'test') & (labels == 'c')])) == 4


def test_val_is_a_share_of_the_rest(table):
  labels, (units, _, _) = table
  part = cut(table, val_share=0.25)['paper']
  assert len(np.unique(units[(part == 'val') & (labels == 'a')])) == 8


def test_no_unit_and_no_group_is_torn(table):
  _labels, (units, near, group) = table
  for seed in range(5):
    made = cut(table, seed)
    for name, key in (('paper', units), ('grouped', near), ('patient', group)):
      for k in np.unique(key):
        assert len(set(made[name][key == k])) == 1


def test_leaky_tears_sources_apart(table):
  _, (units, _, _) = table
  part = cut(table)['leaky']
  assert sum(len(set(part[units == u])) > 1 for u in range(80)) > 20


def test_grouped_keeps_the_proportions_of_classes(table):
  labels, _ = table
  for name in ('grouped', 'patient'):
    part = cut(table)[name]
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
  few = np.r_[np.arange(9), [20, 20, 20, 21, 21, 21]]
  with pytest.raises(ValueError, match="Class 'b' has 2 groups"):
    splits.make_splits(labels, splits.Units(*[few] * 3), np.ones(15, bool))


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
  single = np.arange(64)
  for seed in range(8):
    made = splits.make_splits(
      labels, splits.Units(*[single] * 3), np.ones(64, bool), seed=seed
    )
    assert set(made['grouped'][labels == 'b']) == {'train', 'val', 'test'}
    assert (made['grouped'][labels == 'a'] == 'train').sum() >= 30


@pytest.mark.parametrize('n', [3, 4, 5])
def test_few_patients_of_a_class_are_in_every_part(n):
  group = np.repeat(np.arange(4 * n), 6)
  labels = group // n
  near = np.arange(len(group)) // 2
  for seed in range(2):
    made = splits.make_splits(
      labels,
      splits.Units(near, near, group),
      np.ones(len(group), bool),
      seed=seed,
    )
    for label in range(4):
      assert set(made['patient'][labels == label]) == set(splits.PARTS)


def test_without_patients_the_honest_split_is_that_of_near_duplicates(table):
  labels, units = table
  made = splits.make_splits(
    labels, units._replace(group=units.near), np.ones(240, bool)
  )
  np.testing.assert_array_equal(made['patient'], made['grouped'])
  assert (cut(table)['patient'] != cut(table)['grouped']).any()


def test_what_units_are_called_changes_no_split(table):
  labels, units = table
  names = np.random.default_rng(0).permutation(1000).astype(str)
  renamed = splits.Units(*(names[x] for x in units))
  one = splits.make_splits(labels, units, np.ones(240, bool))
  other = splits.make_splits(labels, renamed, np.ones(240, bool))
  for name in splits.NAMES:
    np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize(
  'number', [10, pytest.param(200, marks=pytest.mark.slow)]
)
def test_no_patient_is_in_two_parts_of_random_manifests(number):
  rng = np.random.default_rng(0)
  for seed in range(number):
    patients = int(rng.integers(16, 30))
    of_source = np.repeat(
      np.arange(patients), rng.integers(1, 4, size=patients)
    )
    label_of = rng.permutation(patients) % 2
    source = np.repeat(np.arange(len(of_source)), 2)  # with a variant each
    patient = np.char.add('p', of_source[source].astype(str))
    patient[rng.random(patients)[of_source[source]] < 0.3] = ''
    pairs = rng.integers(0, len(source), (3, 2))  # near-duplicates
    near = groups.join(source, pairs)
    group = groups.join(near, groups.same_name(patient))
    labels = label_of[of_source][source]
    made = splits.make_splits(
      labels,
      splits.Units(source, near, group),
      np.ones(len(source), bool),
      seed=seed,
    )
    for name in np.unique(patient[patient != '']):
      assert len(set(made['patient'][patient == name])) == 1
    for i, j in pairs:
      assert made['patient'][i] == made['patient'][j]
    for k in np.unique(source):
      assert len(set(made['patient'][source == k])) == 1


def test_very_many_groups_are_cut_alike_but_faster(monkeypatch):
  rng = np.random.default_rng(0)
  lone, pairs = np.arange(900), np.repeat(np.arange(900, 950), 2)
  group = np.concatenate([lone, pairs])
  label = rng.choice(['a', 'b'], len(group), p=[0.8, 0.2])
  units = splits.Units(group, group, group)
  usable = np.ones(len(group), bool)
  monkeypatch.setattr(splits, '_MANY', 100)
  part = splits.make_splits(label, units, usable)['patient']
  splits.check_disjoint('patient', part, group)
  for name in 'ab':
    share = (part[label == name] == 'test').mean()
    assert abs(share - 0.2) < 0.03
  assert 5 <= len(np.unique(pairs[part[900:] == 'test'])) <= 15

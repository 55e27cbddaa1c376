"""A split that the source brings: recognised, told, and kept where asked."""

import numpy as np
import pytest
import trees

from micdiffrep_jax.data import dataset, layout, promises, splits
from micdiffrep_jax.run import log


def given_tree(root, parts, order='{part}/{name}', size=None):
  """PART/CLASS/i.png, `parts` = {folder: pictures of each class}."""
  seed = 0
  for part, n in parts.items():
    for name in ('sick', 'well'):
      for i in range(n):
        seed += 1
        path = root / order.format(part=part, name=name) / f'{i}.png'
        trees.write(path, trees.head(seed))


def prepare(tmp_path, **data):
  made = {'variant_regex': '', 'group_by': 'file', **data}
  return trees.prepared(tmp_path / 'in', tmp_path, **made)


@pytest.fixture
def warnings(monkeypatch):
  said = []
  logger = log.get_logger()
  monkeypatch.setattr(logger, 'warning', lambda m, *a: said.append(m % a))
  return said


@pytest.mark.parametrize(
  ('folder', 'part'),
  [
    ('Training', 'train'), ('train', 'train'), ('imagesTr', 'train'),
    ('Testing', 'test'), ('test_set', 'test'), ('imagesTs', 'test'),
    ('val', 'val'), ('valid', 'val'), ('Validation', 'val'), ('dev', 'val'),
    ('contest', ''), ('training_day', ''), ('sick', ''), ('testis', ''),
  ],
)  # fmt: skip
def test_folders_that_name_a_part(folder, part):
  assert layout.part_of(folder) == part


def test_one_folder_called_test_may_be_a_class():
  assert layout.given_parts(['control/1.png', 'test/2.png']) == ['', '']


def test_a_given_split_is_dissolved_with_a_warning(tmp_path, warnings):
  given_tree(tmp_path / 'in', {'Training': 6, 'Testing': 3})
  ds = prepare(tmp_path)
  assert ds.classes == ('sick', 'well')
  (told,) = [w for w in warnings if 'given_split' in w]
  assert 'test 6' in told
  assert 'train 12' in told
  assert '--config.data.given_split=keep' in told
  assert 'given' not in ds.manifest
  warnings.clear()
  prepare(tmp_path, out='quiet', given_split='ignore')
  assert not [w for w in warnings if 'given_split' in w]


@pytest.mark.parametrize('order', ['{part}/{name}', '{name}/{part}'])
def test_a_kept_split_is_that_of_the_folders(order, tmp_path):
  parts = {'train': 6, 'valid': 2, 'test': 3}
  given_tree(tmp_path / 'in', parts, order)
  ds = prepare(tmp_path, given_split='keep')
  assert ds.classes == ('sick', 'well')
  expected = {'train': 'train', 'valid': 'val', 'test': 'test'}
  for file, part in zip(ds.manifest['file'], ds.manifest['given']):
    (folder,) = set(file.split('/')) & set(expected)
    assert part == expected[folder]
  assert dataset.split_names(ds) == (*splits.NAMES, 'given')
  assert len(dataset.rows(ds, 'given', 'test')) == 6
  assert promises.check(ds, 'given') == []
  assert ds.info.counts['given']['val'] == {'sick': 2, 'well': 2}


def test_validation_that_is_not_given_is_drawn_from_training(tmp_path):
  given_tree(tmp_path / 'in', {'Training': 10, 'Testing': 4})
  ds = prepare(tmp_path, given_split='keep')
  test = np.array([f.startswith('Testing') for f in ds.manifest['file']])
  np.testing.assert_array_equal(ds.manifest['given'] == 'test', test)
  held = ds.manifest['given'] == 'val'
  assert {*ds.manifest['class'][held]} == {'sick', 'well'}
  assert 2 <= held.sum() <= 6


def test_validation_is_drawn_by_whole_groups():
  group = np.repeat([f'g{i}' for i in range(20)], 3)
  labels = np.repeat(['a', 'b'] * 10, 3)
  given = np.where(np.arange(60) < 45, 'train', 'test')
  part = splits.keep_given(
    labels, given, group, np.ones(60, bool), {'val': 0.2, 'test': 0.2}
  )
  np.testing.assert_array_equal(part[45:], 'test')
  assert {*part[:45]} == {'train', 'val'}
  for g in set(group[:45]):
    assert len(set(part[group == g])) == 1


def test_a_patient_in_two_given_parts_is_refused_until_accepted(tmp_path):
  for part, patients in (('train', range(5)), ('test', range(4, 7))):
    for k, name in enumerate(('sick', 'well')):
      for p in patients:
        seed = 100 * k + 10 * p + (part == 'test')
        path = tmp_path / 'in' / part / name / f'{name}{p}' / '0.png'
        trees.write(path, trees.head(seed))
  ds = prepare(
    tmp_path,
    group_by='',
    layout='split/class/patient',
    given_split='keep',
  )
  (reason,) = promises.check(ds, 'given')
  assert reason.startswith('2 patients lie in several parts')
  assert promises.check(ds, 'patient') == []
  with pytest.raises(ValueError, match='allow_failed_audit'):
    promises.refuse(ds, 'given')
  assert promises.refuse(ds, 'given', accepted=True) == [reason]


def test_a_copy_in_two_given_parts_is_refused(tmp_path):
  given_tree(tmp_path / 'in', {'train': 6, 'val': 2, 'test': 3})
  trees.write(tmp_path / 'in' / 'test' / 'sick' / '9.png', trees.head(1))
  trees.write(
    tmp_path / 'in' / 'test' / 'well' / '9.png', trees.head(7) * 0.9 + 3
  )  # the first of class well, darker
  found = ' '.join(
    promises.check(prepare(tmp_path, given_split='keep'), 'given')
  )
  assert '2 near-duplicate groups' in found
  assert '1 pictures of equal pixels' in found


@pytest.mark.parametrize(
  ('parts', 'change', 'message'),
  [
    ({'a': 6, 'b': 3}, {}, 'no split to keep'),
    ({'train': 6, 'test': 3, 'more': 2}, {}, '4 of 22 images lie in no part'),
    ({'train': 6, 'fold9': 3}, {'layout': 'split/class'}, "'fold9'.*name no"),
    ({'train': 6, 'test': 3}, {'given_split': 'hold'}, "choice 'hold'"),
  ],
)
def test_what_cannot_be_kept_is_an_error(parts, change, message, tmp_path):
  given_tree(tmp_path / 'in', parts)
  with pytest.raises(ValueError, match=message):
    prepare(tmp_path, **{'given_split': 'keep', **change})


def test_a_class_missing_from_a_given_part_is_named(tmp_path):
  given_tree(tmp_path / 'in', {'train': 6, 'test': 3})
  for path in (tmp_path / 'in' / 'test' / 'well').iterdir():
    path.unlink()
  (tmp_path / 'in' / 'test' / 'well').rmdir()
  with pytest.raises(ValueError, match="'well' without a test image"):
    prepare(tmp_path, given_split='keep')


def test_a_data_set_without_a_given_split_says_how_to_keep_one(tree, tmp_path):
  ds = trees.prepared(tree, tmp_path)
  for ask in (promises.check, lambda d, s: dataset.rows(d, s, 'test')):
    with pytest.raises(ValueError, match='given_split=keep'):
      ask(ds, 'given')

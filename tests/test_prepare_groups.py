"""Which pictures a preparation keeps together, drops or leaves unlabelled."""

import shutil

import numpy as np
import pytest
import trees
from trees import prepared as run

from micdiffrep_jax.data import dataset


def test_near_duplicate_sources_share_a_group_with_all_variants(tree, tmp_path):
  copy = np.clip(trees.head(4) * 0.8 + 4, 0, 255)  # S_5, darker
  trees.write(tree / 'sick' / 'S_50.png', copy)
  ds = run(tree, tmp_path)
  same = np.isin(ds.manifest['source'], ['S_5', 'S_50'])
  group = ds.manifest['group']
  assert len(set(group[same])) == 1
  assert len(set(group)) == 24
  assert len(set(ds.manifest['grouped'][same])) == 1
  assert ds.info.near_duplicates['largest_group'] == 2


def test_equal_pixels_are_joined_without_the_search(tree, tmp_path):
  shutil.copy(tree / 'sick' / 'S_5.png', tree / 'sick' / 'S_50.png')
  ds = run(tree, tmp_path, near_duplicates={'enabled': False})
  same = np.isin(ds.manifest['source'], ['S_5', 'S_50'])
  assert len(set(ds.manifest['group'][same])) == 1


def test_black_pictures_are_not_one_group(tree, tmp_path):
  for i in (90, 91):
    trees.write(tree / 'sick' / f'S_{i}.png', np.zeros((48, 48), np.uint8))
  ds = run(tree, tmp_path)
  black = np.isin(ds.manifest['source'], ['S_90', 'S_91'])
  assert len(set(ds.manifest['group'][black])) == 2


@pytest.fixture
def clash(tree):
  trees.write(tree / 'well' / 'W_60.png', trees.head(4))  # S_5 as well
  return tree


def test_one_picture_with_two_labels_is_an_error_with_the_pair(clash, tmp_path):
  with pytest.raises(
    ValueError, match=r'sick/S_5\.png \(sick\) and well/W_60\.png \(well\)'
  ):
    run(clash, tmp_path)
  assert not (tmp_path / 'out').exists()


def test_dropped_conflicts_are_in_no_part(clash, tmp_path):
  ds = run(clash, tmp_path, conflicts='drop')
  torn = np.isin(ds.manifest['source'], ['S_5', 'W_60'])
  assert torn.sum() == 3  # the variant of S_5 shows the picture too
  for name in ('paper', 'grouped', 'leaky'):
    np.testing.assert_array_equal(ds.manifest[name] == 'excluded', torn)


def test_kept_conflicts_stay_in_one_part(clash, tmp_path):
  ds = run(clash, tmp_path, conflicts='keep')
  torn = np.isin(ds.manifest['source'], ['S_5', 'W_60'])
  parts = set(ds.manifest['grouped'][torn])
  assert len(parts) == 1
  assert 'excluded' not in parts


def test_unlabelled_images_train_unless_they_repeat_a_held_out(tree, tmp_path):
  new = tmp_path / 'web'
  for i in range(12):
    darker = (trees.head(i) * 0.8).astype(np.uint8)  # the sick ones
    trees.write(new / f'{i + 1}.png', darker)
  mirrored = trees.head(1002)[:, ::-1]  # W_3; nothing like it when mirrored
  trees.write(tree / 'well' / 'W_3_HF_.png', mirrored)
  trees.write(new / 'variant.png', (mirrored * 0.8).astype(np.uint8))
  trees.write(new / 'unseen.png', trees.head(7777))
  ds = run(tree, tmp_path, unlabelled=(str(new),))
  assert len(ds.images) == 49 + 14
  unlabelled = dataset.labels(ds) == -1
  assert unlabelled.sum() == 14
  for name in ('paper', 'grouped', 'leaky'):
    part = dict(zip(ds.manifest['id'], ds.manifest[name], strict=True))
    held_out = {
      s
      for s, p in zip(ds.manifest['source'], ds.manifest[name], strict=True)
      if p in ('val', 'test')
    }
    for i in range(1, 13):
      expected = 'excluded' if f'S_{i}' in held_out else 'train'
      assert part[f'web:{i}.png'] == expected
    expected = 'excluded' if 'W_3' in held_out else 'train'
    assert part['web:variant.png'] == expected
    assert part['web:unseen.png'] == 'train'


def test_unlabelled_images_of_held_out_patients_do_not_train(tmp_path):
  labelled, web = tmp_path / 'in', tmp_path / 'web'
  for k, name in enumerate(('sick', 'well')):
    for p in range(8):
      seed = 100 * k + 10 * p
      trees.write(labelled / name / f'p{k}{p}_0.png', trees.head(seed))
      trees.write(web / f'p{k}{p}_1.png', trees.head(seed + 5))
  trees.write(web / 'other.png', trees.head(999))
  ds = run(
    labelled,
    tmp_path,
    variant_regex='',
    group_regex=r'^(p\d+)',
    unlabelled=(str(web),),
  )
  part = dict(zip(ds.manifest['id'], ds.manifest['patient'], strict=True))
  assert part['web:other.png'] == 'train'
  for name, held in part.items():
    if '/' in name:
      patient = name.split('/')[1][:3]
      expected = 'train' if held == 'train' else 'excluded'
      assert part[f'web:{patient}_1.png'] == expected
  assert 'excluded' in part.values()
  assert set(ds.manifest['grouped'][-17:]) == {'train'}


def test_a_flat_folder_is_unlabelled(tmp_path):
  for i in range(5):
    trees.write(tmp_path / 'flat' / f'{i}.png', trees.head(i))
  ds = run(tmp_path / 'flat', tmp_path, variant_regex='')
  assert ds.classes == ()
  assert (dataset.labels(ds) == -1).all()
  assert len(dataset.rows(ds, 'grouped', 'train')) == 5


def test_patient_folders_are_groups(tmp_path):
  root = tmp_path / 'pictures'
  for k, name in enumerate(('sick', 'well')):
    for p in range(8):
      for i in range(3):
        seed = 100 * k + 10 * p + i
        trees.write(root / name / f'p{k}{p}' / f'{i}.png', trees.head(seed))
  ds = run(root, tmp_path, variant_regex='', group_by='parent')
  assert ds.classes == ('sick', 'well')
  assert len(set(ds.manifest['group'])) == 16
  for patient in set(ds.manifest['patient_id']):
    rows = ds.manifest['patient_id'] == patient
    assert len(set(ds.manifest['patient'][rows])) == 1


def test_equal_unlabelled_images_are_found_without_the_search(tree, tmp_path):
  (tmp_path / 'web').mkdir()
  for i in range(1, 13):
    for v in ('', '_BR_'):
      shutil.copy(tree / 'sick' / f'S_{i}{v}.png', tmp_path / 'web')
  ds = run(
    tree,
    tmp_path,
    unlabelled=(str(tmp_path / 'web'),),
    near_duplicates={'enabled': False},
  )
  sick = ds.manifest['class'] == 'sick'
  web = ds.manifest['class'] == ''
  held_out = np.isin(ds.manifest['grouped'], ('val', 'test'))
  np.testing.assert_array_equal(
    ds.manifest['grouped'][web] == 'excluded', held_out[sick]
  )

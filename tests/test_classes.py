import unicodedata

import pytest

from micdiffrep_jax.data import classes

TREE = ['Normal/N_1.jpg', 'Tumor/glioma/G_1.jpg', 'Tumor/pituitary/P_1.jpg']


def test_class_is_the_last_folder_at_any_depth():
  assert classes.label_files(TREE) == ['Normal', 'glioma', 'pituitary']


def test_same_leaf_under_train_and_test_is_one_class():
  files = ['train/glioma/1.jpg', 'test/glioma/1.jpg', 'test/normal/1.jpg']
  assert classes.label_files(files) == ['glioma', 'glioma', 'normal']


def test_patient_folder_leaves_the_class_to_the_folder_above():
  files = ['sick/p1/a.png', 'well/p2/a.png']
  assert classes.label_files(files, parent_is_group=True) == ['sick', 'well']
  with pytest.raises(ValueError, match='above their group folder'):
    classes.label_files(['sick/a.png'], parent_is_group=True)


def test_explicit_class_is_found_above_other_folders():
  files = ['sick/p1/a.png', 'well/p2/a.png']
  assert classes.label_files(files, ('well', 'sick')) == ['sick', 'well']


@pytest.mark.parametrize(
  ('a', 'b'),
  [
    ('glioma', 'Gliomaa'),
    ('glioma', 'Glioma'),
    ('glioma', 'glioma '),
    ('no_tumor', 'notumor'),
    ('glioma', 'glimoa'),  # swapped letters
    ('pituitary_tumor', 'pituitary_tumour'),
  ],
)
def test_names_that_look_alike_are_an_error_naming_both(a, b):
  with pytest.raises(ValueError, match='look like one class') as e:
    classes.label_files([f'{a}/1.png', f'{b}/2.png', 'other/3.png'])
  assert repr(a) in str(e.value)
  assert repr(b) in str(e.value)


@pytest.mark.parametrize(
  ('a', 'b'),
  [
    ('grade_1', 'grade_2'),
    ('T1', 'T2'),
    ('male', 'female'),
    ('normal', 'abnormal'),
    ('left_lung', 'right_lung'),
  ],
)
def test_different_classes_pass(a, b):
  assert classes.label_files([f'{a}/1.png', f'{b}/2.png']) == [a, b]


def test_alike_names_pass_when_named_as_classes():
  files = ['hypotension/1.png', 'hypertension/1.png']
  with pytest.raises(ValueError, match='look like one class'):
    classes.label_files(files)
  named = ('hypotension', 'hypertension')
  assert classes.label_files(files, named) == list(named)


def test_unknown_class_names_the_nearest():
  with pytest.raises(ValueError, match="Did you mean 'glioma'"):
    classes.label_files(['Gliomaa/1.png'], ('glioma', 'normal'))


def test_class_without_files_is_an_error():
  with pytest.raises(ValueError, match="No file belongs to \\['normal'\\]"):
    classes.label_files(['glioma/1.png'], ('glioma', 'normal'))


def test_file_outside_class_folders_is_an_error():
  with pytest.raises(ValueError, match='no class folder'):
    classes.label_files(['glioma/1.png', 'stray.png'])


def test_accents_are_one_letter_in_class_names():
  files = [f'{unicodedata.normalize(f, "né")}/{f}.png' for f in ('NFC', 'NFD')]
  named = [unicodedata.normalize('NFC', 'né')] * 2
  assert classes.label_files(files) == named
  mapping = classes.parse_class_map((unicodedata.normalize('NFD', 'né=x'),))
  assert classes.label_files(files, ('x',), mapping) == ['x', 'x']


def test_a_map_of_nothing_is_said(caplog):
  mapping = classes.parse_class_map(('sik=ill', 'well=fit'))
  classes.warn_of_unused_map(mapping, ['sick', 'well'])
  assert "renames ['sik'], and nothing is called so" in caplog.text


def test_map_renames_before_the_check():
  mapping = classes.parse_class_map(('notumor=no_tumor',))
  files = ['no_tumor/1.png', 'notumor/2.png']
  assert classes.label_files(files, (), mapping) == ['no_tumor', 'no_tumor']
  with pytest.raises(ValueError, match='old=new'):
    classes.parse_class_map(('notumor',))

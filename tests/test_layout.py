"""What folders mean: layouts that are said, and those that are recognised."""

import pytest
import trees

from micdiffrep_jax.data import classes, identity, layout


def files_of(*levels, n=2):
  """Paths for all combinations of names of levels, n files in each."""
  paths = ['']
  for names in levels:
    paths = [f'{path}{name}/' for path in paths for name in names]
  return [f'{path}{i}.png' for path in paths for i in range(n)]


PATIENTS = [f'pat{i:02d}' for i in range(8)]


@pytest.mark.parametrize(
  ('text', 'file', 'label', 'patient'),
  [
    ('class/patient/series', 'sick/p1/T1/a.dcm', 'sick', 'p1'),
    ('class/patient/...', 'sick/p1/T1/x/a.dcm', 'sick', 'p1'),
    ('class/patient/...', 'sick/p1/a.dcm', 'sick', 'p1'),
    ('patient/class', 'p1/sick/a.png', 'sick', 'p1'),
    ('.../class/patient', 'site/x/sick/p1/a.png', 'sick', 'p1'),
    ('*/class/*/patient', 'site/sick/2020/p1/a.png', 'sick', 'p1'),
    ('/class/patient/*.dcm', 'sick/p1/a.dcm', 'sick', 'p1'),
    ('class/...', 'sick/p1/a.png', 'sick', ''),
  ],
)
def test_a_layout_names_class_and_patient(text, file, label, patient):
  assert classes.label_files([file], layout=text) == [label]
  assert layout.read([file], text, 'patient') == [patient]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('class/patients', "'patients' is no such word"),
    ('patient/series', "no level is the 'class'"),
    ('class/class', 'stands there twice'),
    ('.../class/...', 'stands there twice'),
  ],
)
def test_a_layout_that_cannot_be_read_is_an_error(text, message):
  with pytest.raises(ValueError, match=message):
    layout.parse(text)


def test_files_outside_a_layout_are_named():
  files = ['sick/p1/a.png', 'sick/b.png', 'sick/p1/T1/c.png']
  with pytest.raises(ValueError, match=r"2 of 3 files .*'sick/b\.png'"):
    layout.read(files, 'class/patient', 'class')


def refuse(files, **kwargs):
  with pytest.raises(ValueError, match='config.data.layout') as e:
    layout.check_two_classes(files, classes.label_files(files, **kwargs))
  return str(e.value)


def test_series_for_classes_are_recognised_with_the_layout_to_say():
  for series in (['T1_AX'], ['T1', 'T2', 'FLAIR']):
    files = files_of(['sick', 'well'], PATIENTS, series)
    told = refuse(files)
    assert "--config.data.layout='class/patient/series'" in told
    assert '8 at level 2 (pat00, pat01, pat02, ...)' in told


@pytest.mark.parametrize(
  'patients',
  [
    PATIENTS,
    [f'1.2.840.113619.2.5.17625{i}' for i in range(8)],
    [f'sub-{i}' for i in 'abcdefgh'],
    'Adams Baker Clark Davis Evans Frank Ghosh Hills Irwin Jones Klein'.split(),
  ],
)
def test_patients_for_classes_are_recognised(patients):
  half = len(patients) // 2
  files = files_of(['sick'], patients[:half]) + files_of(
    ['well'], patients[half:]
  )
  assert "layout='class/patient'" in refuse(files)


def test_classes_for_patients_are_recognised():
  files = files_of(PATIENTS, ['sick', 'well'])
  assert "layout='patient/class'" in refuse(files, parent_is_group=True)


def test_the_patients_of_patient_class_are_suggested():
  files = files_of(PATIENTS, ['sick', 'well'])
  with pytest.raises(ValueError, match="layout='patient/class'"):
    identity.assign(files, [''] * len(files), identity.Rules())


@pytest.mark.parametrize(
  'files',
  [
    files_of(['train', 'test'], [str(i) for i in range(10)]),  # digits
    files_of(['benign', 'malignant'], ['a', 'b', 'c'], n=9),
    files_of(['site1', 'site2'], ['sick', 'well']),
    files_of(['left', 'right'], [f'grade{i}' for i in range(5)]),
    ['Normal/1.png', 'Tumor/glioma/1.png', 'Tumor/pituitary/1.png'],
  ],
)
def test_other_trees_pass(files):
  labels = classes.label_files(files)
  layout.check_two_classes(files, labels)


def test_a_folder_below_each_class_is_passed_over_in_the_suggestion():
  files = files_of(['sick', 'well'], ['images'], n=9)
  assert "--config.data.layout='class/*'" in refuse(files)
  assert set(classes.label_files(files, layout='class/*')) == {'sick', 'well'}


def test_a_part_without_class_folders_is_named():
  files = ['train/sick/1.png', 'train/well/1.png', 'test/2.png']
  with pytest.raises(ValueError, match="Files in 'test' have no class folder"):
    classes.label_files(files)


def test_one_class_is_refused_with_what_was_found(tmp_path):
  for i in range(6):
    trees.write(tmp_path / 'in' / 'sick' / f'{i}.png', trees.head(i))
  with pytest.raises(ValueError, match=r"one class, 'sick'.*1 at level 1"):
    trees.prepared(tmp_path / 'in', tmp_path, group_by='file')


def test_a_layout_names_patients_after_the_pattern_and_before_the_header():
  files = ['sick/p1/a.png', 'well/p2/x9_b.png', 'well/p2/c.png']
  rules = identity.Rules(layout='class/patient', group_regex=r'(x\d)_')
  found = identity.assign(files, ['h1', 'h2', 'h3'], rules)
  assert found.patient == ['p1', 'x9', 'p2']
  assert found.named_by == ['layout', 'group_regex', 'layout']


@pytest.mark.parametrize('patients', [3, 4, 5])
def test_few_patients_a_class_are_enough_to_split(patients, tmp_path):
  for k, name in enumerate(('sick', 'well')):
    for p in range(patients):
      for i in range(2):
        seed = 1000 * k + 10 * p + i
        path = tmp_path / 'in' / name / f'{name}{p}' / f'{i}.png'
        trees.write(path, trees.head(seed))
  ds = trees.prepared(
    tmp_path / 'in', tmp_path, variant_regex='', layout='class/patient'
  )
  assert ds.info.patients['patients'] == 2 * patients
  assert ds.info.patients['named_by'] == {'layout': 4 * patients}
  for part in ds.info.counts['patient'].values():
    assert len(set(part.values())) == 1  # balanced
  assert min(ds.info.counts['patient']['test'].values()) >= 2


def test_too_few_patients_are_told_before_a_picture_is_read(tmp_path):
  for name in ('sick', 'well'):
    for p in range(2):
      for i in range(9):
        path = tmp_path / 'in' / name / f'{name}{p}' / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'no picture')  # reading would fail otherwise
  with pytest.raises(ValueError, match="Class 'sick' has 2 groups"):
    trees.prepared(
      tmp_path / 'in', tmp_path, variant_regex='', group_by='parent'
    )

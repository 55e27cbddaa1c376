import pytest
import trees

from micdiffrep_jax.data import bids

TABLE = (
  'participant_id\tage\tgroup\nsub-01\t40\tsick\nsub-02\t\twell\n03\t\tn/a\n'
)


def test_the_table_names_the_class_of_each_subject(tmp_path):
  (tmp_path / 'participants.tsv').write_text('\ufeff' + TABLE, 'utf-8')
  files = ['sub-02/anat/sub-02_T1w.png', 'x/sub-01_a.png', 'sub-03/a.png']
  found = bids.classes(str(tmp_path), files, 'group')
  assert found == ['well', 'sick', '']


@pytest.mark.parametrize(
  ('table', 'field', 'file', 'message'),
  [
    ('', 'group', 'sub-01/a.png', 'is not there'),
    (TABLE, 'dx', 'sub-01/a.png', r"has the columns \['participant_id', 'age'"),
    (TABLE, 'group', 'sub-09/a.png', r"no subject .*'sub-09/a\.png'"),
    (TABLE, 'group', 'a.png', r"no subject .*'a\.png'"),
    (TABLE + 'sub-01\t\twell\n', 'group', 'sub-01/a.png', 'both'),
  ],
)
def test_a_table_that_does_not_answer_is_an_error(
  table, field, file, message, tmp_path
):
  if table:
    (tmp_path / 'participants.tsv').write_text(table)
  with pytest.raises(ValueError, match=message):
    bids.classes(str(tmp_path), [file], field)


def test_subjects_get_classes_patients_and_splits(tmp_path):
  root, lines = tmp_path / 'in', ['participant_id\tgroup']
  for s in range(10):
    kind = ('sick', 'well')[s % 2]
    lines.append(f'sub-{s:02d}\t{kind}')
    for i in range(2):
      path = root / f'sub-{s:02d}' / 'anat' / f'sub-{s:02d}_run-{i}_T1w.png'
      trees.write(path, trees.head(100 * s + i))
  (root / 'participants.tsv').write_text('\n'.join(lines) + '\n')
  ds = trees.prepared(root, tmp_path, variant_regex='', class_field='group')
  assert ds.classes == ('sick', 'well')
  assert ds.info.patients['patients'] == 10
  assert ds.info.patients['named_by'] == {'BIDS': 20}
  for file, kind in zip(ds.manifest['file'], ds.manifest['class']):
    assert kind == ('sick', 'well')[int(file[4:6]) % 2]

"""Whose picture a file is, and of which source: what wins, what is refused."""

import unicodedata

import pytest

from micdiffrep_jax.data import identity
from micdiffrep_jax.data.identity import Rules

CC = ['Normal/N_1.jpg', 'Normal/N_1_BR_.jpg', 'Tumor/g/G_12_SP_.jpg']


def assign(files, known=None, **rules):
  return identity.assign(files, known or [''] * len(files), Rules(**rules))


@pytest.mark.parametrize('field', ['variant_regex', 'group_regex'])
def test_crystal_clean_names_source_and_variant_but_no_patient(field):
  rules = Rules.of({field: 'crystal_clean'})
  found = identity.assign(CC, ['', '', ''], rules)
  assert found.source == ['N_1', 'N_1', 'G_12']
  assert found.variant == ['', 'BR', 'SP']
  assert found.patient == ['', '', '']
  assert identity.counts(found) == {'unknown': 3}
  assert found.people() == ['unit:N_1', 'unit:N_1', 'unit:G_12']


def test_pattern_without_variant_keeps_files_as_sources():
  files = ['a/p1_s1.png', 'b/p1_s2.png', 'b/p2_s1.png']
  for pattern in (r'^p\d+', r'^(p\d+)', r'^(?P<group>p\d+)_'):
    found = assign(files, group_regex=pattern)
    assert found.patient == ['p1', 'p1', 'p2']
    assert found.source == files
    assert found.variant == ['', '', '']


def test_pattern_with_a_slash_sees_folders():
  files = ['a/1/x.png', 'a/2/x.png', 'b/1/x.png']
  found = assign(files, group_regex=r'^[ab]/(\d)/')
  assert found.patient == ['1', '2', '1']


def test_one_pattern_may_name_patient_source_and_variant():
  pattern = r'^(?P<source>(?P<group>p\d+)_s\d+)(?P<variant>.*)$'
  found = assign(
    ['p1_s1.png', 'p1_s1_HF.png', 'p1_s2.png'], group_regex=pattern
  )
  assert found.patient == ['p1', 'p1', 'p1']
  assert found.source == ['p1_s1', 'p1_s1', 'p1_s2']
  assert found.variant == ['', 'HF', '']


def test_endings_are_taken_off_whole():
  found = assign(['p1.nii.gz', 'p2.nii.gz'], group_regex=r'^(p\d+)$')
  assert found.patient == ['p1', 'p2']


def test_two_files_of_one_source_and_variant_are_an_error():
  with pytest.raises(ValueError, match='one picture of several files'):
    assign(['a/N_1.png', 'b/N_1.png'], variant_regex='crystal_clean')


def test_a_file_that_the_pattern_misses_is_named():
  with pytest.raises(
    ValueError, match=r'1 of 2 files.*odd\.png.*does not match'
  ):
    assign(['p1.png', 'odd.png'], group_regex=r'^(p\d+)')


@pytest.mark.parametrize(
  ('rules', 'message'),
  [
    ({'group_regex': '('}, 'no pattern'),
    ({'variant_regex': r'(\d+)'}, 'named groups source and variant'),
    ({'variant_regex': r'(?P<source>x)(?P<variant>.*)'}, 'does not match'),
    ({'group_by': 'patient'}, "group_by='patient'"),
    ({}, r'group_csv.*crystal_clean.*group_by'),
  ],
)
def test_rules_that_cannot_work_are_errors(rules, message):
  with pytest.raises(ValueError, match=message):
    assign(['a.png', 'b.png'], **rules)


def table(tmp_path, text, encoding='utf-8'):
  path = tmp_path / 'groups.csv'
  path.write_bytes(text.encode(encoding))
  return str(path)


def test_what_the_user_gives_beats_what_files_say(tmp_path):
  path = table(tmp_path, 'file,group\n1_a.png,x\n')
  files = ['1_a.png', '2_b.png', 'sub-07/c.png', 'q/sub-8_d.png', 'q/e.png']
  found = assign(
    files, ['h', 'h', '', '', 'h2'], group_csv=path, group_regex=r'^(\d)_'
  )
  assert found.patient == ['x', '2', 'sub-07', 'sub-8', 'h2']
  assert identity.counts(found) == {
    'BIDS': 2,
    'group_csv': 1,
    'group_regex': 1,
    'header': 1,
  }


def test_a_rule_that_parts_a_headers_patient_is_said(caplog):
  assign(['a.png', 'b.png'], ['h', 'h2'], group_regex=r'^(\w)')
  assert 'name one patient' not in caplog.text
  files = ['a.png', 'b.png', 'c.png']
  assign(files, ['h', 'h', 'h2'], group_regex=r'^(\w)')
  assert "name one patient, your rule names two: 'a' and 'b'" in caplog.text


def test_what_is_known_is_kept_and_the_rest_asked_for():
  files = [f'{i}.dcm' for i in range(4)]
  known = ['p1 ', 'p1', 'p2', '']
  with pytest.raises(ValueError, match=r"1 of 4 .*3\.dcm.*\{'header': 3\}"):
    assign(files, known)
  found = assign(files, known, group_by='file')
  assert found.patient == ['p1', 'p1', 'p2', '']


def test_one_id_for_all_files_is_none(caplog):
  files = [f'{i}.dcm' for i in range(4)]
  with pytest.raises(ValueError, match='Nothing says'):
    assign(files, ['anon'] * 4)
  assert 'All 4 files carry one patient id' in caplog.text


@pytest.mark.parametrize('sign', [',', ';', '\t'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_tables_are_read_as_programs_export_them(tmp_path, sign, encoding):
  text = 'File,Group\r\n.\\a\\1.png, x \r\n\r\n"b/2.png","y"\r\n'
  path = table(tmp_path, text.replace(',', sign), encoding)
  found = assign(['b/2.png', 'a/1.png'], group_csv=path)
  assert found.patient == ['y', 'x']


@pytest.mark.parametrize('form', ['NFC', 'NFD'])
def test_accents_are_one_letter_however_they_are_spelt(tmp_path, form):
  path = table(tmp_path, unicodedata.normalize(form, 'file,group\né.png,x\n'))
  files = [unicodedata.normalize(f, 'é.png') for f in ('NFC', 'NFD')]
  for file in files:
    assert assign([file], group_csv=path).patient == ['x']


def test_a_table_of_sources_reaches_their_variants(tmp_path):
  path = table(tmp_path, 'file,group\nG_12.jpg,p7\nNormal/N_1.jpg,p1\n')
  found = assign(CC, group_csv=path, variant_regex='crystal_clean')
  assert found.patient == ['p1', 'p1', 'p7']


@pytest.mark.parametrize('cell', ['', 'nan', 'N/A', 'unknown', '-'])
def test_a_cell_that_says_nothing_is_asked_for(tmp_path, cell):
  path = table(tmp_path, f'file,group\na.png,p\nb.png,{cell}\nc.png,{cell}\n')
  files = ['a.png', 'b.png', 'c.png']
  with pytest.raises(ValueError, match=r'2 of 3 files have no patient.*b\.png'):
    assign(files, group_csv=path)
  found = assign(files, group_csv=path, group_by='file')
  assert found.patient == ['p', '', '']


def test_rows_that_name_no_file_are_said(tmp_path, caplog):
  text = 'file,group\na.png,x\nB.png,y\nz.png,z\n'
  rules = Rules(group_csv=table(tmp_path, text))
  identity.assign(['a.png'], [''], rules, ['a.png', 'b.png'])
  assert '2 rows of' in caplog.text
  assert 'e.g. B.png' in caplog.text
  caplog.clear()
  identity.assign(['a.png'], [''], rules, ['a.png', 'B.png', 'z.png'])
  text = 'file,group\nG_1.jpg,x\nG_2_BR_.jpg,y\n'  # sources do
  rules = Rules(group_csv=table(tmp_path, text), variant_regex='crystal_clean')
  files = ['G_1.jpg', 'a/G_2.jpg']
  identity.assign(files, ['', ''], rules, files)
  assert not caplog.text


def test_a_table_that_is_not_there_is_named_with_its_flag(tmp_path):
  with pytest.raises(ValueError, match=r"group_csv='.*t\.csv': No such file"):
    assign(['a.png'], group_csv=str(tmp_path / 't.csv'))


def test_a_folder_of_the_unknown_is_no_patient():
  files = ['sick/unknown/1.png', 'sick/p1/1.png', 'sick/unknown/2.png']
  rules = {'layout': 'class/patient', 'group_by': 'file'}
  assert assign(files, **rules).patient == ['', 'p1', '']


def test_names_of_patients_are_found_without_a_rule_for_all():
  files = ['p1_2.png', 'other.png', 'sub-3/a.png']
  rules = Rules(group_regex=r'^(p\d+)_')
  found = identity.claims(files, ['h1 ', 'h2', ''], rules)
  assert found == [{'p1', 'h1'}, {'h2'}, {'sub-3'}]


def test_a_table_may_say_that_nobody_knows(tmp_path):
  text = 'file,group,patient_known\na.png,a,0\nb.png,p,1\n'
  found = assign(['a.png', 'b.png'], group_csv=table(tmp_path, text))
  assert found.patient == ['', 'p']
  assert found.people() == ['unit:a.png', 'patient:p']


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('name,patient\na,b\n', r"needs the columns.*line 1 has \['name'"),
    ('file,group\na.png,x\na.png,y\n', r"line 3 gives 'a\.png'.*'y'.*'x'"),
    ('file,group\nz.png,x\n', r'names none of the 2 files'),
    ('file,group\na.png,x\n', r'1 of 2 files have no patient.*b\.png'),
    ('file,group\na.png,x,y\n', r'3 cells in line 2, and 2 columns'),
    ('file,group,group\na.png,x,y\n', r'a column twice in line 1'),
  ],
)
def test_tables_that_do_not_fit_are_errors(tmp_path, text, message):
  with pytest.raises(ValueError, match=message):
    assign(['a.png', 'b.png'], group_csv=table(tmp_path, text))


def test_a_table_in_another_encoding_names_the_line(tmp_path):
  path = table(tmp_path, 'file,group\na.png,Müller\n', 'latin-1')
  with pytest.raises(ValueError, match='not UTF-8 in line 2'):
    assign(['a.png'], group_csv=path)


def test_variants_of_one_source_may_not_have_two_patients(tmp_path):
  path = table(tmp_path, 'file,group\nG_1.jpg,p\nG_1_BR_.jpg,q\n')
  with pytest.raises(ValueError, match=r"'G_1' the group 'q'.*'p'"):
    assign(['G_1.jpg'], group_csv=path, variant_regex='crystal_clean')


def test_parent_and_file():
  files = ['a/p1/1.png', 'a/p1/2.png']
  assert assign(files, group_by='parent').patient == ['a/p1'] * 2
  assert assign(files, group_by='file').patient == ['', '']


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('ANONYMOUS', True),
    ('Anonymized^', True),
    ('n/a', True),
    ('', False),
    ('anon_patient', True),
    ('nan', True),
    ('ANNA', False),
    ('ANON001', False),  # a number tells one from another
    ('0', False),
    ('P001', False),
  ],
)
def test_placeholders(name, expected):
  assert identity.is_placeholder(name) == expected

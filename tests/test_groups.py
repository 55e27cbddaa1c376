import numpy as np
import pytest

from micdiffrep_jax.data import groups

CC = ['Normal/N_1.jpg', 'Normal/N_1_BR_.jpg', 'Tumor/g/G_12_SP_.jpg']
NONE = ['', '', '']


def test_crystal_clean_names_source_and_variant():
  units = groups.assign(CC, NONE, group_regex='crystal_clean')
  assert units.unit == ['N_1', 'N_1', 'G_12']
  assert units.source == ['N_1', 'N_1', 'G_12']
  assert units.variant == ['', 'BR', 'SP']


def test_pattern_without_variant_keeps_files_as_sources():
  files = ['a/p1_s1.png', 'b/p1_s2.png', 'b/p2_s1.png']
  for pattern in (r'^p\d+', r'^(p\d+)', r'^(?P<group>p\d+)_'):
    units = groups.assign(files, NONE, group_regex=pattern)
    assert units.unit == ['p1', 'p1', 'p2']
    assert units.source == files
    assert units.variant == ['', '', '']


def test_pattern_with_a_slash_sees_folders():
  files = ['a/1/x.png', 'a/2/x.png', 'b/1/x.png']
  units = groups.assign(files, NONE, group_regex=r'^[ab]/(\d)/')
  assert units.unit == ['1', '2', '1']


def test_two_files_of_one_source_and_variant_are_an_error():
  with pytest.raises(ValueError, match='one picture of several files'):
    groups.assign(
      ['a/N_1.png', 'b/N_1.png'], ['', ''], group_regex='crystal_clean'
    )


def test_file_that_the_pattern_misses_is_named():
  with pytest.raises(ValueError, match=r'does not match 1 of 2.*odd\.png'):
    groups.assign(['p1.png', 'odd.png'], ['', ''], group_regex=r'^(p\d+)')


def test_broken_pattern_is_an_error():
  with pytest.raises(ValueError, match='no pattern'):
    groups.assign(['a.png'], [''], group_regex='(')


def test_table_wins_over_all_else(tmp_path):
  path = tmp_path / 'groups.csv'
  path.write_text('file,group\na/1.png,x\nb/2.png,y\n')
  files = ['b/2.png', 'a/1.png']
  units = groups.assign(files, ['p', 'q'], str(path), r'^(\d)', 'file')
  assert units.unit == ['y', 'x']
  with pytest.raises(ValueError, match='no group for 1 files'):
    groups.assign([*files, 'c.png'], NONE, str(path))


def test_table_with_wrong_columns_is_an_error(tmp_path):
  path = tmp_path / 'groups.csv'
  path.write_text('name,patient\na,b\n')
  with pytest.raises(ValueError, match='needs the columns'):
    groups.assign(['a'], [''], str(path))


def test_known_groups_win_over_patterns():
  units = groups.assign(['1.png', '2.png'], ['p', 'p'], group_regex=r'^(\d)')
  assert units.unit == ['p', 'p']


def test_parent_and_file():
  files = ['a/p1/1.png', 'a/p1/2.png']
  assert groups.assign(files, NONE[:2], group_by='parent').unit == ['a/p1'] * 2
  assert groups.assign(files, NONE[:2], group_by='file').unit == files


def test_without_any_choice_the_error_lists_the_ways():
  with pytest.raises(ValueError, match=r'group_csv.*crystal_clean.*group_by'):
    groups.assign(['a.png'], [''])
  with pytest.raises(ValueError, match="group_by='patient'"):
    groups.assign(['a.png'], [''], group_by='patient')


def test_join_unites_units_over_chains_of_pairs():
  units = ['a', 'a', 'b', 'c', 'd', 'e']
  joined = groups.join(units, np.array([[1, 2], [3, 2]]))
  # a, b, c hang together; d and e stand alone; numbers in order of appearance
  np.testing.assert_array_equal(joined, [0, 0, 0, 0, 1, 2])
  np.testing.assert_array_equal(
    groups.join(units, np.zeros((0, 2), int)), [0, 0, 1, 2, 3, 4]
  )

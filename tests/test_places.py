"""Sources beside each other, room on the disk, and what a preparation says."""

import errno
import json
import os
import shutil

import pytest
import trees

from micdiffrep_jax.data import dataset, prepare, sources


def config(tmp_path, source, **data):
  made = {
    'out': str(tmp_path / 'out'),
    'variant_regex': 'crystal_clean',
    **data,
  }
  return trees.config(source=str(source), **made).data


def test_two_sources_of_one_name_are_told_apart_by_their_paths(tree, tmp_path):
  for site in (0, 1):
    for i in range(3):
      path = tmp_path / f'site{site}' / 'images' / f'{i}.png'
      trees.write(path, trees.head(500 + 10 * site + i))
  unlabelled = tuple(str(tmp_path / f'site{s}' / 'images') for s in (0, 1))
  ds = trees.prepared(tree, tmp_path, unlabelled=unlabelled)
  extra = ds.manifest['id'][ds.manifest['class'] == ''].tolist()
  assert len(set(extra)) == 6
  assert extra[0] == 'site0/images:0.png'
  assert extra[-1] == 'site1/images:2.png'
  assert (dataset.labels(ds) == -1).sum() == 6


@pytest.mark.parametrize(
  ('unlabelled', 'message'),
  [
    ('pictures', 'given twice'),
    ('link', 'given twice'),
    ('pictures/sick', 'lie in one another'),
    ('', 'lie in one another'),
  ],
)
def test_a_source_in_another_is_refused_before_reading(
  unlabelled, message, tree, tmp_path
):
  os.symlink(tree, tmp_path / 'link')
  with pytest.raises(ValueError, match=message):
    prepare.prepare(
      config(tmp_path, tree, unlabelled=(str(tmp_path / unlabelled),))
    )


@pytest.mark.parametrize('out', ['pictures', 'pictures/new', ''])
def test_a_dataset_is_not_written_into_its_source(out, tree, tmp_path):
  with pytest.raises(ValueError, match='one folder or'):
    prepare.prepare(config(tmp_path, tree, out=str(tmp_path / out)))
  assert not (tree / 'new').exists()


@pytest.mark.parametrize('place', ['file', 'file/below', '/proc'])
def test_a_place_that_takes_no_folder_is_told_first(tree, tmp_path, place):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=r'config\.data\.out=.*cannot be made'):
    trees.prepared(tree / 'not listed', tmp_path / place, out='new')
  assert (tmp_path / 'file').is_file()


def test_no_room_is_told_before_a_picture_is_read(tree, tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=2 * 48 * 16 * 16 - 1)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
  monkeypatch.setattr(prepare, 'gather', None)  # nothing may be read
  with pytest.raises(ValueError, match='24,576 bytes .* needed') as e:
    prepare.prepare(config(tmp_path, tree))
  assert str(tmp_path) in str(e.value)
  assert sorted(os.listdir(tmp_path)) == ['pictures']


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(
  tree, tmp_path, monkeypatch
):
  def full(*args):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(prepare.store, 'write_images', full)
  with pytest.raises(ValueError, match=r'disk filled up .*24,576 bytes') as e:
    prepare.prepare(config(tmp_path, tree))
  assert '\n' not in str(e.value)
  assert os.listdir(tmp_path) == ['pictures']


def test_names_that_differ_in_case_only_are_told(tmp_path, monkeypatch):
  from micdiffrep_jax.run import log

  said = []
  monkeypatch.setattr(
    log.get_logger(), 'warning', lambda m, *a: said.append(m % a)
  )
  trees.write(tmp_path / 'sick' / 'a.png', trees.head(0))
  trees.write(tmp_path / 'sick' / 'A.png', trees.head(1))
  assert len(sources.open_folder(str(tmp_path)).files) == 2
  assert any('2 files' in x and 'sick/a.png' in x for x in said)


def test_refused_files_are_listed_in_the_workdir_when_it_stops(tree, tmp_path):
  (tree / 'sick' / 'S_2.png').write_bytes(b'')
  with pytest.raises(ValueError, match='max_bad_share'):
    trees.prepared(tree, tmp_path, max_bad_share=0.0)
  text = (tmp_path / 'work' / 'rejected.csv').read_text()
  assert text == 'file,reason\nsick/S_2.png,empty file\n'


def test_the_end_says_what_was_made_and_what_is_next(tree, tmp_path, capsys):
  (tree / 'notes.txt').write_text('x')
  trees.write(tree / 'sick' / 'S_98.png', trees.head(98)[:30])
  ds = trees.prepared(tree, tmp_path, group_regex=r'^S_(?P<group>\d+)')
  lines = capsys.readouterr().out.splitlines()
  facts = {}
  for line in lines:
    facts.setdefault(line[:13].strip(), line[15:])
  assert facts['images'].startswith('49 of 2 classes, 16 x 16 px')
  assert facts['patients'] == (
    '13 known (images by what names them: group_regex 25); '
    'unknown for 24 images'
  )
  assert facts['left out'] == '1 .txt files, e.g. notes.txt'
  assert facts['by rule'] == 'padded 1'
  (row,) = [x for x in lines if x.strip().startswith('sick')]
  counts = ds.info.counts['patient']
  assert [int(x) for x in row.split()[1:]] == [
    counts[p]['sick'] for p in ('train', 'val', 'test')
  ]
  assert (
    f'configs/audit.py --config.data.path={tmp_path / "out"}' in (facts['next'])
  )
  results = json.loads((tmp_path / 'work' / 'results.json').read_text())
  assert results['left_out'] == {'.txt files': 'notes.txt'}
  assert results['junk'] == {'.txt files': 1}
  assert results['next'][0].endswith('--workdir=runs/audit')

import csv
import json
import os
import shutil

import cv2
import numpy as np
import pytest
import trees
from trees import prepared as run

from micdiffrep_jax.data import dataset, decode, prepare, store


def test_images_are_those_of_the_files_in_natural_order(tree, tmp_path):
  ds = run(tree, tmp_path)
  files = ds.manifest['file'].tolist()
  assert files[:3] == ['sick/S_1.png', 'sick/S_1_BR_.png', 'sick/S_2.png']
  assert len(files) == len(ds.images) == 48
  for i in (0, 1, 17, 47):
    expected = decode.load(str(tree / files[i]), 16, 1)
    np.testing.assert_array_equal(ds.images[i], expected)
  np.testing.assert_array_equal(ds.manifest['index'], np.arange(48))


def test_manifest_says_class_source_variant_and_hash(tree, tmp_path):
  ds = run(tree, tmp_path)
  assert tuple(ds.manifest) == store.COLUMNS
  assert ds.classes == ('sick', 'well')
  row = {k: v[1] for k, v in ds.manifest.items()}
  assert (row['class'], row['source'], row['variant']) == ('sick', 'S_1', 'BR')
  assert (row['width'], row['height']) == (48, 48)
  assert row['sha256'] == store.pixel_hash(ds.images[1])
  np.testing.assert_array_equal(
    dataset.labels(ds), (ds.manifest['class'] == 'well').astype(int)
  )


def test_colour_and_size_are_settings(tree, tmp_path):
  ds = run(tree, tmp_path, size_px=24, channels=3)
  assert ds.images.shape == (48, 24, 24, 3)


def test_results_are_written_to_the_workdir(tree, tmp_path):
  run(tree, tmp_path)
  results = json.loads((tmp_path / 'work' / 'results.json').read_text())
  assert results['images'] == 48
  assert results['counts']['grouped']['train']['sick'] > 0


def test_junk_is_ignored_and_counted(tree, tmp_path):
  (tree / '.DS_Store').write_bytes(b'x')
  (tree / 'sick' / '._S_1.png').write_bytes(b'x')
  (tree / 'sick' / 'Thumbs.db').write_bytes(b'x')
  trees.write(tree / '.idea' / 'a.png', trees.head(0))
  trees.write(tree / '__MACOSX' / 'sick' / 'b.png', trees.head(0))
  ds = run(tree, tmp_path)
  assert len(ds.images) == 48
  assert ds.info.junk == {
    'hidden files': 2,
    'hidden or system folders': 2,
    '.db files': 1,
  }
  assert ds.info.left_out['.db files'] == 'sick/Thumbs.db'


def test_bad_files_are_listed_with_reasons_and_skipped(tree, tmp_path):
  (tree / 'sick' / 'S_2.png').write_bytes(b'')
  (tree / 'well' / 'W_3_BR_.png').write_text('<html>')
  ds = run(tree, tmp_path)
  assert len(ds.images) == 46
  with open(tmp_path / 'out' / 'rejected.csv') as f:
    found = {row['file']: row['reason'] for row in csv.DictReader(f)}
  assert found['sick/S_2.png'] == 'empty file'
  assert 'not an image' in found['well/W_3_BR_.png']
  assert len(found) == ds.info.rejected == 2


def test_too_many_bad_files_stop_and_leave_nothing(tree, tmp_path):
  (tree / 'sick' / 'S_2.png').write_bytes(b'')
  with pytest.raises(ValueError, match=r'1 of 48 .*0\.01.*\n  sick/S_2\.png'):
    run(tree, tmp_path, max_bad_share=0.01)
  assert not [n for n in os.listdir(tmp_path) if 'out' in n]


@pytest.mark.parametrize('named', [(), ('rare', 'sick', 'well')])
def test_a_class_of_which_no_file_can_be_read_is_an_error(
  tree, tmp_path, named
):
  (tree / 'rare').mkdir()
  for i in range(4):  # fewer than may be refused
    (tree / 'rare' / f'R_{i}.png').write_bytes(b'no picture')
  with pytest.raises(ValueError, match=r"classes \['rare'\].*R_0.png: not an"):
    run(tree, tmp_path, max_bad_share=0.5, classes=named)


def test_decoding_rules_are_counted(tree, tmp_path):
  trees.write(tree / 'sick' / 'S_99.png', trees.head(99).astype(np.uint16) * 9)
  trees.write(tree / 'sick' / 'S_98.png', trees.head(98)[:30])
  ds = run(tree, tmp_path)
  assert ds.info.rules == {'padded': 1, 'range_scaled': 1}


def test_same_preparation_is_returned_and_not_done_again(tree, tmp_path):
  first = run(tree, tmp_path)
  stamp = os.stat(tmp_path / 'out' / 'manifest.csv').st_mtime_ns
  again = run(tree, tmp_path)
  assert os.stat(tmp_path / 'out' / 'manifest.csv').st_mtime_ns == stamp
  assert again.fingerprint == first.fingerprint


def test_other_settings_need_leave_to_overwrite(tree, tmp_path):
  first = run(tree, tmp_path)
  with pytest.raises(ValueError, match='overwrite=True'):
    run(tree, tmp_path, size_px=24)
  second = run(tree, tmp_path, size_px=24, overwrite=True)
  assert second.images.shape[1] == 24
  assert second.fingerprint != first.fingerprint
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    'out', 'pictures', 'work'
  ]  # fmt: skip


def test_a_new_file_makes_another_preparation(tree, tmp_path):
  run(tree, tmp_path)
  trees.write(tree / 'sick' / 'S_77.png', trees.head(77))
  with pytest.raises(ValueError, match='holds something else'):
    run(tree, tmp_path)


def test_a_file_rewritten_in_its_size_makes_another_preparation(tree, tmp_path):
  trees.write(tree / 'sick' / 'S_77.bmp', trees.head(77))
  run(tree, tmp_path)
  trees.write(tree / 'sick' / 'S_77.bmp', trees.head(78))
  with pytest.raises(ValueError, match='holds something else'):
    run(tree, tmp_path)


def test_overwrite_never_replaces_what_is_no_dataset(tree, tmp_path):
  precious = tmp_path / 'home' / 'thesis.tex'
  precious.parent.mkdir()
  precious.write_text('x')
  with pytest.raises(ValueError, match='no prepared dataset'):
    run(tree, tmp_path, out='home', overwrite=True)
  assert precious.exists()


def test_fingerprint_knows_no_places(tree, tmp_path):
  first = run(tree, tmp_path)
  shutil.move(tree, tmp_path / 'elsewhere')
  second = run(tmp_path / 'elsewhere', tmp_path, out='out2')
  assert first.fingerprint == second.fingerprint
  third = run(tmp_path / 'elsewhere', tmp_path, out='out3', val_share=0.2)
  assert third.fingerprint != first.fingerprint


def test_class_of_two_sources_is_an_error_and_leaves_nothing(tmp_path):
  trees.class_tree(tmp_path / 'pictures', sources=2)
  with pytest.raises(ValueError, match="Class 'sick' has 2 groups"):
    run(tmp_path / 'pictures', tmp_path)
  assert not (tmp_path / 'out').exists()


def test_misspelt_folder_is_an_error(tree, tmp_path):
  (tree / 'well').rename(tree / 'Sick')
  with pytest.raises(ValueError, match='look like one class'):
    run(tree, tmp_path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'variant_regex': ''}, 'Nothing says which pictures belong together'),
    ({'out': ''}, r'config\.data\.out'),
    ({'source': ''}, 'Nothing to prepare'),
    ({'source': '/nowhere'}, 'not a folder'),
    ({'channels': 2}, 'channels=2'),
    ({'group_field': 'patient'}, 'group_field=.*tfds:'),
    ({'size_px': 4}, 'size_px=4'),
    ({'conflicts': 'ask'}, "conflicts='ask'"),
    ({'classes': ('sick,well',)}, 'one name with a comma'),
    ({'classes': ('sick', 'wel')}, "Did you mean 'wel'"),
    ({'test_share': 0.0}, 'test_share=0'),
  ],
)
def test_settings_that_cannot_work_are_errors(tree, tmp_path, change, message):
  data = {'source': str(tree), 'out': str(tmp_path / 'out')}
  data |= {'variant_regex': 'crystal_clean', **change}
  with pytest.raises(ValueError, match=message):
    prepare.prepare(trees.config(**data).data)


def test_link_that_leads_back_ends(tree, tmp_path):
  os.symlink(tree, tree / 'sick' / 'loop')
  assert len(run(tree, tmp_path).images) == 48


def test_large_jpeg_tree_gives_the_same_for_any_number_of_threads(
  tree, tmp_path
):
  for i in range(30):
    big = cv2.resize(trees.head(i + 500), (300, 260))
    trees.write(tree / 'sick' / f'S_{i + 100}.jpg', big)
  one = run(tree, tmp_path, workers=1)
  four = run(tree, tmp_path, out='four', workers=4)
  assert one.fingerprint == four.fingerprint

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
import trees

from micdiffrep_jax.data import dataset, prepare, store
from micdiffrep_jax.data.dataset import open_dataset


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  root = tmp_path_factory.mktemp('prepared')
  trees.class_tree(root / 'pictures')
  config = trees.config(
    source=str(root / 'pictures'),
    out=str(root / 'out'),
    variant_regex='crystal_clean',
  )
  prepare.prepare(config.data)
  return root / 'out'


@pytest.fixture
def folder(prepared, tmp_path):
  return shutil.copytree(prepared, tmp_path / 'copy')


def test_cached_images_equal_the_records(folder):
  cached, read = open_dataset(str(folder)), open_dataset(str(folder), False)
  assert isinstance(read.images, dataset.Records)
  rows = np.array([5, 0, 47, 5])
  np.testing.assert_array_equal(cached.images[rows], read.images[rows])
  assert read.images[rows].shape == (4, 16, 16, 1)
  np.testing.assert_array_equal(read.images[3], cached.images[3])
  np.testing.assert_array_equal(read.images[40:], cached.images[40:])
  assert len(read.images) == len(cached.images) == 48


def test_cache_above_the_limit_is_not_made(folder):
  ds = open_dataset(str(folder), cache_limit_gib=1e-9)
  assert isinstance(ds.images, dataset.Records)
  assert not (folder / dataset.CACHE).exists()


def test_cache_is_made_once_and_cannot_be_written(folder):
  ds = open_dataset(str(folder))
  made = os.stat(folder / dataset.CACHE).st_mtime_ns
  open_dataset(str(folder))
  assert os.stat(folder / dataset.CACHE).st_mtime_ns == made
  with pytest.raises(ValueError, match='read-only'):
    ds.images[0] = 0


def test_half_written_cache_is_made_again(folder):
  expected = np.array(open_dataset(str(folder)).images)
  with open(folder / dataset.CACHE, 'r+b') as f:
    f.truncate(1000)
  np.testing.assert_array_equal(open_dataset(str(folder)).images, expected)


def test_tfds_reads_the_records(folder):
  source = tfds.builder_from_directory(str(folder)).as_data_source('images')
  ds = open_dataset(str(folder))
  assert source[7]['id'].decode() == ds.manifest['id'][7]
  np.testing.assert_array_equal(source[7]['image'], ds.images[7])


def test_edited_manifest_is_an_error(folder):
  text = (folder / 'manifest.csv').read_text()
  (folder / 'manifest.csv').write_text(text.replace(',test,', ',train,', 1))
  with pytest.raises(ValueError, match=r"changed .*\['manifest.csv'\]"):
    open_dataset(str(folder))


def test_missing_shard_is_an_error(folder):
  shard = next(folder.glob('*.array_record-*'))
  shard.unlink()
  with pytest.raises(ValueError, match=f'changed .*{shard.name}'):
    open_dataset(str(folder))


def test_swapped_pixels_are_found_when_cached(folder, tmp_path):
  other = tmp_path / 'other'
  trees.class_tree(tmp_path / 'pictures')
  trees.write(tmp_path / 'pictures' / 'sick' / 'S_1.png', trees.head(999))
  config = trees.config(
    source=str(tmp_path / 'pictures'),
    out=str(other),
    variant_regex='crystal_clean',
  )
  prepare.prepare(config.data)
  shard = next(folder.glob('*.array_record-*'))
  foreign = next(other.glob('*.array_record-*'))
  open_dataset(str(folder))  # a cache made before does not hide the change
  data = foreign.read_bytes()
  if len(data) != shard.stat().st_size:
    pytest.skip('compressed to another size, which is found earlier')
  shard.write_bytes(data)
  with pytest.raises(ValueError, match=r'1 images .* not those'):
    open_dataset(str(folder))


def test_moved_folder_opens(folder, tmp_path):
  before = open_dataset(str(folder))
  shutil.move(folder, tmp_path / 'moved')
  after = open_dataset(str(tmp_path / 'moved'))
  assert after.fingerprint == before.fingerprint
  np.testing.assert_array_equal(after.images, before.images)


@pytest.mark.parametrize('spec', ['/nowhere', '.'])
def test_folder_without_a_dataset_is_an_error_that_says_how(spec, tmp_path):
  with pytest.raises(ValueError, match=r'configs/prepare\.py'):
    open_dataset(str(tmp_path) if spec == '.' else spec)


def test_rows_follow_the_split(folder):
  ds = open_dataset(str(folder))
  parts = [dataset.rows(ds, 'grouped', p) for p in ('train', 'val', 'test')]
  assert sorted(np.concatenate(parts)) == list(range(48))
  assert parts[0].dtype == np.int64
  assert (ds.manifest['grouped'][parts[2]] == 'test').all()


def test_unknown_split_and_part_are_errors(folder):
  ds = open_dataset(str(folder))
  with pytest.raises(ValueError, match="Did you mean 'grouped'"):
    dataset.rows(ds, 'group', 'train')
  with pytest.raises(ValueError, match="Unknown part 'dev'"):
    dataset.rows(ds, 'grouped', 'dev')


def test_labels_and_groups_number_the_manifest(folder):
  ds = open_dataset(str(folder))
  labels, groups = dataset.labels(ds), dataset.groups(ds)
  assert labels.dtype == groups.dtype == np.int32
  assert [ds.classes[k] for k in labels] == ds.manifest['class'].tolist()
  one = ds.manifest['group'][:, None] == ds.manifest['group']
  np.testing.assert_array_equal(groups[:, None] == groups, one)


def test_split_hash_is_that_of_ids_and_parts(folder):
  ds = open_dataset(str(folder))
  text = 'paper' + ''.join(
    f'\0{i}\0{p}'
    for i, p in zip(ds.manifest['id'], ds.manifest['paper'], strict=True)
  )
  expected = hashlib.sha256(text.encode()).hexdigest()
  assert dataset.split_hash(ds, 'paper') == expected
  assert dataset.split_hash(ds, 'grouped') != expected


def test_description_is_read_as_it_was_written(folder):
  written = json.loads((folder / 'dataset.json').read_text())
  assert json.loads(json.dumps(store.read_info(str(folder)).to_json())) == (
    written
  )
  assert list(written) == list(store.read_info(str(folder)).to_json())


def test_description_of_fewer_or_more_fields_is_read(folder):
  path = folder / 'dataset.json'
  record = json.loads(path.read_text())
  for name in ('near_duplicates', 'settings', 'junk', 'rules', 'stamp'):
    del record[name]
  path.write_text(json.dumps({**record, 'remark': 'of another version'}))
  ds = open_dataset(str(folder))
  assert ds.info.near_duplicates == ds.info.settings == {}
  assert ds.info.size_px == 16


@pytest.mark.parametrize('text', ['{}', '[1]', '{"classes": ["a"]}'])
def test_description_of_something_else_is_an_error(folder, text):
  (folder / 'dataset.json').write_text(text)
  with pytest.raises(ValueError, match='describes no prepared dataset'):
    open_dataset(str(folder))


SCRIPT = """
import sys
from micdiffrep_jax.bundle import predict
from micdiffrep_jax.data import dataset
assert len(dataset.open_dataset(sys.argv[1]).images) == 48
heavy = {'tensorflow_datasets', 'tensorflow', 'array_record'}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""


def test_cached_images_and_predictions_need_no_reader_of_records(folder):
  open_dataset(str(folder))
  script = [sys.executable, '-c', SCRIPT, str(folder)]
  done = subprocess.run(script, capture_output=True, text=True, timeout=90)
  assert done.returncode == 0, done.stderr

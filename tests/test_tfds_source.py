import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds
import trees

from micdiffrep_jax.data import dataset, prepare, sources
from micdiffrep_jax.data.sources import tfds as tfds_source


class TinyScans(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {
      'scan': tfds.features.Image(shape=(None, None, 1)),
      'label': tfds.features.ClassLabel(names=['sick', 'well']),
      'patient': tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(0, 24),
      'test': self._generate_examples(24, 32),
    }

  def _generate_examples(self, start, stop):
    for i in range(start, stop):
      yield (
        i,
        {
          'scan': Image.fromarray(trees.head(i)),
          'label': (i // 2) % 2,
          'patient': f'p{i // 2}',
        },
      )


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  root = str(tmp_path_factory.mktemp('tfds'))
  TinyScans(data_dir=root, file_format='array_record').download_and_prepare()
  return root


def test_all_splits_are_read_with_labels_and_pixels(data_dir):
  source = tfds_source.open_source('tiny_scans', sources.Request(data_dir))
  assert source.origin == 'tiny_scans'
  assert len(source.files) == 32
  pixels = [source.read(f, 1)[0].pixels for f in source.files]
  known = {trees.head(i).tobytes(): i for i in range(32)}
  numbers = [known[p.tobytes()] for p in pixels]
  assert sorted(numbers) == list(range(32))
  expected = [('sick', 'well')[(i // 2) % 2] for i in numbers]
  assert source.labels == expected


def test_one_split_and_a_folder_can_be_named(data_dir):
  folder = f'{data_dir}/tiny_scans/1.0.0'
  for spec in ('tfds:tiny_scans:test', f'tfds:{folder}:test'):
    assert len(sources.open_source(spec, sources.Request(data_dir)).files) == 8


def test_prepares_with_the_patient_as_group(data_dir, tmp_path):
  config = trees.config(
    source='tfds:tiny_scans',
    data_dir=data_dir,
    group_field='patient',
    out=str(tmp_path / 'out'),
  )
  prepare.prepare(config.data)
  ds = dataset.open_dataset(str(tmp_path / 'out'))
  assert ds.classes == ('sick', 'well')
  assert len(set(ds.manifest['group'])) == 16
  for patient in set(ds.manifest['patient_id']):
    rows = ds.manifest['patient_id'] == patient
    assert rows.sum() == 2
    assert len(set(ds.manifest['patient'][rows])) == 1


def test_unlabelled_tfds_joins_a_labelled_folder(data_dir, tmp_path):
  trees.class_tree(tmp_path / 'pictures', sources=6)
  config = trees.config(
    source=str(tmp_path / 'pictures'),
    unlabelled=('tfds:tiny_scans',),
    data_dir=data_dir,
    variant_regex='crystal_clean',
    out=str(tmp_path / 'out'),
  )
  prepare.prepare(config.data)
  ds = dataset.open_dataset(str(tmp_path / 'out'))
  labels = dataset.labels(ds)
  assert (labels == -1).sum() == 32
  # heads 0 to 5 are the sick pictures of the folder, too
  repeats = ds.info.near_duplicates['unlabelled_that_repeat_labelled']
  assert repeats == 6
  held_out = np.isin(ds.manifest['grouped'], ('val', 'test')) & (labels == 0)
  n_excluded = (ds.manifest['grouped'] == 'excluded').sum()
  assert n_excluded == held_out.sum() / 2  # two variants per source


@pytest.mark.parametrize(
  ('name', 'group', 'message'),
  [
    ('tiny_scan', '', 'No dataset'),
    ('tiny_scans:val', '', r"splits: \['test', 'train'\]"),
    ('tiny_scans', 'person', "group_field='person'"),
  ],
)
def test_wrong_names_are_errors(data_dir, name, group, message):
  with pytest.raises(ValueError, match=message):
    tfds_source.open_source(name, sources.Request(data_dir, group))

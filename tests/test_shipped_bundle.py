"""results/bundle.npz: what a user tries first, minutes after cloning."""

import csv
import importlib
import pathlib
import tarfile

import jax
import pytest

from micdiffrep_jax.bundle import classifier, evaluate, predict
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features

ROOT = pathlib.Path(__file__).parent.parent
BUNDLE = str(ROOT / 'results' / 'bundle.npz')
TAR = ROOT.parent / 'shared' / 'data' / 'crystal_clean.tar'

real = pytest.mark.skipif(
  not TAR.exists(), reason='../shared/data/crystal_clean.tar is not here'
)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """Every 400th picture, in class folders."""
  root = tmp_path_factory.mktemp('pictures')
  with tarfile.open(TAR) as tar:
    members = [m for m in tar if m.name.endswith('.jpg')][::400]
    tar.extractall(root, members, filter='data')
  return root / 'crystal_clean'


def run(task, tmp_path, **settings):
  config = importlib.import_module(f'configs.{task.__name__.split(".")[-1]}')
  config = config.get_config()
  config.bundle = BUNDLE
  config.update_from_flattened_dict(settings)
  return task.run(config.lock(), str(tmp_path))


def test_it_is_small_and_says_what_was_measured():
  assert pathlib.Path(BUNDLE).stat().st_size < 5e6
  meta = classifier.load_bundle(BUNDLE).meta
  with open(ROOT / 'results' / 'probes.csv') as f:
    (measured,) = [
      row
      for row in csv.DictReader(f)
      if (row['probe'], row['row']) == ('results/bundle.npz', 'kernel')
      and (row['images'], row['metric']) == ('all', 'accuracy')
    ]
  for name, value in meta.test['all']['accuracy']._asdict().items():
    assert round(value, 4) == float(measured[name])
  assert meta.fitted_on_test_images
  measured = classifier.load_bundle(BUNDLE, 'measured').meta
  assert not measured.fitted_on_test_images
  assert measured.training_images < meta.training_images


def test_as_an_encoder_it_has_four_layers():
  encoder = encoders.load_encoder(BUNDLE)
  layers = features.check_request(encoder.method, (), (1,))
  assert layers == ('down0_0', 'down1_0', 'down2_0', 'mid')
  assert encoder.info.images_seen == 128_000
  params = sum(x.size for x in jax.tree.leaves(encoder.variables))
  assert params > 4e6


@real
def test_it_knows_the_classes_of_pictures_that_it_was_fitted_on(
  pictures, tmp_path
):
  run(predict, tmp_path, source=str(pictures))
  with open(tmp_path / 'predictions.csv') as f:
    rows = list(csv.DictReader(f))
  right = [row['file'].split('/')[-2] == row['class'] for row in rows]
  assert len(right) > 40
  assert sum(right) / len(right) > 0.9


@real
def test_pictures_that_it_was_fitted_on_do_not_count_as_a_test(
  pictures, tmp_path
):
  settings = {
    'data.source': str(pictures),
    'data.variant_regex': 'crystal_clean',
  }
  with pytest.raises(ValueError, match=r'--config\.overlap'):
    run(evaluate, tmp_path, **settings)

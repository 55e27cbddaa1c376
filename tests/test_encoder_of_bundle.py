"""A bundle given as --config.checkpoint: its encoder, for new heads."""

import importlib

from fakes import quadrants
import jax
import numpy as np
import pytest
import tiny_bundle

from micdiffrep_jax.bundle import classifier
from micdiffrep_jax.encoders import cache, encoder, features
from micdiffrep_jax.generate import sample
from micdiffrep_jax.studies import table1


def stored(tmp_path, layers=('down1_0', 'down0_0'), precision='float32'):
  path = str(tmp_path / 'bundle.npz')
  classifier.write(path, tiny_bundle.model(None, layers), precision)
  return path


def test_its_features_are_those_of_the_encoder(tmp_path):
  found, want = encoder.load_encoder(stored(tmp_path)), tiny_bundle.encoder()
  images = tiny_bundle.images(3)
  for layer in ('down0_0', 'down1_0'):
    fn = features.make_feature_fn(want.method, (layer,), 2)
    rest = (images, features.image_seeds(images), jax.random.key(0), 3)
    np.testing.assert_array_equal(
      fn(found.variables, *rest)[layer], fn(want.variables, *rest)[layer]
    )


def test_it_knows_the_layers_that_it_has_in_their_order(tmp_path):
  method = encoder.load_encoder(stored(tmp_path)).method
  assert features.check_request(method, (), (0,)) == ('down0_0', 'down1_0')
  with pytest.raises(ValueError, match=r"'mid'.*--config\.layers"):
    features.check_request(method, ('mid',), (0,))


def test_its_random_twin_is_whole(tmp_path):
  twin = encoder.random_encoder(encoder.load_encoder(stored(tmp_path)))
  leaves = jax.tree.leaves(twin.variables)
  assert len(leaves) == len(jax.tree.leaves(tiny_bundle.encoder().variables))
  assert twin.info.images_seen == 0


def test_another_step_is_refused(tmp_path):
  path = stored(tmp_path)
  assert encoder.load_encoder(path, 0).info.step == 0
  with pytest.raises(ValueError, match=r'holds step 0, not 7.*--config\.step'):
    encoder.load_encoder(path, 7)


def test_it_draws_no_images(tmp_path):
  config = importlib.import_module('configs.sample').get_config('test')
  config.checkpoint = stored(tmp_path)
  with pytest.raises(ValueError, match=r'bundle.*--config\.checkpoint'):
    sample.run(config, str(tmp_path / 'out'))


def test_features_of_a_file_put_in_its_place_are_made_anew(tmp_path):
  dataset = quadrants()
  folder, rows = str(tmp_path / 'features'), np.arange(3)
  for entries, precision in enumerate(('float32', 'float16'), 1):
    one = encoder.load_encoder(stored(tmp_path, precision=precision))
    cache.fill(folder, one, dataset, rows, ('down0_0',), (3,), 2, 1, 0, 8)
    assert len(list((tmp_path / 'features').glob('*/key.json'))) == entries


def test_its_cost_in_a_table_has_no_seconds(tmp_path):
  cost = table1.cost(encoder.load_encoder(stored(tmp_path)))
  assert cost.training_s is None
  assert cost.parameters > 0

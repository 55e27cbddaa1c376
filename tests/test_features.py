import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pretrain
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.heads.matrix import Map, layout, pool
from micdiffrep_jax.run import files


@pytest.fixture(scope='module')
def phantom():
  return data.open_dataset('phantom:size_px=16,patients=60')


@pytest.fixture(scope='module')
def encoder():
  config = pretrain.get_config('test')
  method = encoders.make_method(config, 16, 1)
  info = encoders.EncoderInfo(16, 1, path='x', step=1)
  blank = encoders.Encoder(method, None, config, info)
  return encoders.random_encoder(blank)


@pytest.fixture(scope='module')
def feature_fn(encoder):
  return features.make_feature_fn(encoder.method, encoder.method.layers, 4)


@pytest.fixture(scope='module')
def extract(encoder, phantom, feature_fn):
  return functools.partial(
    features.extract, encoder, phantom, feature_fn=feature_fn, t=20
  )


def test_pooling_is_the_mean_over_cells():
  x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
  pooled = features.pool_map(jnp.asarray(x), 4)
  cells = x.reshape(2, 4, 2, 4, 2, 3).mean(axis=(2, 4))
  np.testing.assert_allclose(pooled, cells, rtol=1e-5, atol=1e-6)


def test_a_cells_deviation_stands_behind_its_mean_and_nests():
  x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
  four = np.asarray(features.pool_map(jnp.asarray(x), 4, True))
  for to, found in ((4, four.reshape(2, -1)), (2, pool(four, 2, True))):
    cells = x.reshape(2, to, 8 // to, to, 8 // to, 3)
    want = np.concatenate([cells.mean((2, 4)), cells.std((2, 4))], axis=-1)
    np.testing.assert_allclose(found, want.reshape(2, -1), atol=1e-5)
  assert layout([four.shape], 2) == (Map(4, 6),)


def test_cells_of_odd_maps_share_pixels_and_nest():
  x = np.random.default_rng(0).normal(size=(1, 7, 7, 2)).astype(np.float32)
  four = np.asarray(features.pool_map(jnp.asarray(x), 4))
  # 7 / 4 px a cell: the first takes pixel 0 whole and 3/4 of pixel 1.
  weights = np.array([1, 0.75, 0, 0, 0, 0, 0]) / 1.75
  first = np.einsum('hwd,h,w->d', x[0], weights, weights)
  np.testing.assert_allclose(four[0, 0, 0], first, rtol=1e-5, atol=1e-6)
  for to in (1, 2):
    direct = features.pool_map(jnp.asarray(x), to)
    np.testing.assert_allclose(
      pool(four, to), direct.reshape(1, -1), rtol=1e-5, atol=1e-6
    )


def test_a_map_smaller_than_the_grid_stays_as_it_is():
  x = jnp.arange(8.0).reshape(1, 2, 2, 2)
  np.testing.assert_allclose(features.pool_map(x, 4), x, rtol=1e-6)
  assert pool(np.asarray(x), 4).shape == (1, 8)
  with pytest.raises(ValueError, match='divisor'):
    pool(np.zeros((1, 4, 4, 1)), 3)


def test_features_do_not_depend_on_order_or_batch(extract):
  rows = np.array([5, 3, 60, 11, 7, 30, 31, 8, 9, 40])
  whole = extract(rows, batch_size=16)
  back = extract(rows[::-1], batch_size=8)
  for name in whole:
    # float16 of nearly equal float32: one unit in the last place.
    np.testing.assert_allclose(
      whole[name], back[name][::-1], rtol=2e-3, atol=1e-4, err_msg=name
    )
  assert whole['mid'].shape == (10, 4, 4, 16)
  assert whole['mid'].dtype == np.float16


def test_draws_are_averaged(extract):
  rows = np.arange(4)
  one = extract(rows, batch_size=8, draws=1)['mid'].astype(np.float32)
  two = extract(rows, batch_size=8, draws=2)['mid'].astype(np.float32)
  eight = extract(rows, batch_size=8, draws=8)['mid'].astype(np.float32)
  assert not np.allclose(one, two)
  assert np.abs(eight - two).mean() < np.abs(eight - one).mean()


def test_single_layers_equal_those_of_a_full_pass(encoder, phantom, extract):
  rows = np.arange(8)
  whole = extract(rows, batch_size=8)
  alone = features.extract(encoder, phantom, rows, ['mid'], 20, batch_size=8)
  assert list(alone) == ['mid']
  np.testing.assert_allclose(alone['mid'], whole['mid'], rtol=2e-3, atol=1e-4)


def test_taps_are_those_of_the_network_on_the_noised_image(encoder, phantom):
  """A second way to the same numbers, without any of the extraction."""
  from micdiffrep_jax.diffusion import process as diffusion
  from micdiffrep_jax.methods import ddpm
  from micdiffrep_jax.run.keys import stream

  rows = np.arange(8)
  process, apply, _ = ddpm.denoiser(encoder.config, 16, 1)
  images = phantom.images[rows]
  key = jax.random.fold_in(stream(jax.random.key(0), 'features'), 0)
  x0 = jnp.asarray(images, jnp.float32) / 127.5 - 1
  eps = jnp.stack(
    [
      jax.random.normal(jax.random.fold_in(key, int(s)), (16, 16, 1))
      for s in features.image_seeds(images)
    ]
  )
  t = jnp.full(8, 20)
  alpha_bar = np.prod(1 - np.linspace(1e-4, 2e-2, 1000)[:21])
  x_t = np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps
  np.testing.assert_allclose(
    x_t, diffusion.q_sample(process, x0, t, eps), rtol=1e-4, atol=1e-5
  )
  mid = jax.jit(lambda x: apply(encoder.variables, x, t)[1]['mid'])(x_t)
  found = features.extract(encoder, phantom, rows, ['mid'], 20, batch_size=8)
  b, h, _, c = mid.shape
  cells = np.asarray(mid).reshape(b, 4, h // 4, 4, h // 4, c).mean(axis=(2, 4))
  np.testing.assert_allclose(found['mid'], cells, rtol=3e-3, atol=1e-3)


def test_bad_requests_are_refused(encoder, phantom):
  rows = np.arange(2)
  with pytest.raises(ValueError, match="Unknown layer 'up9'.*--config.layers"):
    features.extract(encoder, phantom, rows, ['up9'])
  with pytest.raises(ValueError, match='--config.timesteps'):
    features.extract(encoder, phantom, rows, t=1000)
  with pytest.raises(ValueError, match='--config.batch_size'):
    features.extract(encoder, phantom, rows, batch_size=12)
  other = encoder._replace(info=dataclasses.replace(encoder.info, size_px=32))
  with pytest.raises(ValueError, match='--config.data.size_px=32'):
    features.extract(other, phantom, rows)


def test_another_seed_gives_other_random_weights(encoder):
  other = encoders.random_encoder(encoder, seed=1)
  same = encoders.random_encoder(encoder, seed=0)
  kernel = encoder.variables['in']['kernel']
  np.testing.assert_array_equal(kernel, same.variables['in']['kernel'])
  assert not np.allclose(kernel, other.variables['in']['kernel'])


def test_configs_survive_json():
  import json

  config = pretrain.get_config('paper').lock()
  back = encoders.config_from_json(json.loads(json.dumps(files.plain(config))))
  assert back.to_dict() == config.to_dict()
  assert back.model.attention == (14, 7)
  assert back.is_locked


def test_a_stored_denoiser_without_a_name_is_a_unet():
  record = {'method': 'ddpm', 'model': {'channels': 8}}
  assert encoders.config_from_json(record).model.name == 'unet'
  other = {'method': 'mae', 'model': {'width': 8}}
  assert 'name' not in encoders.config_from_json(other).model

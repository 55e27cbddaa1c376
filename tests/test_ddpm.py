from flax import linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from configs import pretrain
from micdiffrep_jax.methods import ddpm
from micdiffrep_jax.models.backbones import BACKBONES, Backbone


@pytest.fixture(scope='module')
def method():
  return ddpm.make(pretrain.get_config('test'), 16, 1)


@pytest.fixture(scope='module')
def state(method):
  return jax.jit(method.init)(jax.random.key(0))


def test_an_untrained_network_has_unit_loss(method, state):
  # It outputs zero, so its error is the variance of the noise.
  batch = {'image': np.full((64, 16, 16, 1), 90, np.uint8)}
  loss, _ = jax.jit(method.loss)(*state, batch, jax.random.key(1))
  # 16384 squared normals: a standard error of sqrt(2 / 16384) = 0.011.
  assert abs(float(loss) - 1) < 0.05


def test_average_weights_warm_up_and_then_trail(method, state):
  params, extra = state
  new = jax.tree.map(lambda p: p + np.float32(1), jax.device_get(params))
  after = jax.jit(method.after)
  early = after(new, extra, 0)['ema']['in']['kernel']
  late = after(new, extra, 10**6)['ema']['in']['kernel']
  old = params['in']['kernel']
  np.testing.assert_allclose(early - old, 0.9, rtol=1e-4)  # 1 - 1/10
  np.testing.assert_allclose(late - old, 0.1, rtol=1e-3)  # 1 - ema_decay


def test_features_read_the_average_not_the_moving_weights(method, state):
  params, extra = state
  other = jax.tree.map(jnp.zeros_like, params)
  frozen = method.frozen(other, extra)
  np.testing.assert_array_equal(frozen['in']['kernel'], params['in']['kernel'])


def test_validation_ignores_masked_rows_and_fills_every_bin(method, state):
  params, extra = state
  variables = method.frozen(params, extra)
  images = np.zeros((64, 16, 16, 1), np.uint8)
  keys = jax.random.split(jax.random.key(3), 64)
  weights = (np.arange(64) < 48).astype(np.float32)
  validate = jax.jit(method.validate)
  sums = validate(variables, images, keys, weights)
  assert float(sums['loss'][1]) == 48
  bins = [v for k, v in sums.items() if k != 'loss']
  assert len(bins) == ddpm.LOSS_BINS
  np.testing.assert_allclose(sum(float(b[1]) for b in bins), 48)
  np.testing.assert_allclose(
    sum(float(b[0]) for b in bins), float(sums['loss'][0]), rtol=1e-4
  )
  images[48:] = 255
  again = validate(variables, images, keys, weights)
  np.testing.assert_allclose(sums['loss'][0], again['loss'][0], rtol=1e-6)


def test_samples_are_images(method, state):
  images = jax.jit(method.sample)(
    method.frozen(*state), jax.random.split(jax.random.key(0), 2)
  )
  assert images.shape == (2, 16, 16, 1)
  assert float(jnp.abs(images).max()) <= 1


class _Two(nn.Module):
  """Two convolutions, a tap after each."""

  width: int

  @nn.compact
  def __call__(self, x, t, *, train=False):
    low = nn.Conv(self.width, (3, 3), name='low')(x)
    high = nn.Conv(x.shape[-1], (3, 3), name='high')(low)
    return high, {'low': low, 'high': high}


def test_another_denoiser_is_an_entry_of_the_table(monkeypatch):
  two = Backbone(
    lambda fields, size_px, channels: _Two(**fields),
    lambda model: ('low',),
    lambda model: ('high',),
  )
  monkeypatch.setitem(BACKBONES, 'two', two)
  config = pretrain.get_config('test')
  config.model = ConfigDict({'name': 'two', 'width': 4})
  method = ddpm.make(config, 16, 1)
  assert method.layers == ('low', 'high')
  assert (method.decoder, method.output) == (('high',), 'low')
  params, extra = method.init(jax.random.key(0))
  images = np.zeros((2, 16, 16, 1), np.uint8)
  batch = {'image': images}
  loss, _ = method.loss(params, extra, batch, jax.random.key(1))
  assert np.isfinite(loss)
  keys = jax.random.split(jax.random.key(2), 2)
  taps = method.features(method.frozen(params, extra), images, keys, 3)
  assert taps['low'].shape == (2, 16, 16, 4)
  assert taps['high'].shape == (2, 16, 16, 1)


def test_an_unknown_denoiser_is_refused():
  config = pretrain.get_config('test')
  config.model.name = 'vnet'
  with pytest.raises(ValueError, match=r"'unet'.*--config.model.name"):
    ddpm.make(config, 16, 1)


def test_the_decoder_of_a_unet_is_what_follows_its_middle(method):
  assert method.output == 'mid'
  middle = method.layers.index('mid')
  assert method.decoder == method.layers[middle + 1 :]


@pytest.mark.parametrize('size_px', [8, 64, 112])
def test_the_preset_test_fits_any_size(size_px):
  method = ddpm.make(pretrain.get_config('test'), size_px, 1)
  params, _ = jax.eval_shape(method.init, jax.random.key(0))
  assert jax.tree.leaves(params)

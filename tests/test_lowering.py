"""Programs for a GPU and a TPU, made without either."""

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from benchmarks import functions
from configs import baselines, finetune
from micdiffrep_jax.encoders import features
from micdiffrep_jax.heads import kernel

PLATFORMS = ('cuda', 'tpu')


def lowered(fn, *shapes, platform):
  """The program of a function for a platform, before it is optimised."""
  return jax.jit(fn).trace(*shapes).lower(lowering_platforms=(platform,))


def shape(*axes, dtype=np.float32):
  return jax.ShapeDtypeStruct(axes, dtype)


@pytest.mark.parametrize('platform', PLATFORMS)
def test_pooling_and_the_kernel_head_ask_for_all_of_float32(platform):
  head = {
    'W': shape(4, 6),
    'W_bias': shape(4),
    'centres': shape(5, 4),
    'M': shape(3, 5),
    'M_bias': shape(3),
  }
  programs = (
    lowered(
      lambda x: features.pool_map(x, 2), shape(2, 8, 8, 3), platform=platform
    ),
    lowered(kernel.apply, head, shape(2, 6), platform=platform),
  )
  for program, products in zip(programs, (2, 3)):
    lines = [x for x in program.as_text().splitlines() if 'dot_general' in x]
    assert len(lines) == products
    assert all('precision = [HIGHEST, HIGHEST]' in x for x in lines), lines


def mesh():
  return jax.sharding.Mesh(np.array(jax.devices()[:2]), ('data',))


def assert_lowers(function, method, preset='test'):
  assert_config_lowers(function, functions.config_of(method, preset))


def assert_config_lowers(function, config):
  config.batch_size = 16
  fn, shapes = functions.FUNCTIONS[function](config, 16, mesh())
  traced = fn.trace(*shapes)
  for platform in PLATFORMS:
    traced.lower(lowering_platforms=(platform,))


def test_the_heads_lower():
  assert_lowers('head', 'ddpm')


@pytest.mark.slow
@pytest.mark.parametrize('method', ['ddpm', *baselines.METHODS])
def test_every_method_trains_and_is_read_on_any_platform(method):
  assert_lowers('step', method)
  assert_lowers('features', method)


@pytest.mark.slow
@pytest.mark.parametrize('preset', ['test', 'vit_test'])
def test_samples_are_drawn_on_any_platform(preset):
  assert_lowers('sampler', 'ddpm', preset)


@pytest.mark.slow
def test_the_other_denoiser_trains_and_is_read_on_any_platform():
  assert_lowers('step', 'ddpm', 'vit_test')
  assert_lowers('features', 'ddpm', 'vit_test')


@pytest.mark.slow
@pytest.mark.parametrize('tune', ['full', 'lora'])
def test_fine_tuning_trains_on_any_platform(tune):
  config = finetune.get_config('test').unlock()
  config.method, config.tune, config.layers = 'finetune', tune, ('mid',)
  config.base = functions.config_of('ddpm', 'test')
  config.classes = ('a', 'b')
  config.net = ConfigDict({'kind': 'linear', 'hidden': 0, 'bias': True})
  assert_config_lowers('step', config)

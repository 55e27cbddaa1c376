import dataclasses
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spawn import phantom, state

from configs import baselines
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.methods import METHODS, two_view
from micdiffrep_jax.pretrain import monitor, train
from micdiffrep_jax.scores.metrics import effective_rank, kept_share


def spread(z):
  return {k: float(v) for k, v in two_view.spread(jnp.asarray(z)).items()}


def unit_normals(n, d, scale=1.0):
  z = np.random.default_rng(0).normal(size=(n, d)) * scale
  z /= np.linalg.norm(z, axis=1, keepdims=True)
  return z.astype(np.float32)


def test_uniform_directions_are_told_from_collapse():
  found = spread(unit_normals(4096, 16))
  assert found['feature_std'] == pytest.approx(1 / 4, rel=0.02)
  assert found['top_share'] == pytest.approx(1 / 16, rel=0.2)
  found = spread(np.repeat(unit_normals(1, 16), 64, axis=0))
  assert found['feature_std'] < 1e-6
  line = np.outer([1.0, -1.0, 1.0, -1.0], np.ones(4) / 2).astype(np.float32)
  assert spread(line)['top_share'] == pytest.approx(1, abs=1e-5)


def test_top_share_is_that_of_the_first_principal_component():
  z = unit_normals(64, 8, np.array([3, 1, 1, 1, 1, 1, 1, 1]))
  values = np.linalg.eigvalsh(np.cov(z.T))
  want = values[-1] / values.sum()
  assert spread(z)['top_share'] == pytest.approx(want, rel=1e-2)


def test_two_readings_of_images_share_what_is_not_noise():
  rng = np.random.default_rng(0)
  signal = rng.normal(size=(20_000, 3)) * [1, 2, 0.1]
  noise = 2 * rng.normal(size=(2, *signal.shape))
  assert kept_share(5 + signal, signal) == pytest.approx(1)
  assert kept_share(signal, -signal) == pytest.approx(-1)
  # 1 + 4 + 0.01 of signal, three times 4 of noise.
  share = kept_share(signal + noise[0], signal + noise[1])
  assert share == pytest.approx(5.01 / 17.01, abs=0.01)
  assert kept_share(*noise) == pytest.approx(0, abs=0.02)
  assert kept_share(np.ones((4, 3)), np.ones((4, 3))) == 0


def test_effective_rank_counts_equal_directions():
  signs = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
  padded = np.concatenate([signs, np.zeros((4, 5))], axis=1)
  assert effective_rank(padded) == pytest.approx(3)
  assert effective_rank(10 + padded) == pytest.approx(3)
  assert effective_rank(padded * [1, 0, 0, 0, 0, 0, 0, 0]) == pytest.approx(1)
  assert effective_rank(np.ones((4, 3))) == 0
  # Two directions of 3 and 1: exp of the entropy of (3/4, 1/4).
  x = signs[:, :2] * np.array([3, 1])
  entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
  assert effective_rank(x) == pytest.approx(np.exp(entropy))


def make_config(name, **changes):
  config = baselines.get_config(f'{name},test')
  config.update_from_flattened_dict(
    {
      'data.path': phantom(),
      'steps': 4,
      'log_every': 1,
      'save_every': 2,
      'keep_every': 2,
      'eval_every': 2,
      'monitor.probe_images': 0,
      **changes,
    }
  )
  return config.lock()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['moco', 'byol'])
def test_a_resumed_run_is_the_whole_one_and_gives_features(name, tmp_path):
  whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
  results = train.run(make_config(name), str(whole))
  assert results['feature_rank'] > 1
  assert results['feature_rank_init'] > 1
  assert 0 < results['feature_std'] < 1
  shutil.copytree(whole, resumed)
  shutil.rmtree(resumed / 'checkpoints' / '4')
  again = train.run(make_config(name), str(resumed))
  assert again['val_loss'] == results['val_loss']
  assert again['feature_rank_init'] == results['feature_rank_init']
  want, have = state(whole, 4), state(resumed, 4)
  assert want.keys() == have.keys()
  assert any('stats' in k for k in want)
  for k in want:
    np.testing.assert_array_equal(have[k], want[k], err_msg=k)
  encoder = encoders.load_encoder(str(whole))
  dataset = data.open_dataset(phantom())
  found = features.extract(encoder, dataset, np.arange(8), batch_size=8, grid=2)
  assert {k: v.shape for k, v in found.items()} == {
    'stage1': (8, 2, 2, 8),
    'stage2': (8, 2, 2, 16),
    'stage3': (8, 2, 2, 32),
  }
  with open(os.path.join(whole, 'metrics.jsonl')) as f:
    lines = [json.loads(line) for line in f]
  assert all('top_share' in line for line in lines if 'loss' in line)


def test_a_queue_too_long_for_the_images_is_refused_before_a_compile(
  tmp_path, monkeypatch
):
  def no_compile(*_, **__):
    raise AssertionError('something was compiled')

  monkeypatch.setattr(train.jax, 'jit', no_compile)
  with pytest.raises(ValueError, match='quarter of .* training images'):
    train.run(make_config('moco', **{'moco.queue': 4096}), str(tmp_path))


@pytest.mark.slow
def test_a_fall_of_the_rank_below_its_first_value_is_warned_of(
  tmp_path, monkeypatch
):
  byol = METHODS['byol']

  def collapsed(config, size, channels):
    method = byol(config, size, channels)

    def flat(variables, images, keys, t):
      taps = method.features(variables, images, keys, t)
      # As initialised the running averages are 0 and 1.
      moved = jnp.max(
        jnp.abs(variables['stats']['encoder']['stem_norm']['mean'])
      )
      return {
        k: jnp.where(moved > 0, v.mean(-1, keepdims=True) + 0 * v, v)
        for k, v in taps.items()
      }

    return dataclasses.replace(method, features=flat)

  warnings = []
  monkeypatch.setitem(METHODS, 'byol', collapsed)
  logger = monitor.log.get_logger()
  monkeypatch.setattr(
    logger, 'warning', lambda *a: warnings.append(a[0] % a[1:])
  )
  results = train.run(make_config('byol', steps=3), str(tmp_path))
  assert results['feature_rank'] == pytest.approx(1, abs=1e-3)
  assert any('collapsing' in w for w in warnings)


def test_views_of_each_image_follow_its_own_key():
  images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1))
  images = images.astype(np.uint8)
  order = np.array([2, 0, 1])

  def draw(order):
    keys = jax.random.split(jax.random.key(0), 3)[order]
    return two_view.views_of_each(keys, images[order], 'mri')

  for a, b in zip(draw(np.arange(3)), draw(order), strict=True):
    np.testing.assert_allclose(np.asarray(a)[order], b, atol=1e-5)

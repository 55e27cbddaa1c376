"""The stand-in model knows a bank of images by heart: its denoiser is the
posterior mean over the bank, so what it draws is images of the bank. With the
training images as its bank it is a perfect copier, with others it is not."""

import importlib.util
import json
import os

from fakes import fake_encoder
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import splits, store
from micdiffrep_jax.diffusion.process import alpha_sigma, make_diffusion
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.generate import sample
from micdiffrep_jax.methods import Method, ddpm
from micdiffrep_jax.methods.base import to_float
from micdiffrep_jax.run import log

SIZE = 8
N_TRAIN, N_VAL, N_OTHER = 96, 64, 64
TRAIN = slice(N_VAL, N_VAL + N_TRAIN)
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _pictures():
  rng = np.random.default_rng(0)
  n = N_TRAIN + N_VAL + N_OTHER
  return rng.integers(0, 256, (n, SIZE, SIZE, 1), np.uint8)


def _dataset():
  images = _pictures()
  # Training images are not the first rows: a row number is not a position.
  part = np.array(['val'] * N_VAL + ['train'] * N_TRAIN + ['test'] * N_OTHER)
  ids = np.array([f'image_{i}' for i in range(len(images))])
  manifest = {'id': ids, **dict.fromkeys(splits.NAMES, part)}
  info = store.Info(
    size_px=SIZE, channels=1, images=len(ids), classes=(), fingerprint='f'
  )
  return data.Dataset('memory', images, manifest, (), 'f', info)


def _apply(variables, x_t, t):
  bank = variables['bank']
  alpha, sigma = alpha_sigma(_DIFFUSION, t, x_t)
  distance = jnp.sum(
    (x_t[:, None] - alpha[:, None] * bank[None]) ** 2, axis=(2, 3, 4)
  )
  weight = jax.nn.softmax(-distance / (2 * sigma[:, :, 0, 0] ** 2))
  return jnp.einsum('bn,nhwc->bhwc', weight, bank), {}


_DIFFUSION = make_diffusion(target='x0', timesteps=100)


def _features(variables, images, keys, t):
  flat = to_float(images).reshape(len(images), -1)
  project = jax.random.normal(jax.random.key(0), (flat.shape[1], 12))
  return {'mid': (flat @ project)[:, None, None, :]}


def _validate(variables, images, keys, weights):
  return {'loss': (jnp.sum(weights) * 2.0, jnp.sum(weights))}


@pytest.fixture
def model(monkeypatch):
  """Puts the stand-in in place; returns set_bank(rows)."""
  ds = _dataset()
  state = {'bank': TRAIN}
  method = Method(
    init=None,
    loss=None,
    after=None,
    frozen=None,
    features=_features,
    validate=_validate,
    sample=lambda *_: None,
    layers=('mid',),
    output='mid',
    timesteps=100,
  )
  split_hash = data.split_hash(ds, 'patient')
  info = encoders.EncoderInfo(SIZE, 1, split='patient', split_hash=split_hash)
  config = ConfigDict({'method': 'ddpm', 'data': {'path': 'memory'}})

  def load(path, step):
    bank = to_float(jnp.asarray(ds.images[state['bank']]))
    return encoders.Encoder(method, {'bank': bank}, config, info)

  monkeypatch.setattr(encoders, 'load_encoder', load)
  monkeypatch.setattr(data, 'open_dataset', lambda *_, **__: ds)
  monkeypatch.setattr(
    ddpm, 'denoiser', lambda *_: ddpm.Denoiser(_DIFFUSION, _apply, None)
  )
  return lambda rows: state.update(bank=rows)


def _config(**changes):
  spec = importlib.util.spec_from_file_location(
    'sample_config', os.path.join(_ROOT, 'configs', 'sample.py')
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config('test')
  config.checkpoint = 'run'
  config.sampler.steps = 25
  config.interpolation.images = config.reconstruction.images = 0
  config.reconstruction.timesteps = (5, 50)
  config.update_from_flattened_dict(changes)
  return config.lock()


@pytest.fixture
def warnings(monkeypatch):
  found: list[str] = []
  monkeypatch.setattr(
    log.get_logger(), 'warning', lambda text, *a: found.append(text % a)
  )
  return found


def test_copies_are_called_out_with_the_images_they_copy(
  model, tmp_path, warnings
):
  config = _config(images=40, **{'memorisation.val_images': 64})
  with_copies = sample.run(config, str(tmp_path))
  for space in ('pixels', 'features'):
    found = with_copies['memorisation'][space]
    assert found['warning']
    assert found['share_close'] > 0.9
  assert len([x for x in warnings if x.startswith('Memorisation')]) == 2
  images = np.load(tmp_path / 'samples.npz')['images']
  train = _pictures()[TRAIN].reshape(N_TRAIN, -1).astype(float)
  lines = (tmp_path / 'nearest.csv').read_text().splitlines()
  assert len(lines) == 41
  for i in (0, 17, 39):
    gap = np.abs(train - images[i].reshape(1, -1)).mean(1)
    _, by_pixels, _, by_features, _ = lines[1 + i].split(',')
    assert by_pixels == by_features == f'image_{N_VAL + gap.argmin()}'


def test_new_images_are_not_called_copies(model, tmp_path, warnings):
  model(slice(N_TRAIN + N_VAL, None))
  config = _config(
    images=64,
    **{'memorisation.val_images': 64, 'memorisation.warn_share': 0.2},
  )
  found = sample.run(config, str(tmp_path))
  for space in ('pixels', 'features'):
    assert not found['memorisation'][space]['warning']
  assert not warnings


def test_files_are_complete_and_agree(model, tmp_path):
  config = _config(
    images=11, **{'interpolation.images': 1, 'reconstruction.images': 2}
  )
  results = sample.run(config, str(tmp_path))
  images = np.load(tmp_path / 'samples.npz')['images']
  assert images.shape == (11, SIZE, SIZE, 1)
  assert len(os.listdir(tmp_path / 'images')) == 11
  for i in (0, 10):
    png = np.asarray(Image.open(tmp_path / 'images' / f'{i:05d}.png'))
    np.testing.assert_array_equal(png, images[i, ..., 0])
  for name in (
    'samples',
    'trajectory',
    'nearest',
    'interpolation',
    'reconstruction',
  ):
    assert (tmp_path / f'{name}.png').exists()
  assert results['loss']['loss'] == 2.0
  floor = results['quality']['mid at t = 20']
  assert floor['images'] == {'generated': 11, 'val': 32, 'floor': 11}
  written = json.loads((tmp_path / 'results.json').read_text())
  assert written['memorisation'] == results['memorisation']


def test_an_image_is_the_same_for_any_batch_size_and_count(model):
  encoder, denoiser = encoders.load_encoder('', None), ddpm.denoiser()
  keep = {'sampler.name': 'ddim', 'sampler.eta': 0.5}
  few = sample.request(_config(images=18, batch_size=8, **keep))
  more = sample.request(_config(images=20, batch_size=16, **keep))
  a = sample.draw(few, encoder, denoiser, 25).images
  b = sample.draw(more, encoder, denoiser, 25).images
  # Rounding to bytes may fall the other way for the last bit of a float.
  assert np.abs(a.astype(int) - b[:18]).max() <= 1
  assert len(np.unique(b, axis=0)) > 1


def test_the_same_run_does_not_draw_again(model, tmp_path, monkeypatch):
  first = sample.run(_config(), str(tmp_path))
  draws = []
  monkeypatch.setattr(
    sample,
    'draw',
    lambda *a, real=sample.draw: draws.append(1) or real(*a),
  )
  again = sample.run(_config(), str(tmp_path))
  assert not draws
  assert again['memorisation'] == first['memorisation']
  sample.run(_config(seed=1), str(tmp_path))
  model(slice(0, 10))  # other weights
  sample.run(_config(seed=1), str(tmp_path))
  assert len(draws) == 2


def test_external_features_are_compared_too(model, tmp_path):
  rng = np.random.default_rng(0)
  path = str(tmp_path / 'inception.npz')
  val = rng.normal(size=(50, 4))
  np.savez(path, generated=val[:8] + 9, val=val, train=val)
  config = _config(images=8, **{'quality.external': path})
  found = sample.run(config, str(tmp_path))['quality'][path]
  assert found['generated']['frechet_distance'] > 50
  with pytest.raises(ValueError, match=r'8 generated.*--config\.images=8'):
    sample.run(_config(images=9, **{'quality.external': path}), str(tmp_path))


def test_images_are_judged_by_another_encoder(model, tmp_path, monkeypatch):
  own = encoders.load_encoder

  def load(path, step):
    return (
      fake_encoder(_dataset(), size=SIZE)
      if path == 'judge'
      else own(path, step)
    )

  monkeypatch.setattr(encoders, 'load_encoder', load)
  by = {'features.checkpoint': 'judge', 'features.layer': 'image'}
  found = sample.run(_config(images=16, **by), str(tmp_path))
  ((name, scores),) = found['quality'].items()
  assert name == 'judge: image at t = 20'
  assert scores['features'] == 1  # of its map, averaged
  with pytest.raises(ValueError, match="Unknown layer 'up9'"):
    sample.run(_config(**{**by, 'features.layer': 'up9'}), str(tmp_path))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'checkpoint': ''}, r'Set --config\.checkpoint'),
    ({'images': 0}, r'--config\.images'),
    ({'batch_size': 12}, r'12 does not divide over 8 devices'),
    ({'sampler.name': 'euler'}, "Unknown sampler 'euler'"),
    ({'figure.trajectory': 99}, r'--config\.figure\.trajectory'),
    ({'features.layer': 'up9'}, "Unknown layer 'up9'"),
    ({'features.timestep': 100}, r'\[100\] are outside'),
    ({'reconstruction.timesteps': (5, 700)}, r'\[700\] are outside'),
    ({'memorisation.percentile': 100.0}, r'percentile=100'),
  ],
)
def test_what_cannot_be_done_raises_before_anything_is_drawn(
  model, tmp_path, monkeypatch, changes, message
):
  monkeypatch.setattr(sample, 'draw', None)
  with pytest.raises(ValueError, match=message):
    sample.run(_config(**changes), str(tmp_path))

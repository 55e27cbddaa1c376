"""A classifier in forms that run without this package."""

import importlib.util
import json
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_bundle

import micdiffrep_jax as mdr
from micdiffrep_jax.bundle import classifier, portable, torch_names
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.methods import ddpm
from micdiffrep_jax.models import unet

ELSEWHERE = """
import sys
import jax, numpy as np
with open(sys.argv[1], 'rb') as f:
  run = jax.export.deserialize(bytearray(f.read()))
print(run.platforms)
np.save(sys.argv[3], run.call(np.load(sys.argv[2])))
assert not any(name.startswith(('micdiffrep', 'flax')) for name in sys.modules)
"""


def test_seeds_on_the_device_are_the_crc_of_the_pixels():
  images = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)
  want = [zlib.crc32(x.tobytes()) for x in images]
  assert jax.jit(portable.image_seeds)(images).tolist() == want


@pytest.mark.parametrize('kinds', [['mlp'], ['kernel'], ['mlp', 'kernel']])
def test_the_function_gives_the_probabilities_of_the_bundle(kinds):
  first, *others = (tiny_bundle.model(kind=kind) for kind in kinds)
  model = first._replace(others=tuple(others))
  images = tiny_bundle.images(3)
  found = jax.jit(portable.classifier_fn(model))(images)
  want = classifier.bundle_predict(model, images)
  np.testing.assert_allclose(found, want, atol=2e-3)  # roundings to float16
  assert np.ptp(want, axis=0).min() > 1e-3


@pytest.mark.needs('flatbuffers')
def test_a_committee_has_no_features_of_its_first_encoder(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(portable, 'serialise', lambda *_: b'')
  model = tiny_bundle.model()
  both = model._replace(others=(model,))
  assert set(portable.write(str(tmp_path), both, ('jax',))) == {
    'classifier.jax_export'
  }


@pytest.mark.needs('flatbuffers')
def test_another_process_runs_what_was_written(tmp_path):
  model, images = tiny_bundle.model(), tiny_bundle.images(3)
  found = portable.write(str(tmp_path), model, ('jax',))
  assert set(found) == {'classifier.jax_export', 'features.jax_export'}
  np.save(tmp_path / 'images.npy', images)
  out = str(tmp_path / 'probs.npy')
  arguments = [found['classifier.jax_export'], tmp_path / 'images.npy', out]
  done = subprocess.run(
    [sys.executable, '-c', ELSEWHERE, *map(str, arguments)],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == "('cpu', 'cuda', 'tpu')\n"
  want = classifier.bundle_predict(model, images)
  np.testing.assert_allclose(np.load(out), want, atol=2e-3)


@pytest.mark.needs('flatbuffers')
def test_features_of_any_number_of_pictures_are_those_of_the_api(tmp_path):
  encoder = mdr.Encoder(tiny_bundle.encoder(), tiny_bundle.model())
  path = tmp_path / 'features'
  encoder.export_features(path, t=3, layers=['down0_0'], cells=2)
  run = jax.export.deserialize(bytearray(path.read_bytes()))
  images = tiny_bundle.images(3)
  want = encoder.features(images, t=3, layers=['down0_0'], cells=2)
  for n in (1, 3):
    found = run.call(images[:n])
    np.testing.assert_allclose(found, want[:n], atol=2e-3 * np.abs(want).max())


def unet_of(channels):
  """A UNet with attention, three levels, and a width that changes."""
  config = tiny_bundle.config()
  config.model.update(
    {'channels': 8, 'multipliers': (1, 2), 'attention': (8,), 'heads': 2}
  )
  config.model.patch = 2
  method = encoders.make_method(config, 16, channels)
  shapes = jax.eval_shape(
    lambda key: method.frozen(*method.init(key)), jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes
  )
  info = encoders.EncoderInfo(16, channels, path='')
  return encoders.Encoder(method, variables, config, info)


def test_a_form_without_its_package_names_it(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r'flatbuffers: pip install'):
    portable.serialise(lambda images: images, 16, 1)
  with pytest.raises(ValueError, match=r"'onx'.*--config\.exports"):
    portable.check(['onx'])


@pytest.mark.needs('torch')
@pytest.mark.parametrize('channels', [1, 3])
def test_the_reference_network_has_the_taps_of_the_state_dict(channels):
  import torch

  from benchmarks.torch_encoder import UNetEncoder

  encoder = unet_of(channels)
  tensors, told = torch_names.unet_encoder(encoder, 3)
  told = json.loads(json.dumps(told))
  net = UNetEncoder(**told['network'])
  net.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
  rng = np.random.default_rng(1)
  x = rng.normal(size=(2, 16, 16, channels)).astype(np.float32)
  t = np.array([3, 40], np.int32)
  d = ddpm.denoiser(encoder.config, 16, channels)
  want = jax.jit(d.apply)(encoder.variables, jnp.array(x), t)[1]
  with torch.no_grad():
    found = net(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(t))
  assert tuple(found) == unet.encoder_taps(d.model)
  for name, tap in found.items():
    mine, scale = tap.numpy().transpose(0, 2, 3, 1), np.abs(want[name]).max()
    np.testing.assert_allclose(mine, want[name], atol=1e-5 * scale)
  assert told['alpha_bar'] == d.process.alpha_bar[3]


def test_a_state_dict_ends_with_the_last_tap_that_the_encoder_has():
  encoder = unet_of(1)
  shallow = encoder._replace(method=encoder.method.restrict(('down0_0',)))
  tensors, told = torch_names.unet_encoder(shallow, 0)
  parts = {name.split('.')[0] for name in tensors}
  assert parts == {'stem', 'time1', 'time2', 'down0_0'}
  assert told['network']['last'] == 'down0_0'


def test_only_a_unet_on_its_way_down_has_a_form_in_torch():
  encoder = unet_of(1)
  up = encoder._replace(method=encoder.method.restrict(('up0_0',)))
  other = encoder.config.copy_and_resolve_references().unlock()
  other.method = 'mae'
  for one in (up, encoder._replace(config=other)):
    with pytest.raises(ValueError, match='--config.exports'):
      torch_names.unet_encoder(one, 0)

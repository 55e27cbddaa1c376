"""A file with two heads: the one it predicts with, and the one it measured."""

import importlib

import numpy as np
import pytest
from test_probe import get_config
import tiny_bundle

from micdiffrep_jax.bundle import classifier, evaluate, export
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.run import archive
from micdiffrep_jax.studies import probe

PHANTOM = 'phantom:size_px=16,patients=60'


def run(task, name, folder, **changes):
  config = importlib.import_module(f'configs.{name}').get_config()
  config.update_from_flattened_dict(changes)
  return task.run(config.lock(), str(folder))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A probe of random weights, and a file with its kernel fitted again."""
  folder = tmp_path_factory.mktemp('made')
  config = get_config(
    bundle='kernel',
    random_encoder=False,
    floors=(),
    classic=('kernel',),
    grids=(4,),
    seeds=(0,),
    timesteps=(3,),
    **{'heads.kinds': ('linear',), 'data.path': PHANTOM},
  )
  with pytest.MonkeyPatch.context() as patch:
    one = tiny_bundle.encoder()
    patch.setattr(encoders, 'load_encoder', lambda *_: one)
    probed = probe.run(config, str(folder / 'probe'))
    changes = {'probe': str(folder / 'probe'), 'refit': True}
    told = run(export, 'bundle', folder, precision='int8', **changes)
  return probed, told


@pytest.mark.slow
def test_the_measured_head_gives_the_measured_accuracy_again(
  made, tmp_path, caplog
):
  probed, told = made
  asked = {'bundle': told['bundle'], 'data.path': PHANTOM, 'resamples': 20}
  found = run(evaluate, 'evaluate', tmp_path, head='measured', **asked)
  accuracy = found['rows']['bundle']['test']['all']['accuracy']['value']
  stored = classifier.load_bundle(told['bundle']).meta.test
  assert accuracy == stored['all']['accuracy'].value
  assert f'As measured: {100 * accuracy:.1f} %.' in caplog.text
  # Rounding moves a picture or two of the probe's own.
  mine = probed['rows']['kernel']['test']['all']['accuracy']['value']
  assert accuracy == pytest.approx(mine, abs=0.05)
  # The other head has seen these pictures, says so, and knows them by heart.
  with pytest.raises(ValueError, match=r'--config\.head=measured'):
    run(evaluate, 'evaluate', tmp_path, **asked)
  known = run(evaluate, 'evaluate', tmp_path, overlap='keep', **asked)
  final = known['rows']['bundle']['test']['all']['accuracy']['value']
  assert final > accuracy + 0.1
  assert known['measured'] is None


@pytest.mark.slow
def test_the_two_heads_share_all_but_their_votes(made):
  arrays, _ = archive.read(made[1]['bundle'])
  names = {name for name in arrays if name.startswith('measured.')}
  assert names == {'measured.M'}  # M_bias is zero in both
  model = classifier.load_bundle(made[1]['bundle'])
  ds = data.open_dataset(PHANTOM)
  train, val = (len(data.rows(ds, 'patient', p)) for p in ('train', 'val'))
  votes = model.measured['M']
  assert np.abs(votes[..., :train]).min() > 0
  assert not votes[..., train:].any()
  before = classifier.as_measured(model)
  assert before.meta.training_images == train + val
  assert len(before.fingerprints.hashes) == train + val


def test_a_file_without_the_measured_head_says_so(tmp_path):
  path = str(tmp_path / 'old.npz')
  model = tiny_bundle.model()
  again = model.meta.__class__(
    **{**vars(model.meta), 'fitted_on_test_images': True}
  )
  classifier.write(path, model._replace(meta=again), 'float32')
  with pytest.raises(ValueError, match=r'no measured head.*--config\.head'):
    classifier.load_bundle(path, 'measured')
  with pytest.raises(ValueError, match=r"'best'.*--config\.head"):
    classifier.load_bundle(path, 'best')


def test_heads_of_a_committee_are_measured_one_by_one(tmp_path):
  model = tiny_bundle.model()
  votes = {**model.head.params, 'M': -model.head.params['M']}
  meta = model.meta.__class__(
    **{
      **vars(model.meta),
      'fitted_on_test_images': True,
      'measured_on': {'images': 0, 'untouched': 0},
    }
  )
  one = model._replace(meta=meta, measured=votes)
  path = str(tmp_path / 'both.npz')
  classifier.write(path, one._replace(others=(one,)), 'float32')
  images = tiny_bundle.images(3)
  found = classifier.load_bundle(path, 'measured')
  assert len(found.members) == 2
  want = -classifier.logits(model, images)
  for member in found.members:
    np.testing.assert_allclose(
      classifier.logits(member, images), want, atol=1e-5
    )


def test_trimmed_votes_are_as_good_as_float32():
  x = np.random.default_rng(0).normal(size=(3, 400)).astype(np.float32)
  found = archive.trim(x)
  assert not (found.view(np.uint32) & 0xFF).any()
  np.testing.assert_allclose(found, x, rtol=2.0**-16)

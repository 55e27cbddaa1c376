"""Features are extracted once: by task, by pipeline, after a kill."""

import collections
import dataclasses
import os
import shutil

from fakes import fake_encoder, quadrants, study_config, use_fake
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from configs import probe as probe_config
from configs import splits as splits_config
from micdiffrep_jax import tasks
from micdiffrep_jax.encoders import cache, features
from micdiffrep_jax.run import files
from micdiffrep_jax.studies import base

LAYERS = ('noise', 'mean', 'image')


@pytest.fixture(scope='module')
def ds():
  return quadrants()


@pytest.fixture
def shown(monkeypatch):
  """How many images each encoder was shown, by its weights and timestep."""
  counts = collections.Counter()
  passes = features.passes

  def counted(feature_fn, variables, batches, keys, t, *rest):
    for valid, means in passes(feature_fn, variables, batches, keys, t, *rest):
      counts[float(variables['eyes']), t] += valid * len(keys)
      yield valid, means

  monkeypatch.setattr(features, 'passes', counted)
  return counts


def fill(folder, encoder, ds, rows, layers=LAYERS, t=(10,), **more):
  return cache.fill(
    str(folder), encoder, ds, np.asarray(rows), layers, t, 2, 1, 0, 8, **more
  )


def direct(encoder, ds, rows, layer='image', t=10):
  found = features.extract(encoder, ds, np.asarray(rows), (layer,), t, 2)
  return found[layer].reshape(len(rows), -1)


def test_only_missing_rows_are_shown_and_come_in_the_order_asked(
  tmp_path, ds, shown
):
  encoder = fake_encoder(ds)
  fill(tmp_path, encoder, ds, [9, 2, 30])
  assert shown == {(1.0, 10): 3}
  rows = [30, 4, 2, 50]
  found = fill(tmp_path, encoder, ds, rows, ('image',))
  assert shown == {(1.0, 10): 5}
  got = cache.matrix(found, 10, ('image',), 2)
  # Another company in the batch: one unit of float16 in the last place.
  np.testing.assert_allclose(got, direct(encoder, ds, rows), atol=2e-3)
  fewer = cache.matrix(found, 10, ('image',), 2, rows=3)
  np.testing.assert_array_equal(fewer, got[:3])


def test_weights_tell_encoders_apart_and_paths_do_not(tmp_path, ds, shown):
  encoder = fake_encoder(ds)
  fill(tmp_path, encoder, ds, range(5))
  moved = dataclasses.replace(encoder.info, path='elsewhere')
  fill(tmp_path, encoder._replace(info=moved), ds, range(5))
  assert shown == {(1.0, 10): 5}
  other = encoder._replace(variables={'eyes': jnp.float32(2)})
  found = fill(tmp_path, other, ds, range(5))
  assert shown == {(1.0, 10): 5, (2.0, 10): 5}
  np.testing.assert_allclose(
    cache.matrix(found, 10, ('image',), 2),
    direct(other, ds, range(5)),
    atol=2e-3,
  )
  shown.clear()
  fill(tmp_path, encoder, ds, range(5), t=(10, 20))
  assert shown == {(1.0, 20): 5}
  fill(tmp_path, encoder._replace(config=ConfigDict()), ds, range(5))
  assert shown == {(1.0, 20): 5, (1.0, 10): 5}


def test_a_kill_between_rows_and_their_marks_loses_only_these_rows(
  tmp_path, ds, shown, monkeypatch
):
  encoder = fake_encoder(ds)
  fill(tmp_path, encoder, ds, range(4))
  write = files.write_whole

  def killed(path, content):
    if str(path).endswith('image.filled.npy'):
      raise KeyboardInterrupt
    write(path, content)

  monkeypatch.setattr(files, 'write_whole', killed)
  with pytest.raises(KeyboardInterrupt):
    fill(tmp_path, encoder, ds, range(8))
  monkeypatch.setattr(files, 'write_whole', write)
  shown.clear()
  found = fill(tmp_path, encoder, ds, range(8))
  assert shown == {(1.0, 10): 4}
  np.testing.assert_allclose(
    cache.matrix(found, 10, ('image',), 2),
    direct(encoder, ds, range(8)),
    atol=2e-3,
  )


def test_what_does_not_fit_on_the_disk_is_refused(tmp_path, ds, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=9))
  with pytest.raises(ValueError, match=r'--workdir.*--config\.timesteps'):
    fill(tmp_path, fake_encoder(ds), ds, range(8))


@pytest.mark.parametrize('taps', ['all', 'encoder'])
def test_a_pass_of_a_pipeline_gives_what_later_stages_read(
  tmp_path, ds, shown, taps
):
  encoder = fake_encoder(ds)
  config = ConfigDict(
    {
      'probe': {'layers': ('image',), 'keep_features': False},
      'ablate': {'layers': (), 'taps': taps},
      'table1': {'layers': {'ddpm': ('mean',)}, 'probe': {'layers': ()}},
    }
  )
  encoder = encoder._replace(config=ConfigDict({'method': 'ddpm'}))
  with cache.shared(str(tmp_path / 'features'), config):
    fill(tmp_path / 'a', encoder, ds, range(5), ('image',))
    fill(tmp_path / 'b', encoder, ds, range(3), ('mean',))
    fill(tmp_path / 'c', encoder, ds, range(5), ('noise',))
  assert shown == {(1.0, 10): 5 if taps == 'all' else 10}
  assert not os.path.exists(tmp_path / 'features')


def pipeline(**changes):
  """A probe with a random twin, and the same probe under two splits."""
  small = {
    'timesteps': (1, 51),
    'grids': (4,),
    'classic': (),
    'heads.kinds': ('mlp',),
    'heads.epochs': 2,
    'resamples': 20,
  }
  one = study_config(probe_config, random_encoder=True, **small, **changes)
  splits = splits_config.get_config('test')
  splits.splits = ('paper', 'patient')
  splits.checkpoint = 'fake'
  splits.probe = study_config(probe_config, random_encoder=False, **small)
  stages = {'probe': one, 'splits': splits}
  return ConfigDict({'task': 'pipeline', 'stages': tuple(stages), **stages})


@pytest.mark.slow
def test_all_stages_of_a_pipeline_share_one_pass(
  tmp_path, ds, shown, monkeypatch
):
  use_fake(monkeypatch, ds)
  tasks.TASKS['pipeline'](pipeline(), str(tmp_path))
  parts = {s: base.labelled_parts(ds, s) for s in ('paper', 'patient')}
  rows = set(parts['paper'].rows) | set(parts['patient'].rows)
  alone = len(parts['patient'].rows)  # random weights, in the first stage only
  assert shown == {
    (1.0, 1): len(rows),
    (1.0, 51): len(rows),
    (0.0, 1): alone,
    (0.0, 51): alone,
  }
  assert not [f for f, _, names in os.walk(tmp_path) if 'key.json' in names]


def test_features_stay_where_a_stage_keeps_them(tmp_path, ds, monkeypatch):
  use_fake(monkeypatch, ds)
  config = pipeline(keep_features=True)
  config.stages = ('probe',)
  tasks.TASKS['pipeline'](config, str(tmp_path))
  folder = str(tmp_path / 'probe' / 'features' / 'encoder')
  found = cache.Cache(folder, ('image',), (1, 51))
  rows = base.labelled_parts(ds, 'patient').rows
  assert len(cache.matrix(found, (1, 51), ('image',), 4)) == len(rows)

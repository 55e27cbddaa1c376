import dataclasses
import json
import os
import signal
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from configs import pretrain
from micdiffrep_jax.data import batches
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders.encoder import load_encoder
from micdiffrep_jax.methods import Method
from micdiffrep_jax.pretrain import train
from micdiffrep_jax.pretrain.state import make_state, make_step
from micdiffrep_jax.run import checkpoint, files


def linear_method():
  """Least squares: a loss whose gradients are known."""

  def loss(params, extra, batch, key):
    del key
    residual = batch['x'] @ params['w'] - batch['y']
    value = jnp.mean(jnp.square(residual))
    return value, (extra, {'loss': value})

  return Method(
    init=lambda key: ({'w': jnp.zeros(3)}, {'count': jnp.int32(0)}),
    loss=loss,
    after=lambda params, extra, step: {'count': extra['count'] + 1},
    frozen=lambda params, extra: params,
    features=lambda *_: {},
    validate=lambda *_: {},
    sample=None,
    layers=(),
    timesteps=1,
  )


def least_squares_batch():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(8, 3)).astype(np.float32)
  return {'x': x, 'y': rng.normal(size=8).astype(np.float32)}


def test_step_is_gradient_descent():
  method, tx = linear_method(), optax.sgd(0.1)
  batch = least_squares_batch()
  before = make_state(method, tx, jax.random.key(0))
  step = make_step(method, tx)
  after, metrics = step(before, batch, jax.random.key(1))
  gradient = -2 * batch['x'].T @ batch['y'] / 8
  np.testing.assert_allclose(after.params['w'], -0.1 * gradient, rtol=1e-5)
  np.testing.assert_allclose(
    metrics['grad_norm'], np.linalg.norm(gradient), rtol=1e-5
  )
  np.testing.assert_allclose(metrics['loss'], np.mean(batch['y'] ** 2), 1e-5)
  assert int(after.step) == int(after.extra['count']) == 1


def test_accumulated_parts_equal_one_batch():
  method, tx = linear_method(), optax.adam(0.1)
  batch = least_squares_batch()
  states = []
  for accumulate in (1, 4):
    state = make_state(method, tx, jax.random.key(0))
    step = make_step(method, tx, accumulate)
    for i in range(3):
      state, _ = step(state, batch, jax.random.key(i))
    states.append(state)
  np.testing.assert_allclose(
    states[0].params['w'], states[1].params['w'], rtol=1e-5
  )
  assert int(states[1].extra['count']) == 3


def tiny_config(**changes):
  """A run of seconds, of the smallest network: it compiles fastest."""
  config = pretrain.get_config('test').lock()
  config.update_from_flattened_dict(
    {
      'data.path': 'phantom:size_px=16,patients=60',
      'steps': 8,
      'log_every': 2,
      'save_every': 3,
      'eval_every': 4,
      'model.channels': 4,
      'model.multipliers': (1,),
      'model.attention': (),
      'model.groups': 2,
      'optim.lr': 1e-3,
      'monitor.samples': 0,
      'monitor.probe_images': 0,
      **changes,
    }
  )
  return config


def final_state(workdir):
  directory, step = checkpoint.find(str(workdir))
  state = checkpoint.ocp.load_checkpointables(f'{directory}/{step}')['state']
  return step, jax.tree.map(np.asarray, state)


def metrics_of(workdir):
  lines = [
    json.loads(x) for x in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]
  return [{k: v for k, v in x.items() if k != 'images_per_s'} for x in lines]


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  results = train.run(tiny_config(), str(workdir))
  return workdir, results


def test_a_run_leaves_results_config_and_proof(uninterrupted):
  workdir, results = uninterrupted
  assert results['steps'] == 8
  assert results['unseen']['shared_images'] == 0
  assert results['unseen']['shared_groups'] == 0
  assert results['unseen']['test_images'] > 0
  assert np.isfinite(results['val_loss'])
  assert {p.name for p in workdir.iterdir()} >= {
    'config.json',
    'metrics.jsonl',
    'results.json',
    'tensorboard',
    'checkpoints',
  }


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(
  uninterrupted, tmp_path, monkeypatch
):
  gather = batches._gather
  calls = []

  def stop_at_fourth_batch(*args):
    calls.append(1)
    if len(calls) == 4:
      os.kill(os.getpid(), signal.SIGTERM)
    return gather(*args)

  monkeypatch.setattr(batches, '_gather', stop_at_fourth_batch)
  with pytest.raises(SystemExit) as e:
    train.run(tiny_config(), str(tmp_path))
  assert e.value.code == 128 + signal.SIGTERM
  assert final_state(tmp_path)[0] < 8
  monkeypatch.undo()
  train.run(tiny_config(), str(tmp_path))
  step, state = final_state(tmp_path)
  expected_step, expected = final_state(uninterrupted[0])
  assert step == expected_step == 8
  jax.tree.map(np.testing.assert_array_equal, state, expected)
  assert metrics_of(tmp_path) == metrics_of(uninterrupted[0])


def test_a_finished_run_is_not_trained_further(uninterrupted):
  workdir, results = uninterrupted
  before = final_state(workdir)
  again = train.run(tiny_config(), str(workdir))
  assert again['val_loss'] == results['val_loss']
  jax.tree.map(np.testing.assert_array_equal, before, final_state(workdir))


def test_spared_splits_lose_their_test_images_from_pretraining():
  ds = data.open_dataset('phantom:size_px=16,patients=60')
  rows = data.pretraining_rows(ds, 'grouped', ('paper', 'leaky'))
  assert 0 < len(rows) < len(data.rows(ds, 'grouped', 'train'))
  for split in ('grouped', 'paper', 'leaky'):
    assert train.prove_unseen(ds, split, rows)['shared_images'] == 0
  with pytest.raises(ValueError, match='test images'):
    train.prove_unseen(ds, 'leaky', data.rows(ds, 'grouped', 'train'))
  with pytest.raises(ValueError, match='split'):
    data.pretraining_rows(ds, 'grouped', ('papers',))


def test_side_arrays_travel_with_their_images(tmp_path, monkeypatch):
  ds = data.open_dataset('phantom:size_px=16,patients=60')
  brightness = np.asarray(ds.images).reshape(len(ds.images), -1).sum(1)

  def loss(params, extra, batch, key):
    total = jnp.sum(batch['image'].astype(jnp.int32), (1, 2, 3))
    wrong = jnp.sum(total != batch['brightness']).astype(jnp.float32)
    return wrong + jnp.sum(params['w']), (extra, {'loss': wrong, 'twice': 2.0})

  method = dataclasses.replace(
    linear_method(),
    loss=loss,
    metrics=('loss', 'twice'),
    side=lambda found: {'brightness': brightness.astype(np.int32)},
  )
  monkeypatch.setattr(train, 'make_method', lambda *_: method)
  train.run(tiny_config(**{'eval_every': 100}), str(tmp_path))
  (line,) = [x for x in metrics_of(tmp_path) if x.get('images_seen') == 128]
  assert line['loss'] == 0
  assert line['twice'] > 0


def test_a_run_ends_where_its_features_gain_no_more(tmp_path, monkeypatch):
  def loss(params, extra, batch, key):
    return jnp.sum(params['w']), (extra, {'loss': jnp.sum(params['w'])})

  method = dataclasses.replace(linear_method(), loss=loss)
  monkeypatch.setattr(train, 'make_method', lambda *_: method)
  kept = {2: 0.5, 4: 0.7, 6: 0.6, 8: 0.65, 10: 0.9}
  seen = []

  def make(method, config, dataset, info, mesh, writer):
    def watch(state, step):
      seen.append(step)
      found = {'features_kept': kept.get(step, 0.8), 'val_loss': 1 / step}
      writer.scalars(step, found)
      return found

    return watch

  monkeypatch.setattr(train.monitor, 'make', make)
  config = tiny_config(
    **{
      'steps': 20,
      'eval_every': 2,
      'save_every': 100,
      'stop.metric': 'features_kept',
      'stop.patience': 2,
    }
  )
  results = train.run(config, str(tmp_path))
  # Of 4 is the best; 6 and 8 are two without a better one.
  assert seen == [2, 4, 6, 8]
  assert (results['steps'], results['images_seen']) == (8, 8 * 16)
  assert results['ended_early']
  assert final_state(tmp_path)[0] == 8
  assert train.run(config, str(tmp_path))['steps'] == 8
  assert seen == [2, 4, 6, 8]
  # With more patience it goes on from there: 10 is the best, then three.
  config.stop.patience = 3
  assert train.run(config, str(tmp_path))['steps'] == 16


def test_changed_settings_are_named_and_refused(uninterrupted):
  workdir = str(uninterrupted[0])
  changed = tiny_config(**{'optim.lr': 2e-3, 'model.dropout': 0.1})
  with pytest.raises(ValueError, match='allow_changes') as e:
    train.run(changed, workdir)
  assert 'config.optim.lr: 0.001 -> 0.002' in str(e.value)
  assert 'config.model.dropout: 0.0 -> 0.1' in str(e.value)
  train.run(tiny_config(log_every=3), workdir)  # harmless


def test_a_run_whose_config_lacks_later_fields_goes_on(monkeypatch):
  now = checkpoint.Metadata(files.plain(tiny_config()), {'fingerprint': 'a'})
  saved = checkpoint.Metadata(*json.loads(json.dumps(now)))
  del saved.config['model']['name'], saved.config['recipe']
  saved.info['images_seen'] = 16
  monkeypatch.setattr(train, 'read_metadata', lambda *_: saved)
  kept = types.SimpleNamespace(
    latest=1, directory='', restore=lambda abstract: 'restored'
  )
  program = train.Program(None, None, None)
  assert train.begin(kept, program, None, now, False) == 'restored'


def test_changed_data_is_named():
  before = {'config': {'seed': 0}, 'info': {'fingerprint': 'a'}}
  now = {'config': {'seed': 0}, 'info': {'fingerprint': 'b'}}
  with pytest.raises(ValueError, match='info.fingerprint: a -> b'):
    train.check_unchanged(before, now, accepted=False)
  train.check_unchanged(before, now, accepted=True)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  config = tiny_config(**{'optim.lr': 1e30, 'optim.clip_norm': 0.0})
  with pytest.raises(FloatingPointError, match=r'not finite at step \d'):
    train.run(config, str(tmp_path))
  for step in checkpoint.steps(str(tmp_path / 'checkpoints')):
    folder = f'{tmp_path}/checkpoints/{step}'
    state = checkpoint.ocp.load_checkpointables(folder)['state']
    for leaf in jax.tree.leaves(state['params']):
      assert np.isfinite(leaf).all()


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'batch_size': 12}, r'--config.batch_size=8'),
    ({'batch_size': 4096}, 'fewer than a batch'),
    ({'accumulate': 3}, '--config.accumulate'),
    ({'method': 'dpm'}, "Did you mean 'ddpm'.*--config.method"),
    ({'model.attention': (16, 5)}, r'Attention at \[5\]'),
    ({'diffusion.target': 'x_0'}, '--config.diffusion.target'),
    ({'diffusion.weighting': 'snr'}, '--config.diffusion.weighting'),
    ({'optim.schedule': 'step'}, '--config.optim.schedule'),
    ({'optim.name': 'lamb'}, '--config.optim.name'),
    ({'optim.warmup_steps': 8}, '--config.optim.warmup_steps'),
    ({'augment.flip': 2.0}, '--config.augment.flip'),
    ({'ema_decay': 1.0}, '--config.ema_decay'),
    ({'data.split': 'groped'}, "Did you mean 'grouped'"),
    ({'stop.metric': 'kept'}, '--config.stop.metric'),
    ({'stop.metric': 'val_loss', 'stop.patience': 0}, '--config.stop.patience'),
    ({'stop.metric': 'val_loss', 'monitor.images': 1}, 'monitor.images=1'),
  ],
)
def test_bad_fields_are_refused_before_any_compile(
  tmp_path, monkeypatch, change, words
):
  def no_compile(*_, **__):
    raise AssertionError('something was compiled')

  monkeypatch.setattr(train.jax, 'jit', no_compile)
  with pytest.raises(ValueError, match=words):
    train.run(tiny_config(**change), str(tmp_path))


def test_unknown_fields_are_refused():
  with pytest.raises(KeyError, match='lrr'):
    tiny_config(**{'optim.lrr': 1.0})


@pytest.mark.slow
def test_a_tiny_unet_overfits_one_batch():
  # One picture, one batch: the loss must fall far below that of predicting 0.
  config = tiny_config(
    **{
      'model.channels': 8,
      'model.multipliers': (1, 2),
      'model.attention': (8,),
      'model.groups': 4,
      'optim.lr': 3e-3,
      'augment.flip': 0.0,
    }
  )
  ds = data.open_dataset(config.data.path)
  from micdiffrep_jax.encoders.encoder import make_method

  method = make_method(config, 16, 1)
  tx = optax.adam(3e-3)
  batch = {'image': np.repeat(ds.images[np.array([0])], 16, axis=0)}

  # The same noise at every step: nothing but memory is asked for.
  fixed = dataclasses.replace(
    method, loss=lambda p, e, b, key: method.loss(p, e, b, jax.random.key(7))
  )
  state = jax.jit(lambda k: make_state(fixed, tx, k))(jax.random.key(0))
  step = jax.jit(make_step(fixed, tx))
  losses = []
  for _ in range(120):
    state, metrics = step(state, batch, jax.random.key(1))
    losses.append(float(metrics['loss']))
  assert losses[0] > 0.9
  assert losses[-1] < 0.35 * losses[0]


def test_a_checkpoint_is_an_encoder(uninterrupted):
  encoder = load_encoder(str(uninterrupted[0]))
  assert encoder.info.images_seen == 8 * 16
  assert isinstance(encoder.config, ml_collections.ConfigDict)
  _, state = final_state(uninterrupted[0])
  jax.tree.map(
    np.testing.assert_array_equal, encoder.variables, state['extra']['ema']
  )

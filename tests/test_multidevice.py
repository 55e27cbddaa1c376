"""The same numbers on any number of devices, however the state is split."""

import dataclasses
import functools
import importlib.util
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from spawn import ROOT, metrics, phantom, state

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data.batches import train_stream
from micdiffrep_jax.diffusion import process as diffusion
from micdiffrep_jax.diffusion import samplers
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.methods import METHODS, Method
from micdiffrep_jax.pretrain import monitor, train
from micdiffrep_jax.pretrain import state as state_
from micdiffrep_jax.run import checkpoint
from micdiffrep_jax.run import devices as sharding


def mesh_of(count):
  return jax.sharding.Mesh(np.array(jax.devices()[:count]), ('data',))


@pytest.fixture
def on_devices(monkeypatch):
  """Makes every mesh one of so many devices."""
  return lambda n: monkeypatch.setattr(
    sharding, 'make_mesh', lambda: mesh_of(n)
  )


def make_config(**overrides):
  path = os.path.join(ROOT, 'configs', 'pretrain.py')
  spec = importlib.util.spec_from_file_location('pretrain_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config('test')
  config.update_from_flattened_dict(
    {
      'data.path': phantom(),
      'model.multipliers': (1,),
      'model.attention': (),
      'monitor.samples': 0,
      'monitor.probe_images': 0,
      'monitor.images': 24,
      'steps': 6,
      'log_every': 1,
      'save_every': 100,
      'eval_every': 100,
      **overrides,
    }
  )
  return config.lock()


@pytest.fixture(scope='module')
def on_one(tmp_path_factory):
  """A run on one device."""
  folder = tmp_path_factory.mktemp('one')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, 'make_mesh', lambda: mesh_of(1))
    train.run(make_config(), str(folder))
  return folder


def assert_close(workdir, reference, tolerance):
  want, have = state(reference), state(workdir)
  assert want.keys() == have.keys()
  for name in want:
    np.testing.assert_allclose(
      have[name], want[name], atol=tolerance, err_msg=name
    )
  for line, other in zip(metrics(workdir), metrics(reference), strict=True):
    assert line == pytest.approx(other, abs=10 * tolerance)


@pytest.mark.slow
@pytest.mark.parametrize('fsdp', [False, True])
def test_eight_devices_train_as_one_does(
  tmp_path, monkeypatch, on_devices, on_one, fsdp
):
  on_devices(8)
  state_sharding = functools.partial(sharding.state_sharding, min_size=8)
  used = []

  def noted(*args):
    used.append(state_sharding(*args))
    return used[0]

  monkeypatch.setattr(sharding, 'state_sharding', noted)
  train.run(make_config(fsdp=fsdp), str(tmp_path))
  split = [not s.is_fully_replicated for s in jax.tree.leaves(used)]
  assert sum(split) > 10 if fsdp else sum(split) == 0
  # float32 sums in another order; Adam divides small gradients by their size.
  assert_close(tmp_path, on_one, 2e-5)


@pytest.mark.slow
def test_sums_of_bfloat16_cost_about_what_bfloat16_does():
  """GPUs and TPUs sum gradients of weights in a model's bfloat16.

  A CPU sums in float32, so the sum of eight is taken here as they take it. Each
  rounding is independent: two of equal size are apart by root two.
  """
  key, images = jax.random.key(0), np.random.default_rng(0)
  images = images.integers(0, 256, (8, 2, 16, 16, 1)).astype(np.uint8)

  def gradients(dtype):
    """One tree a device."""
    config = make_config(**{'model.dtype': dtype, 'model.channels': 16})
    method = encoders.make_method(config, 16, 1)
    params, extra = method.init(key)
    one = jax.jit(
      jax.grad(
        lambda params, image, i: method.loss(
          params, extra, {'image': image}, jax.random.fold_in(key, i)
        )[0]
      )
    )
    return [one(params, image, i) for i, image in enumerate(images)]

  def add(trees, dtype):
    def whole(*leaves):
      kind = dtype if leaves[0].ndim > 1 else jnp.float32  # as on v5e
      return sum(leaf.astype(kind) for leaf in leaves).astype(jnp.float32)

    return jax.tree.map(whole, *trees)

  def apart(a, b):
    return optax.global_norm(jax.tree.map(jnp.subtract, a, b))

  exact = add(gradients('float32'), jnp.float32)
  parts = gradients('bfloat16')
  one = apart(add(parts, jnp.float32), exact)
  eight = apart(add(parts, jnp.bfloat16), exact)
  assert one < eight < 1.6 * one
  assert eight < 0.01 * optax.global_norm(exact)


def test_fsdp_splits_what_it_can():
  shapes = {
    'kernel': jax.ShapeDtypeStruct((3, 16, 8), jnp.float32),
    'odd': jax.ShapeDtypeStruct((33, 31), jnp.float32),
    'bias': jax.ShapeDtypeStruct((8,), jnp.float32),
  }
  split = sharding.state_sharding(shapes, mesh_of(8), True, min_size=16)
  part = {k: split[k].shard_shape(v.shape) for k, v in shapes.items()}
  assert part == {'kernel': (3, 2, 8), 'odd': (33, 31), 'bias': (8,)}
  copied = sharding.state_sharding(shapes, mesh_of(8), False, min_size=16)
  assert all(s.is_fully_replicated for s in copied.values())


def linear_method():
  """Loss (w . x - 1)^2 per image: its gradient has a closed form."""

  def loss(params, extra, batch, key):
    del key
    x = batch['image'].reshape(batch['image'].shape[0], -1).astype(jnp.float32)
    value = jnp.mean(jnp.square(x @ params['w'] - 1.0))
    return value, (extra, {'loss': value})

  return Method(
    init=lambda key: ({'w': jnp.full(4, 0.1)}, {}),
    loss=loss,
    after=lambda params, extra, step: extra,
    frozen=lambda params, extra: params,
    features=None,
    validate=None,
    sample=None,
    layers=(),
    timesteps=1,
  )


@pytest.mark.parametrize('accumulate', [1, 2, 4])
@pytest.mark.parametrize('devices', [1, 2])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(accumulate, devices):
  method, tx, mesh = linear_method(), optax.sgd(0.1), mesh_of(devices)
  x = np.random.default_rng(0).integers(0, 3, (8, 2, 2, 1)).astype(np.uint8)
  state = state_.make_state(method, tx, jax.random.key(0))
  state = jax.device_put(state, sharding.replicated(mesh))
  step = jax.jit(state_.make_step(method, tx, accumulate))
  key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
  state, found = step(state, sharding.place({'image': x}, mesh), key)
  flat = x.reshape(8, 4).astype(np.float64)
  residual = flat @ np.full(4, 0.1) - 1.0
  gradient = 2 * residual @ flat / 8
  np.testing.assert_allclose(state.params['w'], 0.1 - 0.1 * gradient, atol=1e-6)
  assert float(found['loss']) == pytest.approx(np.mean(residual**2), abs=1e-6)


@pytest.mark.slow
def test_features_are_the_same_on_any_number_of_devices(on_devices, on_one):
  dataset = data.open_dataset(phantom())
  rows = np.arange(21)  # neither a multiple of the batch nor of the devices
  found = {}
  for count in (1, 8):
    on_devices(count)
    encoder = encoders.load_encoder(str(on_one))
    found[count] = features.extract(encoder, dataset, rows, t=20, batch_size=8)
  assert found[1].keys() == found[8].keys()
  for name, value in found[1].items():
    assert value.shape[0] == 21
    # float16 keeps three decimals.
    np.testing.assert_allclose(
      found[8][name], value, rtol=2e-3, atol=2e-3, err_msg=name
    )


def test_samples_are_the_same_on_any_number_of_devices():
  process = diffusion.make_diffusion(timesteps=20)
  keys = jax.random.split(jax.random.key(0), 8)
  found = {}
  for count in (1, 8):
    mesh = mesh_of(count)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    draw = jax.jit(
      lambda keys: samplers.sample(
        process,
        lambda x, t: jnp.tanh(x) * 0.5 + t[:, None, None, None] / 40,
        keys,
        (4, 4, 1),
        sampler='ddpm',
        steps=20,
      )
    )
    images = draw(jax.device_put(keys, split))
    assert len(images.sharding.device_set) == count
    found[count] = np.asarray(images)
  np.testing.assert_allclose(found[8], found[1], atol=1e-5)


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_every_image_is_drawn_once_an_epoch(processes):
  dataset = data.open_dataset(phantom())
  rows = data.rows(dataset, 'grouped', 'train')[:36]
  streams = [
    train_stream(dataset, rows, 12, seed=3, shard=(i, processes))
    for i in range(processes)
  ]
  orders = []
  for _ in range(2):
    batches = [
      np.concatenate([next(s)['index'] for s in streams]) for _ in range(3)
    ]
    order = np.concatenate(batches)
    assert sorted(order) == sorted(rows)
    orders.append(order)
  assert not np.array_equal(*orders)
  for s in streams:
    s.close()


def test_the_rows_of_a_process_lie_together_in_the_mesh(monkeypatch):
  class Device:
    def __init__(self, process_index, id):
      self.process_index, self.id = process_index, id

  mixed = [Device(i % 2, i) for i in range(8)]
  monkeypatch.setattr(jax, 'devices', lambda: mixed)
  monkeypatch.setattr(sharding, 'Mesh', lambda devices, axes: devices)
  order = [(d.process_index, d.id) for d in sharding.make_mesh()]
  assert order == sorted(order)


def toy_run(tmp_path, monkeypatch, watch=None, **overrides):
  """A run of the linear method on four pixels, validated by `watch`."""
  method = dataclasses.replace(
    linear_method(), init=lambda key: ({'w': jnp.full(256, 1e-5)}, {})
  )
  monkeypatch.setitem(METHODS, 'toy', lambda config, size, channels: method)
  watch = watch or (lambda state, step: {'val_loss': 1.0})
  monkeypatch.setattr(monitor, 'make', lambda *_: watch)
  config = make_config(method='toy', **overrides)
  return train.run(config, str(tmp_path))


def test_a_signal_at_any_line_is_answered_after_a_save(tmp_path, monkeypatch):
  def watch(state, step):
    os.kill(os.getpid(), signal.SIGTERM)  # after the loop asked in this step
    return {'val_loss': 1.0}

  with pytest.raises(SystemExit) as stopped:
    toy_run(tmp_path, monkeypatch, watch, eval_every=3)
  assert stopped.value.code == 143
  assert checkpoint.steps(str(tmp_path / 'checkpoints')) == [4]


def test_the_best_step_and_the_newest_two_are_kept(tmp_path, monkeypatch):
  losses = {1: 5.0, 2: 1.0, 3: 2.0, 4: 3.0, 5: 4.0, 6: 6.0}
  toy_run(
    tmp_path,
    monkeypatch,
    lambda state, step: {'val_loss': losses[step]},
    eval_every=1,
    save_every=1,
  )
  assert checkpoint.steps(str(tmp_path / 'checkpoints')) == [2, 5, 6]


def test_a_batch_that_does_not_divide_is_refused_before_a_compile(
  tmp_path, monkeypatch
):
  with pytest.raises(ValueError, match='12 does not divide over 8 devices'):
    toy_run(tmp_path, monkeypatch, batch_size=12)


def test_results_name_the_devices(tmp_path, monkeypatch):
  toy_run(tmp_path, monkeypatch)
  with open(tmp_path / 'results.json') as f:
    assert json.load(f)['device'].startswith('8 x ')

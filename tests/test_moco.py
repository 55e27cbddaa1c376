import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import baselines
from micdiffrep_jax.methods import moco, two_view, views
from micdiffrep_jax.methods import queue as queues
from micdiffrep_jax.methods.base import to_float
from micdiffrep_jax.pretrain.state import make_state, make_step
from micdiffrep_jax.run import devices


def config(**changes):
  c = baselines.get_config('moco,test')
  c.update_from_flattened_dict({'model.blocks': (1, 1), **changes})
  return c


def images(b=16, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (b, 16, 16, 1)).astype(np.uint8)


@pytest.fixture(scope='module')
def method():
  return moco.make(config(), 16, 1)


@pytest.fixture(scope='module')
def state(method):
  return jax.jit(method.init)(jax.random.key(0))


def test_the_queue_starts_as_random_directions(state):
  queue = np.asarray(state[1]['queue'])
  np.testing.assert_allclose(np.linalg.norm(queue, axis=1), 1, rtol=1e-5)
  assert abs(queue.mean()) < 0.1
  for a, b in zip(
    jax.tree.leaves(state[0]), jax.tree.leaves(state[1]['key']), strict=True
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_keys_come_from_the_average_of_all_parameters_so_far(method):
  # Two steps; what the second one queues tells which weights encoded it.
  tx = optax.sgd(0.5)
  step = jax.jit(make_step(method, tx))
  first = jax.jit(lambda k: make_state(method, tx, k))(jax.random.key(0))
  second, _ = step(first, {'image': images(seed=1)}, jax.random.key(5))
  third, _ = step(second, {'image': images(seed=2)}, jax.random.key(5))
  average = jax.tree.map(
    lambda old, new: 0.9 * old + 0.1 * new, first.params, second.params
  )
  model = two_view.make_embedder(config(), 16, 16, 8, norm='')
  key = jax.random.fold_in(jax.random.key(5), 1)
  _, x_k = jax.jit(lambda k, x: views.two_views(k, to_float(x), 'paper'))(
    key, images(seed=2)
  )
  order = np.asarray(queues.scatter(jnp.arange(16), 2))

  @jax.jit
  def encode(params):
    return two_view.train_pass(
      model, params, second.extra['key_stats'], x_k[order]
    )[0]

  def queued_by(params):
    k = encode(params)
    rows = np.empty((16, 8))
    rows[order] = two_view.unit(k)
    return rows

  have = third.extra['queue'][16:]
  np.testing.assert_allclose(have, queued_by(average), atol=1e-4)
  assert np.abs(have - queued_by(first.params)).max() > 1e-2
  assert np.abs(have - queued_by(second.params)).max() > 1e-2


def test_keys_get_no_gradient(method, state):
  params, extra = state
  batch = {'image': images()}

  @jax.jit
  def gradients(key_params, params):
    return jax.grad(
      lambda k, p: method.loss(
        p, {**extra, 'key': k}, batch, jax.random.key(0)
      )[0],
      argnums=(0, 1),
    )(key_params, params)

  into_key, into_query = gradients(extra['key'], params)
  assert all(not np.asarray(g).any() for g in jax.tree.leaves(into_key))
  assert float(optax.global_norm(into_query)) > 1e-3


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'moco.queue': 40}, '--config.moco.queue'),
    ({'moco.temperature': 0.0}, '--config.moco.temperature'),
    ({'moco.momentum': 1.0}, '--config.moco.momentum'),
    ({'moco.features': 0}, '--config.moco.features'),
    ({'model.groups': 1}, '--config.model.groups'),
    ({'model.groups': 5}, '5 groups'),
    ({'accumulate': 8}, '2 groups'),
    ({'views': 'papers'}, '--config.views'),
  ],
)
def test_bad_settings_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    moco.make(config(**change), 16, 1)


def test_a_queue_needs_four_times_its_images(method):
  method.check(128)
  with pytest.raises(ValueError, match='--config.moco.queue'):
    method.check(127)


def test_validation_counts_each_image_by_its_weight(method, state):
  variables = method.frozen(*state)
  validate = jax.jit(method.validate)
  weights = np.array([1, 1, 0, 0], np.float32)

  def keys():
    return jax.random.split(jax.random.key(0), 4)

  x = images(4)
  one = validate(variables, x, keys(), weights)['loss']
  changed = np.concatenate([x[:2], images(2, seed=9)])
  other = validate(variables, changed, keys(), weights)['loss']
  assert float(one[1]) == 2
  np.testing.assert_allclose(one[0], other[0], rtol=1e-5)


def test_validation_compares_directions_not_lengths(method, state):
  params, extra = state

  def longer(tree):
    return jax.tree_util.tree_map_with_path(
      lambda path, x: 7 * x if "'out'" in jax.tree_util.keystr(path) else x,
      tree,
    )

  found = [
    jax.jit(method.validate)(
      method.frozen(p, {**extra, 'key': k}),
      images(4),  # as above: compiled once
      jax.random.split(jax.random.key(0), 4),
      np.ones(4, np.float32),
    )['loss'][0]
    for p, k in (
      (params, extra['key']),
      (longer(params), extra['key']),
      (params, longer(extra['key'])),
    )
  ]
  np.testing.assert_allclose(found[1:], found[0], rtol=1e-4)
  alike = float(optax.global_norm(longer(params)) / optax.global_norm(params))
  assert alike > 1.01


@pytest.mark.slow
def test_eight_devices_give_the_loss_and_the_queue_of_one(method, state):
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
  f = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
  (one, (extra, _)), gradient = f(
    *state, {'image': images()}, jax.random.key(0)
  )
  whole = devices.replicated(mesh)
  split = devices.place({'image': images()}, mesh)
  key = devices.replicate(jax.random.key(0), mesh)
  (eight, (other, _)), moved = f(*jax.device_put(state, whole), split, key)
  assert len(eight.sharding.device_set) == 8
  # Sums in another order; groups of 8 images span four devices.
  np.testing.assert_allclose(eight, one, rtol=1e-4)
  np.testing.assert_allclose(other['queue'], extra['queue'], atol=1e-4)
  for a, b in zip(
    jax.tree.leaves(gradient), jax.tree.leaves(moved), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-3)

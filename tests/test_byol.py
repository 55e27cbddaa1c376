import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import baselines
from micdiffrep_jax.methods import byol
from micdiffrep_jax.pretrain.state import make_state, make_step


def config(**changes):
  c = baselines.get_config('byol,test')
  c.update_from_flattened_dict({'model.blocks': (1, 1), 'steps': 40, **changes})
  return c


def images(b=16, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (b, 16, 16, 1)).astype(np.uint8)


@pytest.fixture(scope='module')
def method():
  return byol.make(config(), 16, 1)


@pytest.fixture(scope='module')
def state(method):
  return jax.jit(method.init)(jax.random.key(0))


def test_distance_is_that_of_directions():
  p = np.array([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0]], np.float32)
  z = np.array([[0.1, 0.0], [0.0, 5.0], [-2.0, 0.0]], np.float32)
  np.testing.assert_allclose(byol.distance(p, z), [0, 2, 4], atol=1e-5)


def test_tau_rises_from_its_start_to_one():
  found = [byol.decay(jnp.int32(k), 100, 0.96) for k in (0, 25, 50, 100)]
  # 1 - 0.04 (cos + 1) / 2 at cos = 1, sqrt(1/2), 0, -1.
  want = [0.96, 1 - 0.02 * (1 + np.sqrt(0.5)), 0.98, 1.0]
  np.testing.assert_allclose(found, want, atol=1e-6)


@pytest.mark.slow
def test_the_target_moves_after_the_optimizer(method):
  tx = optax.sgd(0.5)
  step = jax.jit(make_step(method, tx))
  first = jax.jit(lambda k: make_state(method, tx, k))(jax.random.key(0))
  second, _ = step(first, {'image': images(seed=1)}, jax.random.key(1))
  third, _ = step(second, {'image': images(seed=2)}, jax.random.key(1))

  def check(before, after, tau):
    for old, moved, new in zip(
      jax.tree.leaves(before.extra['target']),
      jax.tree.leaves(after.extra['target']),
      jax.tree.leaves(after.params['online']),
      strict=True,
    ):
      np.testing.assert_allclose(moved, tau * old + (1 - tau) * new, atol=1e-6)

  check(first, second, 0.99)
  check(second, third, 1 - 0.01 * (np.cos(np.pi / 40) + 1) / 2)
  moved = optax.global_norm(
    jax.tree.map(jnp.subtract, second.extra['target'], first.extra['target'])
  )
  assert float(moved) > 1e-4


def test_the_target_gets_no_gradient(method, state):
  params, extra = state
  batch = {'image': images()}
  gradient = jax.jit(jax.grad(lambda *a: method.loss(*a)[0], argnums=(0, 1)))
  into_params, into_extra = gradient(params, extra, batch, jax.random.key(0))
  assert all(
    not np.asarray(g).any() for g in jax.tree.leaves(into_extra['target'])
  )
  for part in ('online', 'predictor'):
    assert float(optax.global_norm(into_params[part])) > 1e-4


def test_the_loss_is_symmetric_and_bounded(method, state):
  # Random predictions are nearly orthogonal to their targets: 2 a view.
  loss, (_, metrics) = jax.jit(method.loss)(
    *state, {'image': images()}, jax.random.key(0)
  )
  assert 0 < float(loss) < 8
  assert set(metrics) == set(method.metrics)


def test_features_of_an_image_ignore_its_batch(method, state):
  params, extra = state
  stats = jax.tree.map(lambda x: x - 0.1, extra['stats'])
  variables = method.frozen(params, {**extra, 'stats': stats})
  x = images(4)
  f = jax.jit(method.features)
  keys = jax.random.split(jax.random.key(0), 4)
  whole = f(variables, x, keys, 0)
  changed = np.where(np.arange(4)[:, None, None, None] < 1, x, 0)
  keys = jax.random.split(jax.random.key(1), 4)
  other = f(variables, changed.astype(np.uint8), keys, 0)
  assert tuple(whole) == method.layers
  for name in method.layers:
    np.testing.assert_allclose(whole[name][0], other[name][0], atol=1e-5)
    assert np.abs(np.asarray(whole[name][1] - other[name][1])).max() > 1e-3


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'byol.tau': 1.0}, '--config.byol.tau'),
    ({'byol.hidden': 0}, '--config.byol.hidden'),
    ({'model.stem': 'stride8'}, '--config.model.stem'),
    ({'model.groups': 3}, '3 groups'),
  ],
)
def test_bad_settings_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    byol.make(config(**change), 16, 1)

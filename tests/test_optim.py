import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from micdiffrep_jax.pretrain import optim


def config(**fields):
  return ConfigDict(
    {
      'name': 'adam',
      'lr': 0.1,
      'schedule': 'linear',
      'warmup_steps': 0,
      'b1': 0.9,
      'b2': 0.999,
      'weight_decay': 0.0,
      'clip_norm': 0.0,
      **fields,
    }
  )


def test_linear_decay_ends_at_zero():
  schedule = optim.make_schedule(config(), 100)
  np.testing.assert_allclose(
    [schedule(0), schedule(50), schedule(100)], [0.1, 0.05, 0.0], atol=1e-7
  )


def test_warm_up_comes_first():
  schedule = optim.make_schedule(
    config(schedule='cosine', warmup_steps=10), 110
  )
  np.testing.assert_allclose(
    [schedule(0), schedule(5), schedule(10), schedule(60), schedule(110)],
    [0.0, 0.05, 0.1, 0.05, 0.0],
    atol=1e-7,
  )


def test_clipping_bounds_the_update():
  tx = optim.make_optimizer(config(name='sgd', b1=0.0, clip_norm=1.0), 10)
  params = {'w': jnp.zeros(2)}
  update, _ = tx.update({'w': jnp.array([30.0, 40.0])}, tx.init(params), params)
  np.testing.assert_allclose(update['w'], [-0.06, -0.08], rtol=1e-5)


def test_sgd_decays_every_weight():
  tx = optim.make_optimizer(
    config(name='sgd', b1=0.0, schedule='constant', weight_decay=0.5), 10
  )
  params = {'w': jnp.ones((1, 1)), 'b': jnp.full(1, 2.0)}
  zeros = {'w': jnp.zeros((1, 1)), 'b': jnp.zeros(1)}
  update, _ = tx.update(zeros, tx.init(params), params)
  np.testing.assert_allclose(update['w'], [[-0.05]], rtol=1e-5)
  np.testing.assert_allclose(update['b'], [-0.1], rtol=1e-5)


def test_lars_is_its_loop_under_a_warm_up():
  fields = config(
    name='lars', lr=2.0, schedule='cosine', warmup_steps=5, weight_decay=0.1
  )
  tx = optim.make_optimizer(fields, 20)
  rng = np.random.default_rng(0)
  params = {'w': rng.normal(size=(3, 2)), 'b': rng.normal(size=2)}
  params = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
  want = {k: np.asarray(v, np.float64) for k, v in params.items()}
  velocity = {k: np.zeros_like(v) for k, v in want.items()}
  state = tx.init(params)
  for step in range(20):
    gradient = {k: rng.normal(size=v.shape) for k, v in want.items()}
    g = {k: jnp.asarray(v, jnp.float32) for k, v in gradient.items()}
    updates, state = tx.update(g, state, params)
    params = {k: v + updates[k] for k, v in params.items()}
    if step < 5:
      rate = 2.0 * step / 5
    else:
      rate = 1.0 + np.cos(np.pi * (step - 5) / 15)
    for k in want:
      move = gradient[k]
      if k == 'w':
        move = move + 0.1 * want[k]
        norms = np.linalg.norm(want[k]) / np.linalg.norm(move)
        move = 1e-3 * norms * move
      velocity[k] = 0.9 * velocity[k] + move
      want[k] = want[k] - rate * velocity[k]
  for k in want:
    np.testing.assert_allclose(params[k], want[k], rtol=1e-4, atol=1e-5)


def test_weight_decay_pulls_towards_zero_without_a_gradient():
  tx = optim.make_optimizer(
    config(name='adamw', schedule='constant', weight_decay=0.5), 10
  )
  params = {'w': jnp.ones((1, 1)), 'bias': jnp.ones(1)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  update, _ = tx.update(zeros, tx.init(params), params)
  np.testing.assert_allclose(update['w'], [[-0.05]], rtol=1e-5)
  assert update['bias'] == 0


def test_muon_steps_along_the_nearest_orthogonal_matrix():
  """With one gradient the step is U V of its singular value decomposition.

  Scaled to 0.2 root mean square, as far as five Newton-Schulz steps go.
  """
  tx = optim.make_optimizer(config(name='muon', schedule='constant'), 10)
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(3, 3, 8, 24)).astype(np.float32)
  params = {
    'conv': jnp.zeros(kernel.shape),
    'bias': jnp.zeros(24),
    'out': jnp.zeros((3, 3, 8, 1)),
  }
  grads = {
    'conv': jnp.asarray(kernel),
    'bias': jnp.full(24, 3.0),
    'out': jnp.full((3, 3, 8, 1), -2.0),
  }
  update, _ = tx.update(grads, tx.init(params), params)
  u, _, v = np.linalg.svd(kernel.reshape(72, 24), full_matrices=False)
  step = -np.asarray(update['conv']).reshape(72, 24) / 0.1
  want = 0.2 * np.sqrt(72) * (u @ v)
  assert np.sqrt(np.square(step).mean()) == pytest.approx(0.2, rel=0.3)
  cosine = (step * want).sum() / np.linalg.norm(step) / np.linalg.norm(want)
  assert cosine > 0.97
  # The rest is Adam's, with Nesterov's momentum too.
  adam = optax.adam(0.1, 0.9, 0.999, nesterov=True)
  rest = {'bias': grads['bias'], 'out': grads['out']}
  want, _ = adam.update(rest, adam.init(rest))
  for name, value in want.items():
    np.testing.assert_allclose(update[name], value, rtol=1e-4)


def test_muon_descends_a_least_squares_problem_and_decays():
  tx = optim.make_optimizer(config(name='muon', lr=0.2, schedule='linear'), 200)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(64, 16)), jnp.float32)
  y = x @ jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)

  def loss(params):
    return jnp.square(x @ params['w'] - y).mean()

  params = {'w': jnp.zeros((16, 8))}
  state, first = tx.init(params), float(loss(params))

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return jax.tree.map(jnp.add, params, updates), state

  for _ in range(200):
    params, state = step(params, state)
  assert float(loss(params)) < 1e-3 * first
  tx = optim.make_optimizer(
    config(name='muon', schedule='constant', weight_decay=0.5), 10
  )
  weights = {'w': jnp.ones((16, 8)), 'b': jnp.ones(8)}
  zeros = jax.tree.map(jnp.zeros_like, weights)
  update, _ = tx.update(zeros, tx.init(weights), weights)
  np.testing.assert_allclose(update['w'], -0.05, rtol=1e-4)
  assert not update['b'].any()


@pytest.mark.parametrize('field', ['name', 'schedule', 'clip_norm'])
def test_bad_fields_name_their_flag(field):
  bad = {'name': 'adm', 'schedule': 'liner', 'clip_norm': -1.0}[field]
  with pytest.raises(ValueError, match=f'--config.optim.{field}'):
    optim.make_optimizer(config(**{field: bad}), 10)

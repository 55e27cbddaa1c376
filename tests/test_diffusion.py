import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micdiffrep_jax.diffusion.process import (
  check_timesteps,
  loss_weight,
  make_diffusion,
  predict,
  q_sample,
  training_target,
)

TARGETS = ('eps', 'x0', 'v')
SCHEDULES = ('linear', 'cosine')


def _images(seed, shape=(8, 4, 4, 1), low=-1.0, high=1.0):
  return np.random.default_rng(seed).uniform(low, high, shape).astype('f4')


def _noise(seed, shape=(8, 4, 4, 1)):
  return np.random.default_rng(seed).standard_normal(shape).astype('f4')


def test_linear_alpha_bar_is_ddpms():
  d = make_diffusion()
  # The first step keeps 1 - 1e-4; the last value is the product over 1000
  # steps, taken as a sum of logarithms.
  beta = 1e-4 + (2e-2 - 1e-4) * np.arange(1000) / 999
  assert d.alpha_bar.dtype == np.float64
  np.testing.assert_allclose(d.alpha_bar[0], 0.9999, rtol=1e-12)
  np.testing.assert_allclose(
    d.alpha_bar[-1], np.exp(np.log1p(-beta).sum()), rtol=1e-10
  )


def test_cosine_alpha_bar_follows_its_closed_form():
  d = make_diffusion('cosine', timesteps=1000)
  t = np.array([0, 250, 500, 900])
  f = np.cos(((t + 1) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
  f0 = np.cos(0.008 / 1.008 * np.pi / 2) ** 2
  np.testing.assert_allclose(d.alpha_bar[t], f / f0, rtol=1e-9)
  assert d.alpha_bar[-1] > 0  # the cap on beta keeps the last step invertible


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_q_sample_moments_match_the_iterated_chain(schedule):
  d = make_diffusion(schedule, timesteps=20)
  alpha_bar = np.concatenate([[1.0], d.alpha_bar])
  beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
  mean, variance = 0.7, 0.0
  for step in range(12):
    mean = mean * np.sqrt(1 - beta[step])
    variance = variance * (1 - beta[step]) + beta[step]
  x0 = jnp.full((200_000, 1), 0.7)
  t = jnp.full((200_000,), 11, jnp.int32)
  eps = jax.random.normal(jax.random.key(0), x0.shape)
  x_t = np.asarray(q_sample(d, x0, t, eps), np.float64)
  # Four standard errors of a mean and of a variance over 200,000 draws.
  assert abs(x_t.mean() - mean) < 4 * np.sqrt(variance / 200_000)
  assert abs(x_t.var() - variance) < 4 * variance * np.sqrt(2 / 200_000)


@pytest.mark.parametrize('schedule', SCHEDULES)
@pytest.mark.parametrize('target', TARGETS)
def test_predict_undoes_q_sample(schedule, target):
  d = make_diffusion(schedule, target=target)
  x0, eps = _images(0), _noise(1)
  # Not the last cosine steps: dividing by their alpha loses all of float32.
  t = jnp.array([0, 1, 10, 100, 300, 500, 700, 900], jnp.int32)
  x_t = q_sample(d, x0, t, eps)
  x0_hat, eps_hat = predict(
    d, training_target(d, x0, t, eps), x_t, t, clip=False
  )
  np.testing.assert_allclose(x0_hat, x0, atol=2e-5)
  np.testing.assert_allclose(eps_hat, eps, atol=5e-5)


@pytest.mark.parametrize('target', TARGETS)
def test_targets_say_the_same_of_one_network(target):
  # An arbitrary eps, rewritten as each target, must give the same pair.
  d_eps, d = make_diffusion(), make_diffusion(target=target)
  x_t, eps = _noise(2), _noise(3)
  t = jnp.array([0, 5, 50, 100, 200, 300, 400, 600], jnp.int32)
  alpha_bar = d.alpha_bar[np.asarray(t)][:, None, None, None]
  x0 = (x_t - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar)
  output = {
    'eps': eps,
    'x0': x0,
    'v': (np.sqrt(alpha_bar) * x_t - x0) / np.sqrt(1 - alpha_bar),
  }[target].astype('f4')
  for clip in (False, True):
    for got, want in zip(
      predict(d, jnp.asarray(output), x_t, t, clip),
      predict(d_eps, eps, x_t, t, clip),
    ):
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize('target', TARGETS)
def test_clipped_pair_still_makes_x_t(target):
  d = make_diffusion(target=target)
  x_t, t = 3 * _noise(4), jnp.arange(8, dtype=jnp.int32) * 140
  x0, eps = predict(d, 3 * _noise(5), x_t, t, clip=True)
  assert np.abs(x0).max() <= 1
  alpha_bar = d.alpha_bar[np.asarray(t)][:, None, None, None]
  np.testing.assert_allclose(
    np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps, x_t, atol=1e-5
  )


def test_predict_under_jit_and_bfloat16_is_float32():
  # x0: the one target whose output is returned as it came.
  d = make_diffusion(target='x0')
  x_t, t = _noise(6), jnp.zeros(8, jnp.int32)
  jitted = jax.jit(lambda out, x, t: predict(d, out, x, t, clip=False))
  for array in jitted(jnp.ones((8, 4, 4, 1), jnp.bfloat16), x_t, t):
    assert array.dtype == jnp.float32


@pytest.mark.parametrize('target', TARGETS)
def test_min_snr_bounds_the_weight_of_the_x0_error(target):
  d = make_diffusion(target=target)
  t = jnp.array([0, 50, 100, 400, 999], jnp.int32)
  alpha_bar = d.alpha_bar[np.asarray(t)]
  snr = alpha_bar / (1 - alpha_bar)
  # ||target error||^2 = factor ||x0 error||^2, for a fixed x_t.
  factor = {'eps': snr, 'x0': 1, 'v': 1 / (1 - alpha_bar)}[target]
  weight = np.asarray(loss_weight(d, t, 'min_snr', 5.0)) * factor
  np.testing.assert_allclose(weight, np.minimum(snr, 5.0), rtol=1e-5)
  np.testing.assert_array_equal(loss_weight(d, t), np.ones(5))


def test_unknown_names_and_ranges_raise():
  with pytest.raises(ValueError, match=r"Did you mean 'cosine'.*schedule"):
    make_diffusion('cosin')
  with pytest.raises(ValueError, match=r"Unknown target 'epsilon'"):
    make_diffusion(target='epsilon')
  with pytest.raises(ValueError, match='timesteps is 0'):
    make_diffusion(timesteps=0)
  with pytest.raises(ValueError, match=r'beta_start=0\.5'):
    make_diffusion(beta_start=0.5)
  with pytest.raises(ValueError, match='Unknown loss weighting'):
    loss_weight(make_diffusion(), jnp.zeros(1, jnp.int32), 'minsnr')
  check_timesteps([0, 999], 1000)
  with pytest.raises(ValueError, match=r'\[-1, 1000\].*--config.t'):
    check_timesteps([-1, 3, 1000], 1000, '--config.t')

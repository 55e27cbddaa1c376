import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micdiffrep_jax.diffusion import inversion
from micdiffrep_jax.diffusion.process import (
  alpha_sigma,
  make_diffusion,
  training_target,
)
from micdiffrep_jax.diffusion.samplers import follow, make_plan, single

M, S = 0.2, 0.3


def _gaussian(d):
  """The best denoiser for data N(M, S^2); see test_samplers."""

  def denoise(x_t, t):
    alpha, sigma = alpha_sigma(d, t, x_t)
    eps = sigma * (x_t - alpha * M) / (alpha**2 * S**2 + sigma**2)
    return training_target(d, (x_t - sigma * eps) / alpha, t, eps)

  return denoise


def _images(seed=0, n=4):
  return jnp.asarray(
    np.random.default_rng(seed).normal(M, S, (n, 8, 8, 1)).astype('f4')
  )


@pytest.mark.parametrize('target', ['eps', 'x0', 'v'])
def test_inversion_finds_the_noise_of_the_exact_flow(target):
  d = make_diffusion(target=target)
  x = _images()
  noise = inversion.invert(d, _gaussian(d), x, steps=500, clip=False)
  ab = d.alpha_bar[-1]
  want = np.sqrt(ab) * M + np.sqrt(ab * S**2 + 1 - ab) * (x - M) / S
  # What 500 first-order steps cost; it halves with twice as many.
  np.testing.assert_allclose(noise, want, rtol=0.015, atol=0.01)


@pytest.mark.parametrize('steps', [10, 50])
def test_sampling_gives_an_inverted_image_back(steps):
  d = make_diffusion()

  def denoise(x, t):  # not the best one, and bent, so that refining matters
    return _gaussian(d)(x, t) + 0.1 * jnp.sin(3 * x)

  x = _images()

  def error(refine):
    noise = inversion.invert(d, denoise, x, steps, refine, clip=False)
    plan = single(make_plan(d, 'ddim', steps))
    return np.abs(follow(d, denoise, noise, plan, clip=False) - x).max()

  # Each solution is nearer by a factor, the contraction of one step.
  assert error(8) < 0.02
  assert error(8) < error(2) < error(0)


def test_slerp_keeps_the_length_and_the_ends():
  a, b = (jax.random.normal(jax.random.key(i), (3, 16, 16, 1)) for i in (0, 1))
  np.testing.assert_allclose(inversion.slerp(a, b, 0.0), a, atol=1e-5)
  np.testing.assert_allclose(inversion.slerp(a, b, 1.0), b, atol=1e-5)
  length = np.sqrt(
    (np.asarray(inversion.slerp(a, b, 0.5)) ** 2).mean((1, 2, 3))
  )
  # Unit noise stays unit noise: 256 pixels, four standard errors.
  np.testing.assert_allclose(length, 1, atol=4 / np.sqrt(2 * 256))
  np.testing.assert_allclose(inversion.slerp(a, a, 0.3), a, atol=1e-3)


def test_interpolation_runs_from_one_image_to_the_other():
  d = make_diffusion()
  a, b = _images(0, 2).clip(-1, 1), _images(1, 2).clip(-1, 1)
  x = np.asarray(inversion.interpolate(d, _gaussian(d), a, b, 5, steps=50))
  assert x.shape == (5, 2, 8, 8, 1)
  # Inversion's last steps lose a little; see the round trip above.
  np.testing.assert_allclose(x[0], a, atol=0.05)
  np.testing.assert_allclose(x[-1], b, atol=0.05)
  to_a = np.abs(x - np.asarray(a)).mean((1, 2, 3, 4))
  assert (np.diff(to_a) > 0).all()


def test_reconstruction_knows_less_of_noisier_images():
  d = make_diffusion()
  x = _images(0, 8)
  noise = jax.random.normal(jax.random.key(0), x.shape)
  errors = []
  for t in (5, 100, 500, 999):
    x_t, guess, drawn = inversion.reconstruct(
      d, _gaussian(d), x, noise, inversion.level_plan(d, t)
    )
    ab = d.alpha_bar[t]
    want = M + np.sqrt(ab) * S**2 / (ab * S**2 + 1 - ab) * (
      x_t - np.sqrt(ab) * M
    )
    np.testing.assert_allclose(guess, np.clip(want, -1, 1), atol=1e-3)
    assert drawn.shape == x.shape
    errors.append(float(np.abs(guess - x).mean()))
  assert errors == sorted(errors)
  assert errors[0] < 0.05 < 0.2 < errors[-1]

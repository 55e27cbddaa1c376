"""For Gaussian data N(m, s^2) the best prediction of eps is known exactly:
sigma (x_t - alpha m) / (alpha^2 s^2 + sigma^2), and so is where the ODE that
DDIM and DPM-Solver++ follow takes each x_t:
m + s (x_t - alpha m) / sqrt(alpha^2 s^2 + sigma^2)."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from micdiffrep_jax.diffusion.process import (
  alpha_sigma,
  make_diffusion,
  training_target,
)
from micdiffrep_jax.diffusion.samplers import (
  image_keys,
  make_plan,
  make_sampler,
  sample,
  spread,
)
from micdiffrep_jax.run.devices import make_mesh

TARGETS = ('eps', 'x0', 'v')
M, S = 0.2, 0.3
SHAPE = (32, 32, 1)


def _gaussian(d):
  def denoise(x_t, t):
    alpha, sigma = alpha_sigma(d, t, x_t)
    eps = sigma * (x_t - alpha * M) / (alpha**2 * S**2 + sigma**2)
    return training_target(d, (x_t - sigma * eps) / alpha, t, eps)

  return denoise


def _flow(d, x, t):
  ab = d.alpha_bar[t]
  return M + S * (x - np.sqrt(ab) * M) / np.sqrt(ab * S**2 + 1 - ab)


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize(
  ('sampler', 'steps', 'options'),
  [
    ('ddpm', 1000, {'variance': 'small'}),
    pytest.param('ddpm', 1000, {'variance': 'large'}, marks=pytest.mark.slow),
    pytest.param('ddim', 1000, {'eta': 0.5}, marks=pytest.mark.slow),
    ('ddim', 1000, {}),
    ('dpm_solver', 100, {}),
  ],
  ids=['ddpm_small', 'ddpm_large', 'ddim_eta', 'ddim', 'dpm_solver'],
)
def test_gaussian_data_come_back_with_their_mean_and_variance(
  target, sampler, steps, options
):
  d = make_diffusion(target=target)
  x = sample(
    d,
    _gaussian(d),
    image_keys(0, range(16)),
    SHAPE,
    clip=False,
    sampler=sampler,
    steps=steps,
    **options,
  )
  x = np.asarray(x, np.float64)
  # 16,384 draws: standard errors are 0.0023 of the mean, 1.1 % of the variance.
  # The two DDPM variances bracket the truth and miss by up to 2 % themselves.
  assert abs(x.mean() - M) < 0.008
  assert abs(x.var() / S**2 - 1) < 0.04


@pytest.mark.parametrize('schedule', ['linear', 'cosine'])
@pytest.mark.parametrize(('sampler', 'order'), [('ddim', 1), ('dpm_solver', 2)])
def test_error_against_the_exact_flow_falls_with_the_order(
  schedule, sampler, order
):
  d = make_diffusion(schedule)
  # From 700 rather than 999: the last cosine steps are far too long for an
  # order to show.
  t = 700
  start = jax.random.normal(jax.random.key(1), (2, *SHAPE))

  def error(steps):
    x = sample(
      d,
      _gaussian(d),
      image_keys(0, range(2)),
      SHAPE,
      clip=False,
      start=start,
      t_start=t,
      sampler=sampler,
      steps=steps,
    )
    return np.abs(np.asarray(x) - _flow(d, np.asarray(start), t)).mean()

  coarse, fine = error(25), error(100)
  assert coarse / fine > 0.6 * 4**order
  assert fine < {1: 0.03, 2: 0.002}[order]


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('sampler', ['ddpm', 'ddim', 'dpm_solver'])
def test_an_oracle_denoiser_gives_back_x0(target, sampler):
  d = make_diffusion(target=target, timesteps=50)
  x0 = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype('f4')

  def oracle(x_t, t):
    alpha, sigma = alpha_sigma(d, t, x_t)
    return training_target(d, x0, t, (x_t - alpha * x0) / sigma)

  x = sample(
    d, oracle, image_keys(0, range(4)), (8, 8, 1), sampler=sampler, steps=0
  )
  np.testing.assert_allclose(x, x0, atol=2e-4)


@pytest.mark.parametrize('sampler', ['ddpm', 'ddim', 'dpm_solver'])
def test_noise_in_step_t_ends_with_the_marginal_of_the_next(sampler):
  # With x0 known, x_next must be distributed as q(x_next | x0).
  d = make_diffusion()
  plan = make_plan(d, sampler, 10, eta=0.7 if sampler == 'ddim' else 0.0)
  ab = d.alpha_bar[plan.t]
  ab_next = np.append(ab[1:], 1)
  mean = plan.of_x * np.sqrt(ab) + plan.of_x0 + plan.of_x0_before
  variance = plan.of_x**2 * (1 - ab) + plan.of_noise**2
  np.testing.assert_allclose(mean, np.sqrt(ab_next), rtol=1e-9)
  np.testing.assert_allclose(variance, 1 - ab_next, rtol=1e-9, atol=1e-15)


def test_spread_covers_the_steps_as_named():
  ab = make_diffusion().alpha_bar
  assert spread(ab, 4).tolist() == [999, 749, 499, 249]
  assert spread(ab, 4, 'leading').tolist() == [750, 500, 250, 0]
  # Half-way in log-SNR between t = 0 and t = 999.
  log_snr = np.log(ab / (1 - ab))
  middle = np.abs(log_snr - (log_snr[0] + log_snr[-1]) / 2).argmin()
  assert spread(ab, 3, 'log_snr').tolist() == [999, middle, 0]


@pytest.mark.parametrize('spacing', ['trailing', 'leading', 'log_snr'])
@pytest.mark.parametrize('schedule', ['linear', 'cosine'])
def test_spread_gives_distinct_falling_steps_for_any_number(schedule, spacing):
  for total in (1, 2, 10, 100):
    ab = make_diffusion(schedule, timesteps=total).alpha_bar
    for n in {1, min(3, total), total // 2 + 1, max(total - 1, 1), total}:
      t = spread(ab, n, spacing)
      assert len(t) == n
      assert (np.diff(t) < 0).all()
      assert t.min() >= 0
      assert t.max() < total
    np.testing.assert_array_equal(
      spread(ab, total, spacing), np.arange(total)[::-1]
    )


def test_log_snr_steps_keep_fine_detail_that_equal_ones_lose():
  d, fine = make_diffusion(), 0.05

  def denoise(x_t, t):
    alpha, sigma = alpha_sigma(d, t, x_t)
    return sigma * (x_t - alpha * M) / (alpha**2 * fine**2 + sigma**2)

  def lost(spacing):
    x = sample(
      d,
      denoise,
      image_keys(0, range(16)),
      SHAPE,
      clip=False,
      sampler='dpm_solver',
      spacing=spacing,
    )
    return 1 - np.var(np.asarray(x, np.float64)) / fine**2

  # 16,384 draws: a standard error of 1.1 %.
  assert abs(lost('log_snr')) < 0.06
  assert lost('trailing') > 0.5
  assert abs(lost('')) < 0.06  # the default of this sampler


def _noisy_field(variables, x_t, t):
  """A stand-in network: nonlinear, and each image apart from the others."""
  return jnp.tanh(variables * x_t + 1e-3 * t[:, None, None, None])


def test_an_image_depends_on_its_number_alone_for_any_batch_or_device_count():
  d = make_diffusion(timesteps=20)
  run = make_sampler(d, _noisy_field, (4, 4, 1), sampler='ddpm')
  # Eight devices in conftest: one image on each.
  spread_out = NamedSharding(make_mesh(), PartitionSpec('data'))
  whole = run(0.5, jax.device_put(image_keys(3, range(8)), spread_out))
  assert len(whole.sharding.device_set) == 8
  whole = np.asarray(whole)
  for rows in ([5], [7, 0, 2]):
    part = np.asarray(run(0.5, image_keys(3, rows)))
    np.testing.assert_allclose(part, whole[rows], atol=1e-6)
  other = np.asarray(run(0.5, image_keys(4, range(8))))
  assert np.abs(other - whole).min(axis=(1, 2, 3)).max() > 0
  assert len(np.unique(whole.round(5), axis=0)) == 8


@pytest.mark.parametrize('steps', [20, 27, 50])
def test_a_watched_loop_in_pieces_equals_the_whole_one(steps):
  d = make_diffusion(timesteps=60)
  keys = image_keys(0, range(2))
  options = {'sampler': 'ddim', 'eta': 0.5, 'steps': steps, 'frames': 3}
  run = make_sampler(d, _noisy_field, (4, 4, 1), **options)
  ticks = []
  x, frames = run(0.5, keys, tick=ticks.append)
  assert sum(ticks) == steps
  assert len(ticks) > 10
  whole_x, whole_frames = sample(
    d, lambda x, t: _noisy_field(0.5, x, t), keys, (4, 4, 1), **options
  )
  np.testing.assert_allclose(x, whole_x, atol=1e-6)
  np.testing.assert_allclose(frames, whole_frames, atol=1e-6)
  np.testing.assert_allclose(frames[-1], x, atol=1e-6)
  assert frames.shape == (3, 2, 4, 4, 1)


def test_start_survives_and_decides_the_image():
  d = make_diffusion(timesteps=10)
  start = jnp.full((2, 4, 4, 1), 0.3)
  run = make_sampler(d, _noisy_field, (4, 4, 1), sampler='ddim')
  a = run(0.5, image_keys(0, range(2)), start)
  b = run(0.5, image_keys(9, range(2)), start)
  np.testing.assert_array_equal(a, b)
  assert float(start[0, 0, 0, 0]) == pytest.approx(0.3)


def test_clipped_samples_stay_in_range():
  d = make_diffusion(timesteps=30)
  for sampler in ('ddpm', 'ddim', 'dpm_solver'):
    x = sample(
      d,
      lambda x, t: 4 * jnp.sin(9 * x),
      image_keys(0, range(2)),
      (4, 4, 1),
      sampler=sampler,
    )
    assert np.abs(x).max() <= 1


def test_what_cannot_be_sampled_raises():
  d = make_diffusion(timesteps=100)
  for options, message in [
    ({'sampler': 'dpm'}, r"Unknown sampler 'dpm'.*--config\.sampler\.name"),
    ({'steps': 101}, r'101 sampling steps.*\[1, 100\]'),
    ({'steps': -1}, r'-1 sampling steps'),
    ({'eta': 1.5}, r'eta=1\.5'),
    ({'sampler': 'ddpm', 'eta': 0.5}, r'only ddim takes an eta'),
    ({'spacing': 'linspace'}, "Unknown spacing 'linspace'"),
    ({'variance': 'learned'}, 'Unknown variance'),
    ({'t_start': 100}, r'\[100\] are outside'),
  ]:
    with pytest.raises(ValueError, match=message):
      make_plan(d, **options)
  with pytest.raises(ValueError, match='60 predictions'):
    make_sampler(d, _noisy_field, (4, 4, 1), frames=60)

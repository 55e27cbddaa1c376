"""Parity with diffusers: same inputs, same outputs, single steps. Theirs gets
our alpha_bar and float64 inputs: its own table is a float32 product of 1000
factors, whose rounding alone moves a first step by 1e-4."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micdiffrep_jax.diffusion.process import (
  alpha_sigma,
  make_diffusion,
  predict,
  training_target,
)
from micdiffrep_jax.diffusion.samplers import make_plan, step

pytestmark = pytest.mark.needs('torch', 'diffusers')
TARGETS = ('eps', 'x0', 'v')


def _theirs(name, d, schedule, steps, **options):
  import diffusers
  import torch

  names = {'eps': 'epsilon', 'x0': 'sample', 'v': 'v_prediction'}
  theirs = getattr(diffusers, name)(
    num_train_timesteps=d.timesteps,
    beta_schedule={'linear': 'linear', 'cosine': 'squaredcos_cap_v2'}[schedule],
    prediction_type=names[d.target],
    **options,
  )
  log_ratio = np.log(theirs.alphas_cumprod.numpy() / d.alpha_bar)
  assert np.abs(log_ratio[:-1]).max() < 1e-3
  ab = torch.from_numpy(d.alpha_bar)
  theirs.alphas_cumprod = ab
  theirs.betas = 1 - ab / torch.cat([torch.ones(1), ab[:-1]])
  theirs.alphas = 1 - theirs.betas
  theirs.set_timesteps(steps)
  return theirs, lambda x: torch.from_numpy(np.array(x, np.float64))


def _output(seed, d, x_t, t):
  """What a network might give for x_t: the target of some x0."""
  x0 = np.random.default_rng(seed).uniform(-1.1, 1.1, x_t.shape)
  alpha, sigma = alpha_sigma(d, t, x_t)
  return np.asarray(training_target(d, x0, t, (x_t - alpha * x0) / sigma))


def _tolerance(plan, d, i):
  # 1e-5, and what float32 leaves of x_t - sigma eps when divided by alpha.
  return 1e-5 + 5e-7 * abs(plan.of_x0[i]) / np.sqrt(d.alpha_bar[plan.t[i]])


@pytest.mark.parametrize('schedule', ['linear', 'cosine'])
@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize(
  ('sampler', 'steps', 'options'),
  [
    ('ddpm', 1000, {'variance': 'small'}),
    ('ddpm', 1000, {'variance': 'large'}),
    ('ddim', 50, {'spacing': 'trailing'}),
    ('ddim', 50, {'spacing': 'leading'}),
    ('ddim', 20, {'spacing': 'trailing', 'eta': 0.6}),
  ],
  ids=['ddpm_small', 'ddpm_large', 'ddim', 'ddim_leading', 'ddim_eta'],
)
def test_ddpm_and_ddim_steps_equal_diffusers(
  schedule, target, sampler, steps, options, monkeypatch
):
  d = make_diffusion(schedule, target=target)
  plan = make_plan(d, sampler, steps, **options)
  if sampler == 'ddpm':
    name, extra = (
      'DDPMScheduler',
      {'variance_type': f'fixed_{options["variance"]}'},
    )
  else:
    name, extra = 'DDIMScheduler', {'timestep_spacing': options['spacing']}
  theirs, tensor = _theirs(name, d, schedule, steps, clip_sample=True, **extra)
  np.testing.assert_array_equal(plan.t, theirs.timesteps.numpy())
  rng = np.random.default_rng(0)
  for i in (0, steps // 2, steps - 1):
    x, noise = rng.standard_normal((2, 2, 4, 4, 1)).astype('f4')
    t = jnp.full(2, plan.t[i], jnp.int32)
    output = _output(i, d, x, t)
    x0, _ = predict(d, jnp.asarray(output), x, t)
    row = jax.tree.map(lambda a, i=i: np.float32(a[i]), plan)
    ours = step(row, x, x0, jnp.zeros_like(x), noise)
    drawn = tensor(noise)
    if sampler == 'ddpm':
      monkeypatch.setattr(
        'diffusers.schedulers.scheduling_ddpm.randn_tensor',
        lambda *_, z=drawn, **__: z,
      )
      keywords = {}
    else:
      keywords = {
        'eta': options.get('eta', 0.0),
        'use_clipped_model_output': True,
        'variance_noise': drawn,
      }
    got = theirs.step(tensor(output), int(plan.t[i]), tensor(x), **keywords)
    np.testing.assert_allclose(
      ours, got.prev_sample.numpy(), atol=_tolerance(plan, d, i), rtol=0
    )


@pytest.mark.parametrize('schedule', ['linear', 'cosine'])
@pytest.mark.parametrize('target', TARGETS)
def test_dpm_solver_steps_equal_diffusers(schedule, target):
  steps = 20
  d = make_diffusion(schedule, target=target)
  plan = make_plan(d, 'dpm_solver', steps, spacing='trailing')
  theirs, tensor = _theirs(
    'DPMSolverMultistepScheduler',
    d,
    schedule,
    steps,
    solver_order=2,
    timestep_spacing='trailing',
  )
  np.testing.assert_array_equal(plan.t, theirs.timesteps.numpy())
  x = np.random.default_rng(0).standard_normal((2, 4, 4, 1)).astype('f4')
  x0_before = jnp.zeros_like(x)
  tolerance = 0.0
  for i in range(steps):
    t = jnp.full(2, plan.t[i], jnp.int32)
    output = _output(i, d, x, t)
    x0, _ = predict(d, jnp.asarray(output), x, t, clip=False)
    row = jax.tree.map(lambda a, i=i: np.float32(a[i]), plan)
    ours = step(row, x, x0, x0_before)
    got = theirs.step(tensor(output), int(plan.t[i]), tensor(x))
    # This step reads the prediction before it too, and so inherits its error.
    before, tolerance = tolerance, _tolerance(plan, d, i)
    np.testing.assert_allclose(
      ours, got.prev_sample.numpy(), atol=tolerance + before, rtol=0
    )
    x, x0_before = got.prev_sample.numpy().astype('f4'), x0

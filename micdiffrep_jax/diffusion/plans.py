"""Tables of sampling steps, in float64 numpy.

Given the prediction x0_hat, each step of DDPM, DDIM and DPM-Solver++ (2M) is
linear in x_t, x0_hat, the x0_hat before it and fresh noise. So a sampler is a
table of coefficients, and one loop runs them all. eps never appears: where
x0_hat was clipped, the coefficients already hold the eps that belongs to it.

Dimension letters: n steps; `ab` is alpha_bar at t, `ab_next` where a step ends.
"""

from typing import NamedTuple

import jax
import numpy as np

from micdiffrep_jax.diffusion.process import Diffusion, check_timesteps
from micdiffrep_jax.run.checks import lookup


class Plan(NamedTuple):
  """One row per step, noisiest first; t int32, the rest float64, each (n,).

  x_next = of_x x_t + of_x0 x0_hat + of_x0_before x0_hat_before + of_noise z.
  """

  t: np.ndarray
  of_x: np.ndarray
  of_x0: np.ndarray
  of_x0_before: np.ndarray
  of_noise: np.ndarray


def _trailing(alpha_bar: np.ndarray, steps: int) -> np.ndarray:
  """Equal distances from T - 1, where x_t is what training called noise."""
  total = len(alpha_bar)
  return np.round(total - total / steps * np.arange(steps)) - 1


def _leading(alpha_bar: np.ndarray, steps: int) -> np.ndarray:
  """Equal distances up from 0, as DDIM's first code did; begins below T - 1."""
  return len(alpha_bar) // steps * np.arange(steps)[::-1]


def _log_snr(alpha_bar: np.ndarray, steps: int) -> np.ndarray:
  """From T - 1 to 0 with equal distances in log-SNR, densest at low t.

  Few equal steps of t end with a leap from far too much noise, which loses fine
  detail. Source: Lu et al. 2022 (DPM-Solver), appendix D.4.
  """
  total = len(alpha_bar)
  log_snr = np.log(alpha_bar / (1 - alpha_bar))
  wanted = np.linspace(max(log_snr[-1], -10.2), log_snr[0], steps)
  t = np.interp(wanted, log_snr[::-1], np.arange(total)[::-1])
  # Whole numbers, and no two alike: pushed apart from below, then from above.
  rank = np.arange(steps)[::-1]
  t = np.maximum.accumulate((np.round(t) - rank)[::-1])[::-1] + rank
  return (
    np.minimum.accumulate(np.minimum(t, total - steps + rank) - rank) + rank
  )


SPACINGS = {'trailing': _trailing, 'leading': _leading, 'log_snr': _log_snr}


def spread(
  alpha_bar: np.ndarray, steps: int, spacing: str = 'trailing'
) -> np.ndarray:
  """`steps` timesteps of alpha_bar (T,), falling, int32 (steps,).

  spacing: a name of SPACINGS. Raises ValueError for another, or where there
  are fewer timesteps than steps.
  """
  space = lookup(SPACINGS, spacing, 'spacing', '--config.sampler.spacing')
  if not 1 <= steps <= len(alpha_bar):
    raise ValueError(
      f'{steps} sampling steps asked for, but the number must be in '
      f'[1, {len(alpha_bar)}]. Set it with --config.sampler.steps.'
    )
  return space(alpha_bar, steps).astype(np.int32)


def _ancestral(ab, ab_next, eta, variance):
  """Ho et al. 2020, eq. 7, over any subset of steps; eta has no use here.

  'small' is the variance if the data were one point, 'large' if they were
  unit noise; the truth lies between (section 3.2 there).
  """
  del eta
  beta = 1 - ab / ab_next
  small = (1 - ab_next) / (1 - ab) * beta
  of_noise = np.sqrt({'small': small, 'large': beta}[variance])
  of_noise[-1] = 0  # The last step gives its mean.
  of_x = np.sqrt(ab / ab_next) * (1 - ab_next) / (1 - ab)
  return of_x, np.sqrt(ab_next) * beta / (1 - ab), 0 * ab, of_noise


def _ddim(ab, ab_next, eta, variance):
  """Song et al. 2021, eqs. 12 and 16; eta = 1 has DDPM's small variance."""
  del variance
  of_noise = eta * np.sqrt((1 - ab_next) / (1 - ab) * (1 - ab / ab_next))
  # max: at eta = 1 the last difference is 0 up to rounding.
  of_x = np.sqrt(np.maximum(1 - ab_next - of_noise**2, 0) / (1 - ab))
  return of_x, np.sqrt(ab_next) - of_x * np.sqrt(ab), 0 * ab, of_noise


def _dpm_solver(ab, ab_next, eta, variance):
  """DPM-Solver++ (2M), Lu et al. 2022, algorithm 2.

  The first step is of order 1, and so is the last: it ends at sigma = 0, where
  the log-SNR is infinite, and gives x0_hat itself.
  """
  del eta, variance
  with np.errstate(divide='ignore'):
    half_log_snr = np.log(ab / (1 - ab)) / 2
    h = np.log(ab_next / (1 - ab_next)) / 2 - half_log_snr
  order_1 = -np.sqrt(ab_next) * np.expm1(-h)
  extra = np.zeros_like(h)
  extra[1:-1] = h[1:-1] / h[:-2] / 2  # 1 / (2 r), with r = h_before / h
  of_x = np.sqrt((1 - ab_next) / (1 - ab))
  return of_x, order_1 * (1 + extra), -order_1 * extra, 0 * ab


SAMPLERS = {'ddpm': _ancestral, 'ddim': _ddim, 'dpm_solver': _dpm_solver}
USUAL_STEPS = {'ddim': 50, 'dpm_solver': 20}  # ddpm: all


def make_plan(
  d: Diffusion,
  sampler: str = 'ddim',
  steps: int = 0,
  eta: float = 0.0,
  spacing: str = '',
  variance: str = 'small',
  t_start: int | None = None,
) -> Plan:
  """The table of a sampler from t_start (default T - 1) down to the image.

  steps: 0 takes the usual number (ddpm all T, ddim 50, dpm_solver 20), or all
  there are if fewer. spacing '' is log_snr for dpm_solver, else trailing.
  eta in [0, 1] for ddim; variance 'small' | 'large' for ddpm. Raises
  ValueError for names and numbers that are not allowed.
  """
  coefficients = lookup(SAMPLERS, sampler, 'sampler', '--config.sampler.name')
  lookup(
    {'small': 0, 'large': 0}, variance, 'variance', '--config.sampler.variance'
  )
  if not 0 <= eta <= 1 or (eta and sampler != 'ddim'):
    raise ValueError(
      f'eta={eta} with sampler {sampler!r}: only ddim takes an eta, in [0, 1]. '
      'Set --config.sampler.eta=0 or --config.sampler.name=ddim.'
    )
  if t_start is None:
    t_start = d.timesteps - 1
  check_timesteps(t_start, d.timesteps)
  alpha_bar = d.alpha_bar[: t_start + 1]
  usual = USUAL_STEPS.get(sampler, d.timesteps)
  t = spread(
    alpha_bar,
    steps or min(usual, len(alpha_bar)),
    spacing or ('log_snr' if sampler == 'dpm_solver' else 'trailing'),
  )
  ab = d.alpha_bar[t]
  # The step after the last ends at the image, where no noise is left.
  ab_next = np.append(ab[1:], 1.0)
  return Plan(t, *coefficients(ab, ab_next, eta, variance))


def step(
  row: Plan,
  x: jax.Array,
  x0: jax.Array,
  x0_before: jax.Array,
  noise: jax.Array | None = None,
) -> jax.Array:
  """One step of any sampler: x_t and predictions (b, h, w, c) -> x_next.

  row: scalars, one row of a plan. noise like x; None where of_noise is 0.
  """
  x = row.of_x * x + row.of_x0 * x0 + row.of_x0_before * x0_before
  return x if noise is None else x + row.of_noise * noise

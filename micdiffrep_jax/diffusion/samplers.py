"""Samplers: from noise to images, in one compiled loop over a table of steps.

Given the prediction x0_hat, each step of DDPM, DDIM and DPM-Solver++ (2M) is
linear in x_t, x0_hat, the x0_hat before it and fresh noise. So a sampler is a
table of coefficients, a plan, in float64 numpy, and one loop runs them all. eps
never appears: where x0_hat was clipped, the coefficients already hold the eps
that belongs to it.

Dimension letters: b batch, h w pixels, c channels, n steps, k frames kept;
`ab` is alpha_bar at t, `ab_next` where a step ends.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from micdiffrep_jax.diffusion.process import (
  Denoise,
  Diffusion,
  check_timesteps,
  predict,
)
from micdiffrep_jax.run.checks import lookup, one_of
from micdiffrep_jax.run.keys import stream


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


# of_x, of_x0, of_x0_before and of_noise of a plan, each (n,).
_Coefficients = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _ancestral(
  ab: np.ndarray, ab_next: np.ndarray, eta: float, variance: str
) -> _Coefficients:
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


def _ddim(
  ab: np.ndarray, ab_next: np.ndarray, eta: float, variance: str
) -> _Coefficients:
  """Song et al. 2021, eqs. 12 and 16; eta = 1 has DDPM's small variance."""
  del variance
  of_noise = eta * np.sqrt((1 - ab_next) / (1 - ab) * (1 - ab / ab_next))
  # max: at eta = 1 the last difference is 0 up to rounding.
  of_x = np.sqrt(np.maximum(1 - ab_next - of_noise**2, 0) / (1 - ab))
  return of_x, np.sqrt(ab_next) - of_x * np.sqrt(ab), 0 * ab, of_noise


def _dpm_solver(
  ab: np.ndarray, ab_next: np.ndarray, eta: float, variance: str
) -> _Coefficients:
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
  flag = '--config.sampler.variance'
  one_of(('small', 'large'), variance, 'variance', flag)
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


PIECES = 25  # A loop that is watched is dispatched in about so many pieces.


def image_keys(seed: int, index: jax.typing.ArrayLike) -> jax.Array:
  """A key per image, (b,), from the seed and its number alone; index (b,)."""
  root = stream(jax.random.key(seed), 'sample')
  return jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.asarray(index))


def noise_for(
  keys: jax.Array, number: jax.typing.ArrayLike, shape: tuple[int, ...]
) -> jax.Array:
  """Unit noise (b, *shape) float32, each image's from its own key (b,)."""
  return jax.vmap(
    lambda key: jax.random.normal(jax.random.fold_in(key, number), shape)
  )(keys)


def single(plan: Plan) -> Plan:
  """The plan in float32, as the loop takes it; worked out before in float64."""
  return Plan(plan.t, *jax.tree.map(np.float32, plan[1:]))


def frame_steps(steps: int, frames: int) -> np.ndarray:
  """Which steps (frames,) leave a frame: evenly spread, the last among them.

  Raises ValueError for more frames than steps.
  """
  if not 0 <= frames <= steps:
    raise ValueError(
      f'{frames} predictions of x0 asked for, but there are {steps} steps. Set '
      f'--config.figure.trajectory to 0 to {steps}.'
    )
  at = (np.arange(frames) + 1) * steps / max(frames, 1)
  return np.round(at).astype(np.int64) - 1


def _slots(steps: int, frames: int) -> np.ndarray:
  """Per step (n,) its place among the frames; out of range if it has none."""
  slot = np.full(steps, frames, np.int32)
  slot[frame_steps(steps, frames)] = np.arange(frames)
  return slot


class _Carry(NamedTuple):
  """What goes from step to step: x_t, the last x0_hat and the frames kept."""

  x: jax.Array  # (b, h, w, c)
  x0_before: jax.Array  # (b, h, w, c)
  frames: jax.Array | None  # (k, b, h, w, c)


class _Rows(NamedTuple):
  """A plan in float32 and, if frames are kept, each step's place among them."""

  plan: Plan
  slots: np.ndarray | None = None


def _rows(plan: Plan, frames: int) -> _Rows:
  return _Rows(single(plan), _slots(len(plan.t), frames))


def _loop(
  d: Diffusion,
  denoise: Denoise,
  clip: bool,
  keys: jax.Array | None,
  carry: _Carry,
  rows: _Rows,
) -> _Carry:
  """Runs the steps of `rows`; without keys (b,) no noise is added."""

  def body(carry: _Carry, step_of: _Rows) -> tuple[_Carry, None]:
    (x, x0_before, frames), (row, slot) = carry, step_of
    t = jnp.full(x.shape[:1], row.t, jnp.int32)
    x0, _ = predict(d, denoise(x, t), x, t, clip)
    noise = None if keys is None else noise_for(keys, row.t, x.shape[1:])
    x = step(row, x, x0, x0_before, noise)
    if frames is not None:
      frames = frames.at[slot].set(x0, mode='drop')
    return _Carry(x, x0, frames), None

  return lax.scan(body, carry, rows)[0]


def _begin(
  d: Diffusion,
  shape: tuple[int, int, int],
  frames: int,
  keys: jax.Array,
  start: jax.Array | None,
) -> _Carry:
  """The carry before the first step; noise T, as t < T are the steps' own."""
  x = noise_for(keys, d.timesteps, shape) if start is None else start
  kept = jnp.zeros((frames, *x.shape), x.dtype) if frames else None
  return _Carry(x, jnp.zeros_like(x), kept)


def follow(
  d: Diffusion,
  denoise: Denoise,
  x: jax.Array,
  plan: Plan,
  clip: bool = True,
) -> jax.Array:
  """Takes x (b, h, w, c) down a plan without noise; pure.

  The plan may be traced, in float32: then one compilation serves all plans of
  one length.
  """
  carry = _Carry(x, jnp.zeros_like(x), None)
  return _loop(d, denoise, clip, None, carry, _Rows(plan)).x


def sample(
  d: Diffusion,
  denoise: Denoise,
  keys: jax.Array,
  shape: tuple[int, int, int],
  *,
  clip: bool = True,
  start: jax.Array | None = None,
  frames: int = 0,
  **plan: Any,
) -> Any:
  """Images (b, h, w, c) float32, in [-1, 1] if clip; pure, so jit it whole.

  denoise(x_t, t (b,) int32) -> raw network output; keys (b,) typed, one per
  image; shape (h, w, c); start (b, h, w, c) in place of noise; **plan as in
  make_plan. With frames > 0 also (frames, b, h, w, c), the x0_hat on the way.
  """
  table = make_plan(d, **plan)
  carry = _begin(d, shape, frames, keys, start)
  noisy = keys if table.of_noise.any() else None
  end = _loop(d, denoise, clip, noisy, carry, _rows(table, frames))
  return (end.x, end.frames) if frames else end.x


def make_sampler(
  d: Diffusion,
  apply: Callable,
  shape: tuple[int, int, int],
  *,
  clip: bool = True,
  frames: int = 0,
  **plan: Any,
) -> Callable:
  """run(variables, keys, start=None, tick=None) with the results of `sample`.

  apply(variables, x_t, t) -> raw network output. Unlike `sample` it is called
  from Python: it compiles once for all calls of one batch size. With
  tick(steps just done) the loop is run in pieces, for a progress bar; a number
  of steps that those do not divide compiles twice. Where keys lie on several
  devices, so do the images.
  """
  table = make_plan(d, **plan)
  n, rows = len(table.t), _rows(table, frames)
  noisy = bool(table.of_noise.any())
  begin = jax.jit(functools.partial(_begin, d, shape, frames))

  @jax.jit
  def piece(
    variables: Any, keys: jax.Array | None, carry: _Carry, rows: _Rows
  ) -> _Carry:
    denoise = functools.partial(apply, variables)
    return _loop(d, denoise, clip, keys, carry, rows)

  def run(
    variables: Any,
    keys: jax.Array,
    start: jax.Array | None = None,
    tick: Callable[[int], object] | None = None,
  ) -> Any:
    carry = begin(keys, start)
    size = -(-n // PIECES) if tick else n
    for i in range(0, n, size):
      part = jax.tree.map(lambda x, i=i: x[i : i + size], rows)
      carry = piece(
        variables, keys if noisy else None, carry, jax.device_put(part)
      )
      if tick:
        carry.x.block_until_ready()  # A bar that runs ahead tells nothing.
        tick(len(part.plan.t))
    return (carry.x, carry.frames) if frames else carry.x

  return run

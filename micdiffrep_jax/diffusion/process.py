"""The forward process and what the network is asked for, as pure functions.

Dimension letters: b batch, h w pixels, c channels, T steps. One convention for
t everywhere: an integer in [0, T), 0 the least noise, T - 1 the most.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from micdiffrep_jax.run.checks import lookup, one_of

# x_t (b, h, w, c), t (b,) int32 -> what the network puts out, like x_t.
Denoise = Callable[[jax.Array, jax.Array], jax.Array]
_Pair = tuple[jax.Array, jax.Array]
_Shape = tuple[int, ...]


class Diffusion(NamedTuple):
  """A schedule together with its target, so that the two cannot disagree.

  alpha_bar (T,) float64 numpy, falling: share of the signal's variance left at
  t. target: what the network outputs, 'eps', 'x0' or 'v'. Close over it in
  jitted functions; it is a constant there, not an argument.
  """

  alpha_bar: np.ndarray
  target: str

  @property
  def timesteps(self) -> int:
    """The number of steps T."""
    return len(self.alpha_bar)


def _linear(timesteps: int, beta_start: float, beta_end: float) -> np.ndarray:
  """Ho et al. 2020, section 4: beta rises linearly."""
  return np.linspace(beta_start, beta_end, timesteps, dtype=np.float64)


def _cosine(timesteps: int, beta_start: float, beta_end: float) -> np.ndarray:
  """Nichol and Dhariwal 2021, eq. 17; it has no use for the two betas."""
  del beta_start, beta_end
  edges = np.arange(timesteps + 1, dtype=np.float64) / timesteps
  f = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
  return np.minimum(1 - f[1:] / f[:-1], 0.999)


SCHEDULES = {'linear': _linear, 'cosine': _cosine}


def make_diffusion(
  schedule: str = 'linear',
  timesteps: int = 1000,
  target: str = 'eps',
  beta_start: float = 1e-4,
  beta_end: float = 2e-2,
) -> Diffusion:
  """Builds the schedule in float64; it is cast once, where it is used.

  Raises ValueError for an unknown schedule or target, and for betas or a number
  of steps that make no schedule.
  """
  betas = lookup(SCHEDULES, schedule, 'schedule', '--config.diffusion.schedule')
  lookup(_TO_X0_EPS, target, 'target', '--config.diffusion.target')
  if timesteps < 1:
    raise ValueError(
      f'timesteps is {timesteps}, but must be at least 1. '
      'Set it with --config.diffusion.timesteps.'
    )
  if not 0 < beta_start <= beta_end < 1:
    raise ValueError(
      f'beta_start={beta_start} and beta_end={beta_end} must satisfy '
      '0 < beta_start <= beta_end < 1. Set them with '
      '--config.diffusion.beta_start and --config.diffusion.beta_end.'
    )
  alpha_bar = np.cumprod(1 - betas(timesteps, beta_start, beta_end))
  return Diffusion(alpha_bar, target)


def _uniform(
  d: Diffusion, key: jax.Array, shape: _Shape, mean: float, std: float
) -> jax.Array:
  del mean, std
  return jax.random.randint(key, shape, 0, d.timesteps)


def _beta(
  d: Diffusion, key: jax.Array, shape: _Shape, mean: float, std: float
) -> jax.Array:
  """Beta(1, 2) of t / T: density 2 (1 - x), most where noise is least."""
  del mean, std
  x = 1 - jnp.sqrt(1 - jax.random.uniform(key, shape))
  # Rounding might make x 1, and t T.
  return jnp.minimum((d.timesteps * x).astype(jnp.int32), d.timesteps - 1)


def _lognormal(
  d: Diffusion, key: jax.Array, shape: _Shape, mean: float, std: float
) -> jax.Array:
  """The step whose log(sigma / alpha) is nearest to a normal draw.

  Source: Karras et al. 2022, table 1, where mean and std are P_mean and P_std.
  """
  levels = (np.log1p(-d.alpha_bar) - np.log(d.alpha_bar)) / 2
  edges = jnp.asarray((levels[1:] + levels[:-1]) / 2, jnp.float32)
  return jnp.searchsorted(edges, mean + std * jax.random.normal(key, shape))


DENSITIES = {'uniform': _uniform, 'beta': _beta, 'lognormal': _lognormal}


def draw_t(
  d: Diffusion,
  key: jax.Array,
  shape: _Shape,
  density: str = 'uniform',
  mean: float = -1.2,
  std: float = 1.2,
) -> jax.Array:
  """Steps to train at, int32 in [0, T), by one of DENSITIES.

  mean and std are of `lognormal` alone. An error averaged over these steps is
  not weighted: a step counts as often as it is drawn.
  """
  return DENSITIES[density](d, key, shape, mean, std)


def check_timesteps(
  timesteps: int | Sequence[int], total: int, flag: str = ''
) -> None:
  """Raises ValueError for a t outside [0, total), which JAX would clamp."""
  wrong = [int(t) for t in np.ravel(timesteps) if not 0 <= t < total]
  if wrong:
    mend = f' Set it with {flag}.' if flag else ''
    raise ValueError(
      f'Timesteps {wrong} are outside [0, {total}); 0 is the least noise.{mend}'
    )


def at(values: np.ndarray, t: jax.Array, like: jax.Array) -> jax.Array:
  """values[t] in float32, with axes of 1 at the end, to multiply `like`."""
  picked = jnp.asarray(values, jnp.float32)[t]
  return picked.reshape(picked.shape + (1,) * (like.ndim - picked.ndim))


def alpha_sigma(
  d: Diffusion, t: jax.Array, like: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t), float32, as `at` shapes them."""
  return (
    at(np.sqrt(d.alpha_bar), t, like),
    at(np.sqrt(1 - d.alpha_bar), t, like),
  )


def q_sample(
  d: Diffusion, x0: jax.Array, t: jax.Array, eps: jax.Array
) -> jax.Array:
  """Noises clean images to step t: alpha x0 + sigma eps.

  x0, eps (b, h, w, c) float32, x0 in [-1, 1]; t int32 in [0, T), (b,), or
  (b, h, w) where each pixel has its own. Source: Ho et al. 2020, eq. 4 (alpha =
  sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar)).
  """
  alpha, sigma = alpha_sigma(d, t, x0)
  return alpha * x0 + sigma * eps


def training_target(
  d: Diffusion, x0: jax.Array, t: jax.Array, eps: jax.Array
) -> jax.Array:
  """What the network should output for q_sample(d, x0, t, eps); like x0.

  v = alpha eps - sigma x0 (Salimans and Ho 2022, appendix D). The paper's eq. 2
  asks for x0 while its text asks for the noise; the noise is the default.
  """
  alpha, sigma = alpha_sigma(d, t, x0)
  return {'eps': eps, 'x0': x0, 'v': alpha * eps - sigma * x0}[d.target]


def _from_eps(
  eps: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> _Pair:
  return (x_t - sigma * eps) / alpha, eps


def _from_x0(
  x0: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> _Pair:
  return x0, (x_t - alpha * x0) / sigma


def _from_v(
  v: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> _Pair:
  return alpha * x_t - sigma * v, sigma * x_t + alpha * v


_TO_X0_EPS = {'eps': _from_eps, 'x0': _from_x0, 'v': _from_v}


def predict(
  d: Diffusion,
  output: jax.Array,
  x_t: jax.Array,
  t: jax.Array,
  clip: bool = True,
) -> tuple[jax.Array, jax.Array]:
  """Turns a raw network output into (x0_hat, eps_hat), both float32.

  output, x_t (b, h, w, c); t (b,) int32 in [0, T). With clip, x0_hat is cut to
  [-1, 1] and eps_hat derived again from it, so that the two stay a pair that
  x_t is made of; without that, samples drift in brightness.
  """
  output, x_t = output.astype(jnp.float32), x_t.astype(jnp.float32)
  alpha, sigma = alpha_sigma(d, t, x_t)
  x0, eps = _TO_X0_EPS[d.target](output, x_t, alpha, sigma)
  if clip:
    x0, eps = _from_x0(jnp.clip(x0, -1.0, 1.0), x_t, alpha, sigma)
  return x0, eps


def loss_weight(
  d: Diffusion, t: jax.Array, weighting: str = 'none', gamma: float = 5.0
) -> jax.Array:
  """Weight float32, shaped as t, of the squared error at t.

  'none' is 1. 'min_snr' bounds the weight in x0 terms by gamma (Hang et al.
  2023, section 3.4); note that it plays down exactly the low t that features
  are read at. Raises ValueError for another name.
  """
  flag = '--config.diffusion.weighting'
  one_of(('none', 'min_snr'), weighting, 'loss weighting', flag)
  if weighting == 'none':
    return jnp.ones(t.shape, jnp.float32)
  snr = d.alpha_bar / (1 - d.alpha_bar)
  per_target = {'eps': snr, 'x0': np.ones_like(snr), 'v': snr + 1}[d.target]
  return at(np.minimum(snr, gamma) / per_target, t, t)

"""Samplers: from noise to images, in one compiled loop over a plan's rows.

Dimension letters: b batch, h w pixels, c channels, n steps, k frames kept.
"""

from collections.abc import Callable
import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from micdiffrep_jax.diffusion.plans import Plan, make_plan, step
from micdiffrep_jax.diffusion.process import Diffusion, predict
from micdiffrep_jax.run.keys import stream

PIECES = 25  # A loop that is watched is dispatched in about so many pieces.


def image_keys(seed: int, index) -> jax.Array:
  """A key per image, (b,), from the seed and its number alone; index (b,)."""
  root = stream(jax.random.key(seed), 'sample')
  return jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.asarray(index))


def noise_for(keys: jax.Array, number, shape: tuple[int, ...]) -> jax.Array:
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


def _loop(d, denoise, clip, noisy, keys, carry, rows, slots):
  """Runs the steps of `rows`; carry (x, x0_before, frames)."""

  def body(carry, row_slot):
    (x, x0_before, frames), (row, slot) = carry, row_slot
    t = jnp.full(x.shape[:1], row.t, jnp.int32)
    x0, _ = predict(d, denoise(x, t), x, t, clip)
    noise = noise_for(keys, row.t, x.shape[1:]) if noisy else None
    x = step(row, x, x0, x0_before, noise)
    if frames is not None:
      frames = frames.at[slot].set(x0, mode='drop')
    return (x, x0, frames), None

  return lax.scan(body, carry, (rows, slots))[0]


def _begin(d, shape, frames, keys, start):
  """The carry before the first step; noise T, as t < T are the steps' own."""
  x = noise_for(keys, d.timesteps, shape) if start is None else start
  kept = jnp.zeros((frames, *x.shape), x.dtype) if frames else None
  return x, jnp.zeros_like(x), kept


def follow(
  d: Diffusion,
  denoise: Callable[[jax.Array, jax.Array], jax.Array],
  x: jax.Array,
  plan: Plan,
  clip: bool = True,
) -> jax.Array:
  """Takes x (b, h, w, c) down a plan without noise; pure.

  The plan may be traced, in float32: then one compilation serves all plans of
  one length.
  """
  carry = (x, jnp.zeros_like(x), None)
  return _loop(d, denoise, clip, False, None, carry, plan, None)[0]


def sample(
  d: Diffusion,
  denoise: Callable[[jax.Array, jax.Array], jax.Array],
  keys: jax.Array,
  shape: tuple[int, int, int],
  *,
  clip: bool = True,
  start: jax.Array | None = None,
  frames: int = 0,
  **plan,
):
  """Images (b, h, w, c) float32, in [-1, 1] if clip; pure, so jit it whole.

  denoise(x_t, t (b,) int32) -> raw network output; keys (b,) typed, one per
  image; shape (h, w, c); start (b, h, w, c) in place of noise; **plan as in
  make_plan. With frames > 0 also (frames, b, h, w, c), the x0_hat on the way.
  """
  table = make_plan(d, **plan)
  rows, slots = single(table), _slots(len(table.t), frames)
  carry = _begin(d, shape, frames, keys, start)
  noisy = bool(table.of_noise.any())
  x, _, kept = _loop(d, denoise, clip, noisy, keys, carry, rows, slots)
  return (x, kept) if frames else x


def make_sampler(
  d: Diffusion,
  apply: Callable,
  shape: tuple[int, int, int],
  *,
  clip: bool = True,
  frames: int = 0,
  **plan,
) -> Callable:
  """run(variables, keys, start=None, tick=None) with the results of `sample`.

  apply(variables, x_t, t) -> raw network output. Unlike `sample` it is called
  from Python: it compiles once for all calls of one batch size. With
  tick(steps just done) the loop is run in pieces, for a progress bar; a number
  of steps that those do not divide compiles twice. Where keys lie on several
  devices, so do the images.
  """
  table = make_plan(d, **plan)
  n = len(table.t)
  rows, slots = single(table), _slots(n, frames)
  noisy = bool(table.of_noise.any())
  begin = jax.jit(functools.partial(_begin, d, shape, frames))

  @jax.jit
  def piece(variables, keys, carry, rows, slots):
    denoise = functools.partial(apply, variables)
    return _loop(d, denoise, clip, noisy, keys, carry, rows, slots)

  def run(variables, keys, start=None, tick=None):
    carry = begin(keys, start)
    size = -(-n // PIECES) if tick else n
    for i in range(0, n, size):
      part = jax.tree.map(lambda x, i=i: x[i : i + size], (rows, slots))
      carry = piece(variables, keys, carry, *jax.device_put(part))
      if tick:
        carry[0].block_until_ready()  # A bar that runs ahead tells nothing.
        tick(len(part[1]))
    return (carry[0], carry[2]) if frames else carry[0]

  return run

"""Figures of a sampling run, (H, W, 3) uint8 each.

Dimension letters: n images, h w pixels, c channels, k frames.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.diffusion import inversion, samplers
from micdiffrep_jax.draw import grids
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.generate import assess
from micdiffrep_jax.methods import ddpm
from micdiffrep_jax.methods.base import Tree, to_float
from micdiffrep_jax.run import devices
from micdiffrep_jax.run.keys import stream


def samples(
  images: np.ndarray, real: assess.Real, config: ConfigDict
) -> np.ndarray:
  """Generated above as many validation images, like the paper's Fig. 5.

  images (n, h, w, c) uint8; config: the sub-config `figure`.
  """
  shown = images[: config.images]
  others = real.dataset.images[assess.evenly(real.val, len(shown))]
  return grids.stack(
    [
      grids.figure([('generated', shown)], columns=config.columns),
      grids.figure([('real', others)], columns=config.columns),
    ]
  )


def trajectory(frames: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
  """The x0 predicted on the way, (k, n, h, w, c); timesteps (steps,)."""
  kept = timesteps[samplers.frame_steps(len(timesteps), len(frames))]
  return grids.figure([(f'x0 at t={t}', f) for t, f in zip(kept, frames)])


def _images(real: assess.Real, count: int) -> np.ndarray:
  return real.dataset.images[assess.evenly(real.val, count)]


def interpolation(
  encoder: encoders.Encoder,
  model: ddpm.Denoiser,
  real: assess.Real,
  config: ConfigDict,
) -> np.ndarray:
  """From one validation image to another, a pair per row.

  config: the sub-config `interpolation`.
  """

  @jax.jit
  def between(variables: Tree, a: jax.Array, b: jax.Array) -> jax.Array:
    def denoise(x_t: jax.Array, t: jax.Array) -> jax.Array:
      return model.apply(variables, x_t, t)[0]

    return inversion.interpolate(
      model.process, denoise, a, b, config.count, config.steps
    )

  ends = to_float(jnp.asarray(_images(real, 2 * config.images)))
  n = len(ends) // 2
  found = between(encoder.variables, ends[:n], ends[n : 2 * n])
  rows = grids.to_uint8(devices.fetch(found)).swapaxes(0, 1)
  return grids.figure([(f'pair {i}', row) for i, row in enumerate(rows)])


def reconstruction(
  encoder: encoders.Encoder,
  model: ddpm.Denoiser,
  real: assess.Real,
  config: ConfigDict,
  seed: int,
) -> np.ndarray:
  """What the model sees of validation images at several noise levels.

  config: the sub-config `reconstruction`.
  """

  @jax.jit
  def rebuild(
    variables: Tree, x: jax.Array, noise: jax.Array, plan: samplers.Plan
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    def denoise(x_t: jax.Array, t: jax.Array) -> jax.Array:
      return model.apply(variables, x_t, t)[0]

    return inversion.reconstruct(model.process, denoise, x, noise, plan)

  pictures = _images(real, config.images)
  key = stream(jax.random.key(seed), 'reconstruction')
  noise = jax.random.normal(key, pictures.shape)
  rows = [('real', pictures)]
  for t in config.timesteps:
    plan = inversion.level_plan(model.process, t, config.steps)
    found = rebuild(
      encoder.variables, to_float(jnp.asarray(pictures)), noise, plan
    )
    names = (f't={t} noised', 'mean guess', 'one sample')
    for name, x in zip(names, devices.fetch(found)):
      rows.append((name, grids.to_uint8(x)))
  return grids.figure(rows)

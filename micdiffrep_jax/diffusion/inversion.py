"""DDIM backwards: the noise of a given image, and what can be done with it.

Dimension letters: b batch, h w pixels, c channels, k images on the way.
"""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from micdiffrep_jax.diffusion.process import (
  Denoise,
  Diffusion,
  predict,
  q_sample,
)
from micdiffrep_jax.diffusion.samplers import (
  Plan,
  follow,
  make_plan,
  single,
  spread,
)


def invert(
  d: Diffusion,
  denoise: Denoise,
  images: jax.Array,
  steps: int = 50,
  refine: int = 2,
  clip: bool = True,
) -> jax.Array:
  """The noise (b, h, w, c) from which DDIM with eta = 0 makes `images`.

  images (b, h, w, c) float32 in [-1, 1]. A DDIM step reads eps at the noisier
  end, which backwards is not known yet: each step starts with eps at the
  cleaner end (Song et al. 2021, section 4.3) and is solved again `refine`
  times, so that sampling with as many 'trailing' steps gives the image back.
  """
  t = spread(d.alpha_bar, steps)[::-1]
  ab = d.alpha_bar[t]
  ab_before = np.append(1.0, ab[:-1])
  rows = (
    t,
    np.float32(np.sqrt(ab / ab_before)),
    np.float32(np.sqrt(1 - ab) - np.sqrt(ab / ab_before * (1 - ab_before))),
  )

  def body(x: jax.Array, row: tuple) -> tuple[jax.Array, None]:
    step, of_x, of_eps = row
    t = jnp.full(x.shape[:1], step, jnp.int32)

    def solve(_: jax.Array, x_next: jax.Array) -> jax.Array:
      _, eps = predict(d, denoise(x_next, t), x_next, t, clip)
      return of_x * x + of_eps * eps

    return lax.fori_loop(0, 1 + refine, solve, x), None

  return lax.scan(body, images, rows)[0]


def slerp(
  a: jax.Array, b: jax.Array, weight: jax.typing.ArrayLike
) -> jax.Array:
  """From a (weight 0) to b (weight 1) along the sphere, image by image.

  a, b (b, h, w, c); weight () in [0, 1]. Between two noises a straight line
  would pass through images of too little noise.
  """
  axes = (1, 2, 3)

  def norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(x**2, axes, keepdims=True))

  cosine = jnp.sum(a * b, axes, keepdims=True) / (norm(a) * norm(b))
  angle = jnp.arccos(jnp.clip(cosine, -0.9999, 0.9999))
  return (
    jnp.sin((1 - weight) * angle) * a + jnp.sin(weight * angle) * b
  ) / jnp.sin(angle)


def interpolate(
  d: Diffusion,
  denoise: Denoise,
  a: jax.Array,
  b: jax.Array,
  count: int = 8,
  steps: int = 50,
) -> jax.Array:
  """Images (count, b, h, w, c) from a to b, by way of their noise.

  a, b (b, h, w, c) float32 in [-1, 1]; the first and last come back as DDIM
  reproduces them. Pure, so jit it whole.
  """
  n = len(a)
  noise = invert(d, denoise, jnp.concatenate([a, b]), steps)
  between = jnp.stack(
    [slerp(noise[:n], noise[n:], w) for w in np.linspace(0, 1, count)]
  )
  plan = single(make_plan(d, 'ddim', steps))
  x = follow(d, denoise, between.reshape(-1, *a.shape[1:]), plan)
  return x.reshape(between.shape)


def level_plan(d: Diffusion, t: int, steps: int = 20) -> Plan:
  """DDIM from step t down, for `reconstruct`; fewer steps if t is low."""
  return single(make_plan(d, 'ddim', min(steps, t + 1), t_start=t))


def reconstruct(
  d: Diffusion,
  denoise: Denoise,
  images: jax.Array,
  noise: jax.Array,
  plan: Plan,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What is left of images at the plan's first t, three (b, h, w, c).

  images float32 in [-1, 1], noise unit normal, both (b, h, w, c). Returns the
  noised image, the network's one-step guess of x0 (the mean of all images it
  deems possible, so blurred: this much a feature at t can know) and one sample
  of them, taken by DDIM.
  """
  t = jnp.full(images.shape[:1], plan.t[0], jnp.int32)
  x_t = q_sample(d, images, t, noise)
  guess, _ = predict(d, denoise(x_t, t), x_t, t)
  return x_t, guess, follow(d, denoise, x_t, plan)

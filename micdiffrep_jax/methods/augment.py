"""Augmentation on the device, batched: flips, small affine maps, intensity.

Every field is a half-range around the identity, so that 0 switches it off.
Letters: b batch, h w pixels, c channels.
"""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

LIMITS = {
  'flip': (0.0, 1.0),
  'rotate_deg': (0.0, 180.0),
  'scale': (0.0, 0.9),
  'shift': (0.0, 0.5),
  'brightness': (0.0, 1.0),
  'contrast': (0.0, 1.0),
}


def check(config: ConfigDict) -> None:
  """Raises ValueError for a field outside its range."""
  for name, (low, high) in LIMITS.items():
    if not low <= config[name] <= high:
      raise ValueError(
        f'augment.{name}={config[name]} is outside [{low}, {high}]. '
        f'Set --config.augment.{name}.'
      )


def affine(x: jax.Array, matrix: jax.Array, offset: jax.Array) -> jax.Array:
  """Samples x (h, w, c) at matrix @ (pixel - centre) + centre + offset.

  Bilinear; outside is -1, the black of the background.
  """
  h, w, _ = x.shape
  centre = jnp.array([(h - 1) / 2, (w - 1) / 2])
  grid = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing='ij'))
  grid = grid - centre[:, None, None]
  places = jnp.einsum('ij,jhw->ihw', matrix, grid)
  places = places + (centre + offset)[:, None, None]
  return jax.vmap(
    lambda plane: jax.scipy.ndimage.map_coordinates(
      plane, list(places), order=1, mode='constant', cval=-1.0
    ),
    in_axes=-1,
    out_axes=-1,
  )(x)


def augment(key: jax.Array, x: jax.Array, config: ConfigDict) -> jax.Array:
  """x (b, h, w, c) float32 in [-1, 1] -> the same, each image on its own.

  flip: probability of a left-right flip; rotate_deg, scale (relative) and shift
  (share of the side): half-ranges of uniform draws; brightness (of 2, the whole
  range) and contrast (relative): likewise. Values are cut to [-1, 1].
  """
  b, h = x.shape[:2]
  k_flip, k_rotate, k_scale, k_shift, k_bright, k_contrast = jax.random.split(
    key, 6
  )

  def uniform(k, half_range, shape=(b,)):
    return half_range * jax.random.uniform(k, shape, minval=-1.0, maxval=1.0)

  if config.flip:
    flip = jax.random.bernoulli(k_flip, config.flip, (b, 1, 1, 1))
    x = jnp.where(flip, x[:, :, ::-1], x)
  if config.rotate_deg or config.scale or config.shift:
    angle = uniform(k_rotate, config.rotate_deg * math.pi / 180)
    zoom = 1 + uniform(k_scale, config.scale)
    cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    matrix = jnp.stack([cos, -sin, sin, cos], axis=-1).reshape(b, 2, 2)
    offset = uniform(k_shift, config.shift * h, (b, 2))
    x = jax.vmap(affine)(x, matrix, offset)
  if config.brightness or config.contrast:
    gain = 1 + uniform(k_contrast, config.contrast, (b, 1, 1, 1))
    lift = 2 * uniform(k_bright, config.brightness, (b, 1, 1, 1))
    # Around black, so that the background stays background.
    x = jnp.where(x > -0.98, (x + 1) * gain - 1 + lift, x)
    x = jnp.clip(x, -1.0, 1.0)
  return x

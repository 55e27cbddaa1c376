"""The vision transformer of masked autoencoders, and their decoder.

Source: He et al. 2021: pre-norm blocks with exact GELU, layer norms with
epsilon 1e-6, fixed sine positions, a class token.
Letters: b batch, h w pixels, c channels, g patches per side, l = g g patches, v
visible ones, d features, p pixels per side of a patch.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from micdiffrep_jax.models.clip_vision import Block, check_vit

EPSILON = 1e-6
_norm = functools.partial(nn.LayerNorm, epsilon=EPSILON)
_init = nn.initializers.xavier_uniform()
_token = nn.initializers.normal(0.02)


def patches(x: jax.Array, p: int) -> jax.Array:
  """Cuts images (b, h, w, c) into patches (b, l, p p c), row by row."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, -1, p * p * c)


@functools.cache
def positions(g: int, d: int) -> np.ndarray:
  """Sines and cosines of row and column, (g g, d) float32; 4 divides d.

  The first half of d tells the column, the second the row.
  """
  frequency = 1.0 / 10000 ** (np.arange(d // 4) / (d / 4))
  row, column = np.divmod(np.arange(g * g), g)
  angles = [place[:, None] * frequency for place in (column, row)]
  parts = [f(a) for a in angles for f in (np.sin, np.cos)]
  return np.concatenate(parts, axis=1).astype(np.float32)


def take(x: jax.Array, at: jax.Array) -> jax.Array:
  """Rows at (b, v) of x (b, l, d) -> (b, v, d)."""
  return jnp.take_along_axis(x, at[:, :, None], axis=1)


class Encoder(nn.Module):
  """x (b, h, w, c), keep (b, v) or None for all -> tokens (b, 1 + v, d), taps.

  Taps, of all patches only: 'block<i>' (b, g, g, d) after block i, and 'cls'
  (b, 1, 1, d), the class token after the last norm.
  """

  width: int
  depth: int
  heads: int
  patch: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, keep=None):
    d, g = self.width, x.shape[1] // self.patch
    x = nn.Dense(d, dtype=self.dtype, kernel_init=_init, name='patches')(
      patches(x, self.patch)
    ).astype(jnp.float32)
    x = x + positions(g, d)[None]
    if keep is not None:
      x = take(x, keep)
    b = x.shape[0]
    cls = self.param('cls', _token, (d,))
    x = jnp.concatenate([jnp.broadcast_to(cls, (b, 1, d)), x], axis=1)
    taps = {}
    for i in range(self.depth):
      x = Block(
        self.heads, 'gelu', False, self.dtype, EPSILON, name=f'block{i}'
      )(x)
      if keep is None:
        taps[f'block{i}'] = x[:, 1:].reshape(b, g, g, d)
    x = _norm(name='norm')(x)
    if keep is None:
      taps['cls'] = x[:, :1].reshape(b, 1, 1, d)
    return x, taps


class Decoder(nn.Module):
  """Tokens (b, 1 + v, d), restore (b, l) -> patches (b, l, out).

  restore: for each patch its place among the visible ones followed by the
  masked ones, which a learnt token stands for.
  """

  width: int
  depth: int
  heads: int
  out: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, restore):
    d = self.width
    x = nn.Dense(d, kernel_init=_init, name='embed')(x)
    b, v, length = x.shape[0], x.shape[1] - 1, restore.shape[1]
    mask = self.param('mask', _token, (d,))
    hidden = jnp.broadcast_to(mask, (b, length - v, d))
    whole = take(jnp.concatenate([x[:, 1:], hidden], axis=1), restore)
    whole = whole + positions(int(length**0.5), d)[None]
    x = jnp.concatenate([x[:, :1], whole], axis=1)
    for i in range(self.depth):
      x = Block(
        self.heads, 'gelu', False, self.dtype, EPSILON, name=f'block{i}'
      )(x)
    x = _norm(name='norm')(x)[:, 1:]
    return nn.Dense(self.out, kernel_init=_init, name='pixels')(x)


def tap_names(depth: int) -> tuple[str, ...]:
  """Names of the encoder's taps, from the input to the output."""
  return (*(f'block{i}' for i in range(depth)), 'cls')


def check_encoder(
  size_px: int, *, width: int, heads: int, patch: int, **_
) -> None:
  """Raises ValueError where the encoder's fields do not fit images."""
  check_vit(size_px, width=width, heads=heads, patch=patch, activation='gelu')
  check_width('model.width', width, heads)


def check_width(name: str, width: int, heads: int) -> None:
  """Raises ValueError for a width that positions or heads do not divide."""
  if width % 4 or heads < 1 or width % heads:
    raise ValueError(
      f'{name}={width} must be a multiple of 4 and of its {heads} heads. Set '
      f'--config.{name}.'
    )

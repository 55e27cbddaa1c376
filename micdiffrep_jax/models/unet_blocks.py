"""The parts of the DDPM UNet: timestep embedding, blocks, attention, growing.

Source: Ho et al. 2020. Letters: b batch, h w pixels, c channels.
"""

import functools
import math

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

INIT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
ZEROS = nn.initializers.zeros
PRODUCT = 'product'  # what is dear to compute again, by name


def time_embedding(t: jax.Array, width: int) -> jax.Array:
  """Sinusoids of the integer timestep: t (b,) -> (b, width) float32.

  t is not divided by T: neighbouring steps would become indistinguishable.
  """
  half = width // 2
  frequencies = jnp.exp(-math.log(10000.0) / (half - 1) * jnp.arange(half))
  angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ResBlock(nn.Module):
  """GroupNorm, SiLU, conv, timestep, GroupNorm, SiLU, conv; x (b, h, w, c)."""

  width: int
  groups: int
  dropout: float
  train: bool
  dtype: str

  @nn.compact
  def __call__(self, x, temb):
    norm = functools.partial(nn.GroupNorm, self.groups, epsilon=1e-6)
    conv = functools.partial(
      nn.Conv, self.width, (3, 3), dtype=self.dtype, kernel_init=INIT
    )
    h = conv(name='conv1')(nn.silu(norm(name='norm1')(x)))
    h = checkpoint_name(h, PRODUCT)
    shift = nn.Dense(
      self.width, dtype=self.dtype, kernel_init=INIT, name='time'
    )(nn.silu(temb))
    h = h + shift[:, None, None, :]
    h = nn.silu(norm(name='norm2')(h))
    h = nn.Dropout(self.dropout, name='dropout')(
      h, deterministic=not self.train
    )
    # Zero initialisation: every block starts as the identity.
    h = checkpoint_name(conv(name='conv2', kernel_init=ZEROS)(h), PRODUCT)
    if x.shape[-1] != self.width:
      x = nn.Dense(
        self.width, dtype=self.dtype, kernel_init=INIT, name='shortcut'
      )(x)
    return x + h


class Attention(nn.Module):
  """Self-attention over the pixels of x (b, h, w, c), with a residual."""

  heads: int
  groups: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    y = nn.GroupNorm(self.groups, epsilon=1e-6, name='norm')(x)
    qkv = nn.Dense(3 * c, dtype=self.dtype, kernel_init=INIT, name='qkv')(
      y.reshape(b, h * w, c)
    )
    qkv = checkpoint_name(qkv, PRODUCT)
    qkv = qkv.reshape(b, h * w, 3, self.heads, c // self.heads)
    y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
    y = nn.Dense(c, dtype=self.dtype, kernel_init=ZEROS, name='out')(
      y.reshape(b, h * w, c)
    )
    return x + y.reshape(b, h, w, c)


class Grow(nn.Module):
  """Doubles x (b, h, w, c) by repeating pixels, then a 3 x 3 convolution.

  Two neighbours that are copies share one product with the sum of their
  weights: 2 x 2 weights for each of the four places in a doubled pixel, 16
  products where the literal form has 36.
  """

  width: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    kernel = self.param('kernel', INIT, (3, 3, c, self.width))
    bias = self.param('bias', ZEROS, (self.width,))
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)

    def fold(k, place):  # place 0 sees the pixel before its own, 1 the next
      first, middle, last = k
      pair = (first, middle + last) if place == 0 else (first + middle, last)
      return jnp.stack(pair)

    places = [
      jax.lax.conv_general_dilated(
        x,
        fold(fold(kernel, i).swapaxes(0, 1), j).swapaxes(0, 1),
        (1, 1),
        ((1 - i, i), (1 - j, j)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
      for i in (0, 1)
      for j in (0, 1)
    ]
    y = jnp.stack(places, axis=3).reshape(b, h, w, 2, 2, self.width)
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.width)
    return y + bias[None, None, None, :]


class Stage(nn.Module):
  """A residual block and, where the resolution asks for it, attention."""

  width: int
  attend: bool
  heads: int
  groups: int
  dropout: float
  train: bool  # a field, not an argument: remat traces arguments
  dtype: str

  @nn.compact
  def __call__(self, x, temb):
    x = ResBlock(
      self.width,
      self.groups,
      self.dropout,
      self.train,
      self.dtype,
      name='res',
    )(x, temb)
    if self.attend:
      x = Attention(self.heads, self.groups, self.dtype, name='attention')(x)
    return x

"""CLIP's convolutional image tower: a ResNet read out by attention.

Source: Radford et al. 2021 and the public weights (RN50): a stem of three
convolutions, strides by average pooling instead of in the convolutions, a mean
that attends to the last map instead of a plain one. Inference only.
Letters: b batch, h w pixels, c channels, g pixels per side of the last map, d
features.
"""

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

SHRINKS = 32  # an image, to its last map

# Random weights are a control: without the statistics of a batch each ReLU's
# halving is made good, and what a block adds is kept from doubling its input.
_init = nn.initializers.he_normal()
_RESIDUAL_SCALE = 0.5


def _pool(x: jax.Array, stride: int) -> jax.Array:
  """Averages of stride x stride pixels; a rest at the edge is left out."""
  if stride == 1:
    return x
  return nn.avg_pool(x, (stride, stride), (stride, stride))


def _conv_norm(
  x: jax.Array,
  width: int,
  kernel: int,
  stride: int,
  name: str,
  dtype: str,
  scale: float = 1.0,
) -> jax.Array:
  """A convolution, then a batch norm that starts at `scale`; x (b, h, w, c)."""
  x = nn.Conv(
    width,
    (kernel, kernel),
    stride,
    padding=kernel // 2,
    use_bias=False,
    dtype=dtype,
    kernel_init=_init,
    name=f'conv{name}',
  )(x)
  norm = nn.BatchNorm(
    use_running_average=True,
    epsilon=1e-5,
    scale_init=nn.initializers.constant(scale),
    name=f'norm{name}',
  )
  return norm(x.astype(jnp.float32))


class Block(nn.Module):
  """1-3-1 to four times the width, and a skip; x (b, h, w, c).

  Both ways are blurred before they are strided: the main one after its 3 x 3
  convolution, the skip before its 1 x 1.
  """

  width: int
  stride: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    conv = functools.partial(_conv_norm, dtype=self.dtype)
    out = 4 * self.width
    y = nn.relu(conv(x, self.width, 1, 1, '1'))
    y = nn.relu(conv(y, self.width, 3, 1, '2'))
    y = conv(_pool(y, self.stride), out, 1, 1, '3', scale=_RESIDUAL_SCALE)
    if self.stride > 1 or x.shape[-1] != out:
      x = conv(_pool(x, self.stride), out, 1, 1, '_skip')
    return nn.relu(x + y)


class AttentionPool(nn.Module):
  """The mean of a map attends to it and itself: x (b, g, g, d) -> (b, out)."""

  heads: int
  out: int

  @nn.compact
  def __call__(self, x):
    b, g, _, d = x.shape
    dense = functools.partial(
      nn.Dense, kernel_init=nn.initializers.normal(d**-0.5)
    )
    positions = self.param(
      'positions', nn.initializers.normal(d**-0.5), (1 + g * g, d)
    )
    x = x.reshape(b, g * g, d)
    mean = jnp.mean(x, axis=1, keepdims=True)
    x = jnp.concatenate([mean, x], axis=1) + positions[None]
    q, k, v = (
      dense(d, name=name)(y).reshape(b, -1, self.heads, d // self.heads)
      for name, y in (('query', x[:, :1]), ('key', x), ('value', x))
    )
    pooled = jax.nn.dot_product_attention(q, k, v)
    return dense(self.out, name='out')(pooled.reshape(b, d))


class ClipResNet(nn.Module):
  """x (b, h, w, 3), normalised -> (embedding (b, out), taps).

  Taps, float32: 'stage<i>' (b, h', w', d), from stage 1 on; 'embedding'
  (b, 1, 1, out), what the attention reads out.

  Attributes:
    blocks: per stage; (3, 4, 6, 3) is RN50.
    width: of the first stage, inside its blocks; doubles with each.
    heads: of the attention that pools.
    out: of the embedding.
    dtype: of convolutions; the rest is float32.
  """

  blocks: Sequence[int]
  width: int
  heads: int
  out: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    for i, (width, stride) in enumerate(
      ((self.width // 2, 2), (self.width // 2, 1), (self.width, 1))
    ):
      x = _conv_norm(x, width, 3, stride, f'{i + 1}', self.dtype)
      x = nn.relu(x)
    x = _pool(x, 2)
    taps = {}
    for i, count in enumerate(self.blocks):
      for j in range(count):
        stride = 2 if i and not j else 1
        x = Block(
          self.width * 2**i, stride, self.dtype, name=f'stage{i + 1}_{j}'
        )(x)
      taps[f'stage{i + 1}'] = x
    embedding = AttentionPool(self.heads, self.out, name='pool')(x)
    taps['embedding'] = embedding[:, None, None]
    return embedding, taps


def tap_names(blocks: Sequence[int]) -> tuple[str, ...]:
  """Names of the taps, from the input to the output."""
  return (*(f'stage{i + 1}' for i in range(len(blocks))), 'embedding')

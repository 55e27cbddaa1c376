"""CLIP's image tower: a vision transformer, and the blocks of both towers.

Source: Radford et al. 2021 and the public weights: QuickGELU, layer norms with
epsilon 1e-5, one before the first block. Letters: b batch, h w pixels, c
channels, l tokens, g patches per side, d features.
"""

from collections.abc import Callable
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from micdiffrep_jax.run.checks import lookup


def quick_gelu(x: jax.Array) -> jax.Array:
  """x sigmoid(1.702 x), what OpenAI's weights were trained with."""
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable] = {
  'quick_gelu': quick_gelu,
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
}
_norm = functools.partial(nn.LayerNorm, epsilon=1e-5)


class Block(nn.Module):
  """Attention, then an MLP, each after a norm and added; x (b, l, d)."""

  heads: int
  activation: str
  causal: bool
  dtype: str
  epsilon: float = 1e-5  # of the norms

  @nn.compact
  def __call__(self, x):
    b, length, d = x.shape
    norm = functools.partial(nn.LayerNorm, epsilon=self.epsilon)
    dense = functools.partial(
      nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform()
    )
    h = norm(name='norm1')(x)
    q, k, v = (
      dense(d, name=name)(h).reshape(b, length, self.heads, d // self.heads)
      for name in ('query', 'key', 'value')
    )
    h = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
    x = x + dense(d, name='out')(h.reshape(b, length, d)).astype(x.dtype)
    h = dense(4 * d, name='up')(norm(name='norm2')(x))
    h = dense(d, name='down')(ACTIVATIONS[self.activation](h))
    return x + h.astype(x.dtype)


class VisionTransformer(nn.Module):
  """x (b, h, w, c), normalised -> (embedding (b, out), taps).

  Taps, float32: 'block<i>' (b, g, g, d), the patches after block i; 'pooled'
  (b, 1, 1, d), the class token after its norm, which CLIP's authors probe;
  'embedding' (b, 1, 1, out). Without a projection (out=0) there is no
  'embedding', and the first output is 'pooled'.
  """

  width: int
  depth: int
  heads: int
  patch: int
  out: int
  activation: str = 'quick_gelu'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    p, d = self.patch, self.width
    x = nn.Conv(
      d, (p, p), p, 'VALID', use_bias=False, dtype=self.dtype, name='patches'
    )(x).astype(jnp.float32)
    b, g = x.shape[0], x.shape[1]
    init = nn.initializers.normal(d**-0.5)
    cls = self.param('cls', init, (d,))
    positions = self.param('positions', init, (1 + g * g, d))
    x = jnp.concatenate(
      [jnp.broadcast_to(cls, (b, 1, d)), x.reshape(b, g * g, d)], axis=1
    )
    x = _norm(name='pre_norm')(x + positions[None])
    taps = {}
    for i in range(self.depth):
      x = Block(
        self.heads, self.activation, False, self.dtype, name=f'block{i}'
      )(x)
      taps[f'block{i}'] = x[:, 1:].reshape(b, g, g, d)
    pooled = _norm(name='post_norm')(x[:, 0])
    taps['pooled'] = pooled[:, None, None]
    if not self.out:
      return pooled, taps
    embedding = nn.Dense(
      self.out, use_bias=False, kernel_init=init, name='project'
    )(pooled)
    taps['embedding'] = embedding[:, None, None]
    return embedding, taps


def tap_names(depth: int, out: int) -> tuple[str, ...]:
  """Names of the taps, from the input to the output."""
  blocks = tuple(f'block{i}' for i in range(depth))
  return (*blocks, 'pooled', *(('embedding',) if out else ()))


def check_vit(
  size_px: int, *, width: int, heads: int, patch: int, activation: str, **_
) -> None:
  """Raises ValueError where the fields do not fit images of size_px."""
  lookup(ACTIVATIONS, activation, 'activation', '--config.model.activation')
  if patch < 1 or size_px % patch:
    raise ValueError(
      f'Images of {size_px} px are no whole number of patches of {patch}. Set '
      '--config.model.patch to a divisor.'
    )
  if heads < 1 or width % heads:
    raise ValueError(
      f'model.heads={heads} does not divide the width {width}. Set '
      '--config.model.heads or --config.model.width.'
    )

"""Vision transformers: masked autoencoders', and both towers of CLIP.

Sources: He et al. 2021 (exact GELU, layer norms with epsilon 1e-6, fixed sine
positions), Radford et al. 2021 and their public weights (QuickGELU, epsilon
1e-5, learnt positions, a norm before the first block). Blocks are pre-norm, and
a class token leads the patches.
Letters: b batch, h w pixels, c channels, g patches per side, l tokens or g g
patches, v visible ones, d features, p pixels per side of a patch.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from micdiffrep_jax.run.checks import lookup

Taps = dict[str, jax.Array]


def quick_gelu(x: jax.Array) -> jax.Array:
  """x sigmoid(1.702 x), what OpenAI's weights were trained with."""
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable] = {
  'quick_gelu': quick_gelu,
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
}
_MAE_EPSILON = 1e-6
_CLIP_EPSILON = 1e-5
_mae_norm = functools.partial(nn.LayerNorm, epsilon=_MAE_EPSILON)
_clip_norm = functools.partial(nn.LayerNorm, epsilon=_CLIP_EPSILON)
_init = nn.initializers.xavier_uniform()
_token = nn.initializers.normal(0.02)


def attention(
  x: jax.Array, heads: int, dtype: str, causal: bool = False
) -> jax.Array:
  """Self-attention of x (b, l, d); query, key, value, out are the caller's."""
  b, length, d = x.shape
  dense = functools.partial(nn.Dense, d, dtype=dtype, kernel_init=_init)
  q, k, v = (
    dense(name=name)(x).reshape(b, length, heads, d // heads)
    for name in ('query', 'key', 'value')
  )
  h = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
  return dense(name='out')(h.reshape(b, length, d))


def mlp(x: jax.Array, activation: Callable, dtype: str) -> jax.Array:
  """Two layers, four times as wide between them; up, down are the caller's."""
  d = x.shape[-1]
  dense = functools.partial(nn.Dense, dtype=dtype, kernel_init=_init)
  return dense(d, name='down')(activation(dense(4 * d, name='up')(x)))


class Block(nn.Module):
  """Attention, then an MLP, each after a norm and added; x (b, l, d)."""

  heads: int
  activation: str
  causal: bool
  dtype: str
  epsilon: float  # of the norms

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    norm = functools.partial(nn.LayerNorm, epsilon=self.epsilon)
    h = norm(name='norm1')(x)
    h = attention(h, self.heads, self.dtype, self.causal)
    x = x + h.astype(x.dtype)
    h = norm(name='norm2')(x)
    return x + mlp(h, ACTIVATIONS[self.activation], self.dtype).astype(x.dtype)


def _blocks(
  x: jax.Array,
  depth: int,
  heads: int,
  dtype: str,
  activation: str = 'gelu',
  epsilon: float = _MAE_EPSILON,
  causal: bool = False,
) -> tuple[jax.Array, list[jax.Array]]:
  """Takes x (b, l, d) through the blocks; also returns what each gives."""
  outputs = []
  for i in range(depth):
    block = Block(heads, activation, causal, dtype, epsilon, name=f'block{i}')
    x = block(x)
    outputs.append(x)
  return x, outputs


def _with_class_token(x: jax.Array, token: jax.Array) -> jax.Array:
  """x (b, l, d), token (d,) -> (b, 1 + l, d)."""
  b, _, d = x.shape
  return jnp.concatenate([jnp.broadcast_to(token, (b, 1, d)), x], axis=1)


def _maps(outputs: list[jax.Array], g: int) -> Taps:
  """'block<i>' (b, g, g, d): the patches after each block, of all tokens."""
  return {
    f'block{i}': x[:, 1:].reshape(x.shape[0], g, g, x.shape[-1])
    for i, x in enumerate(outputs)
  }


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
  """MAE's: x (b, h, w, c), keep (b, v) or None for all -> (b, 1 + v, d), taps.

  Taps, of all patches only: 'block<i>' (b, g, g, d) after block i, and 'cls'
  (b, 1, 1, d), the class token after the last norm.
  """

  width: int
  depth: int
  heads: int
  patch: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self, x: jax.Array, keep: jax.Array | None = None
  ) -> tuple[jax.Array, Taps]:
    d, g = self.width, x.shape[1] // self.patch
    x = nn.Dense(d, dtype=self.dtype, kernel_init=_init, name='patches')(
      patches(x, self.patch)
    ).astype(jnp.float32)
    x = x + positions(g, d)[None]
    if keep is not None:
      x = take(x, keep)
    x = _with_class_token(x, self.param('cls', _token, (d,)))
    x, outputs = _blocks(x, self.depth, self.heads, self.dtype)
    x = _mae_norm(name='norm')(x)
    if keep is not None:
      return x, {}
    return x, _maps(outputs, g) | {'cls': x[:, None, :1]}


class Decoder(nn.Module):
  """MAE's: tokens (b, 1 + v, d), restore (b, l) -> patches (b, l, out).

  restore: for each patch its place among the visible ones followed by the
  masked ones, which a learnt token stands for.
  """

  width: int
  depth: int
  heads: int
  out: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array, restore: jax.Array) -> jax.Array:
    d = self.width
    x = nn.Dense(d, kernel_init=_init, name='embed')(x)
    b, v, length = x.shape[0], x.shape[1] - 1, restore.shape[1]
    mask = self.param('mask', _token, (d,))
    hidden = jnp.broadcast_to(mask, (b, length - v, d))
    whole = take(jnp.concatenate([x[:, 1:], hidden], axis=1), restore)
    whole = whole + positions(int(length**0.5), d)[None]
    x = jnp.concatenate([x[:, :1], whole], axis=1)
    x, _ = _blocks(x, self.depth, self.heads, self.dtype)
    x = _mae_norm(name='norm')(x)[:, 1:]
    return nn.Dense(self.out, kernel_init=_init, name='pixels')(x)


class VisionTransformer(nn.Module):
  """CLIP's: x (b, h, w, c), normalised -> (embedding (b, out), taps).

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
  def __call__(self, x: jax.Array) -> tuple[jax.Array, Taps]:
    p, d = self.patch, self.width
    x = nn.Conv(
      d, (p, p), p, 'VALID', use_bias=False, dtype=self.dtype, name='patches'
    )(x).astype(jnp.float32)
    b, g = x.shape[0], x.shape[1]
    init = nn.initializers.normal(d**-0.5)
    x = _with_class_token(x.reshape(b, g * g, d), self.param('cls', init, (d,)))
    x = x + self.param('positions', init, (1 + g * g, d))[None]
    x, outputs = _blocks(
      _clip_norm(name='pre_norm')(x),
      self.depth,
      self.heads,
      self.dtype,
      self.activation,
      _CLIP_EPSILON,
    )
    taps = _maps(outputs, g)
    pooled = _clip_norm(name='post_norm')(x[:, 0])
    taps['pooled'] = pooled[:, None, None]
    if not self.out:
      return pooled, taps
    embedding = nn.Dense(
      self.out, use_bias=False, kernel_init=init, name='project'
    )(pooled)
    taps['embedding'] = embedding[:, None, None]
    return embedding, taps


class TextTransformer(nn.Module):
  """CLIP's: tokens (b, l) int32 -> (embedding (b, out), taps).

  Ids are in [0, vocabulary). The last of them ends a caption; what follows it
  is padding, which no earlier token sees. Taps: 'block<i>' (b, l, d) and
  'pooled' (b, d), float32.
  """

  vocabulary: int
  length: int
  width: int
  depth: int
  heads: int
  out: int
  activation: str = 'quick_gelu'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, tokens: jax.Array) -> tuple[jax.Array, Taps]:
    d = self.width
    places = self.param(
      'positions', nn.initializers.normal(0.01), (self.length, d)
    )
    x = nn.Embed(self.vocabulary, d, embedding_init=_token, name='tokens')(
      tokens
    )
    x, outputs = _blocks(
      x + places[None],
      self.depth,
      self.heads,
      self.dtype,
      self.activation,
      _CLIP_EPSILON,
      causal=True,
    )
    taps = {f'block{i}': h for i, h in enumerate(outputs)}
    x = _clip_norm(name='post_norm')(x)
    end = jnp.argmax(tokens == self.vocabulary - 1, axis=1)
    taps['pooled'] = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    embedding = nn.Dense(
      self.out,
      use_bias=False,
      kernel_init=nn.initializers.normal(d**-0.5),
      name='project',
    )(taps['pooled'])
    return embedding, taps


def tap_names(depth: int) -> tuple[str, ...]:
  """Names of the taps of MAE's encoder, from the input to the output."""
  return (*(f'block{i}' for i in range(depth)), 'cls')


def clip_tap_names(depth: int, out: int) -> tuple[str, ...]:
  """Names of the taps of CLIP's tower, from the input to the output."""
  blocks = (f'block{i}' for i in range(depth))
  return (*blocks, 'pooled', *(('embedding',) if out else ()))


def check_vit(
  size_px: int, *, width: int, heads: int, patch: int, activation: str, **_: Any
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


def check_encoder(
  size_px: int, *, width: int, heads: int, patch: int, **_: Any
) -> None:
  """Raises ValueError where the fields of MAE's encoder do not fit images."""
  check_vit(size_px, width=width, heads=heads, patch=patch, activation='gelu')
  check_width('model.width', width, heads)


def check_width(name: str, width: int, heads: int) -> None:
  """Raises ValueError for a width that positions or heads do not divide."""
  if width % 4 or heads < 1 or width % heads:
    raise ValueError(
      f'{name}={width} must be a multiple of 4 and of its {heads} heads. Set '
      f'--config.{name}.'
    )

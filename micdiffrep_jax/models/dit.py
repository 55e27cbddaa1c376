"""The diffusion transformer: a vision transformer as the denoiser.

Sources: Peebles and Xie 2023 (DiT: layer norms that the time moves, zero at the
start), Bao et al. 2023 (U-ViT: long skips). Ours: a skip is added through a
layer that starts at zero, so that with skips too each block starts as the
identity. Theirs, not here: labels, a learnt variance, a last convolution.
Letters: b batch, h w pixels, c channels, g patches per side, l = g g patches, d
features, p pixels per side of a patch.
"""

from collections.abc import Mapping
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from micdiffrep_jax.models import vit
from micdiffrep_jax.models.unet import (
  check_remat,
  embed,
  fold_patches,
  rematerialised,
  unfold_patches,
)
from micdiffrep_jax.run.checks import in_range

RECIPE = ('tell_augment',)  # parts of config.recipe that it knows
_SINUSOIDS = 256  # of the time
_INIT = nn.initializers.xavier_uniform()
_ZEROS = nn.initializers.zeros


def _moves(temb: jax.Array, parts: int) -> list[jax.Array]:
  """temb (b, d) -> so many (b, 1, d), all zero at the start."""
  d = temb.shape[-1]
  moves = nn.Dense(parts * d, kernel_init=_ZEROS, name='moves')(nn.silu(temb))
  return jnp.split(moves[:, None], parts, axis=-1)


def _norm(
  x: jax.Array, shift: jax.Array, scale: jax.Array, name: str
) -> jax.Array:
  """The layer norm of x (b, l, d), scaled and shifted by (b, 1, d)."""
  norm = nn.LayerNorm(epsilon=1e-6, use_scale=False, use_bias=False, name=name)
  return norm(x) * (1 + scale) + shift


class Block(nn.Module):
  """Attention, then an MLP; the time scales, shifts and gates each.

  x (b, l, d), temb (b, d), skip (b, l, d) from an earlier block or None.
  """

  heads: int
  dropout: float
  train: bool  # a field, not an argument: remat traces arguments
  dtype: str

  @nn.compact
  def __call__(
    self, x: jax.Array, temb: jax.Array, skip: jax.Array | None = None
  ) -> jax.Array:
    if skip is not None:
      joined = nn.Dense(
        x.shape[-1], dtype=self.dtype, kernel_init=_ZEROS, name='skip'
      )(jnp.concatenate([x, skip], axis=-1))
      x = x + joined.astype(x.dtype)

    drop = functools.partial(
      nn.Dropout, self.dropout, deterministic=not self.train
    )
    shift1, scale1, gate1, shift2, scale2, gate2 = _moves(temb, 6)
    h = _norm(x, shift1, scale1, 'norm1')
    h = vit.attention(h, self.heads, self.dtype).astype(x.dtype)
    x = x + gate1 * drop(name='dropout1')(h)
    h = _norm(x, shift2, scale2, 'norm2')
    h = vit.mlp(h, jax.nn.gelu, self.dtype).astype(x.dtype)
    return x + gate2 * drop(name='dropout2')(h)


class DiT(nn.Module):
  """x (b, h, h, c) in [-1, 1], t (b,) int -> output (b, h, h, c), taps.

  taps: {'block<i>': (b, g, g, d)}, the patches after each block, float32. No
  tap depends on later blocks, so jit drops those. told: (b, told) numbers, how
  the picture was changed; zeros stand for what is not told.

  Attributes:
    width: d; a multiple of 4 and of the heads.
    depth: blocks; odd where there are skips, as one stands between the halves.
    heads: of attention.
    patch: pixels per side of a patch.
    skips: whether the blocks after the middle are joined with those before it,
      the last with the first.
    dropout: rate, of what attention and MLP add.
    dtype: of attention, MLP, skips and the patches' layer; the rest is float32.
    remat: what the backward pass computes again to save memory: '' nothing,
      'norms' all but the layers' products, 'stages' all within a block.
    told: how many numbers it is told; 0 for none.
  """

  width: int = 384
  depth: int = 12
  heads: int = 6
  patch: int = 2
  skips: bool = False
  dropout: float = 0.0
  dtype: str = 'float32'
  remat: str | bool = ''
  told: int = 0

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    t: jax.Array,
    *,
    told: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    b, h, _, c = x.shape
    g, d, p = h // self.patch, self.width, self.patch
    temb = embed(t, _SINUSOIDS, d, told, self.told)
    x = nn.Dense(d, dtype=self.dtype, kernel_init=_INIT, name='patches')(
      fold_patches(x, p).reshape(b, g * g, -1)
    )
    x = x.astype(jnp.float32) + vit.positions(g, d)[None]

    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    block = functools.partial(
      rematerialised(Block, self.remat, products),
      self.heads,
      self.dropout,
      train,
      self.dtype,
    )
    outputs: list[jax.Array] = []
    for i in range(self.depth):
      joins = self.skips and i > _middle(self)
      skip = outputs[self.depth - 1 - i] if joins else None
      x = block(name=f'block{i}')(x, temb, skip)
      outputs.append(x)

    shift, scale = _moves(temb, 2)
    x = nn.Dense(p * p * c, kernel_init=_ZEROS, name='pixels')(
      _norm(x, shift, scale, 'norm')
    )
    x = unfold_patches(x.reshape(b, g, g, -1), p)
    return x, {
      f'block{i}': y.reshape(b, g, g, d) for i, y in enumerate(outputs)
    }


def _middle(model: DiT) -> int:
  """Number of the block between the halves, or the last of the first half."""
  return (model.depth - 1) // 2


def encoder_taps(model: DiT) -> tuple[str, ...]:
  """Names of the taps from the input to the middle, which is the last."""
  return tuple(f'block{i}' for i in range(_middle(model) + 1))


def decoder_taps(model: DiT) -> tuple[str, ...]:
  """Names of the taps after the middle, to the output."""
  return tuple(f'block{i}' for i in range(_middle(model) + 1, model.depth))


def divisor(model: DiT) -> int:
  """Sides that the network takes are multiples of this many pixels."""
  return model.patch


def make(fields: Mapping[str, Any], size_px: int, channels: int) -> DiT:
  """The transformer with these fields for images (size_px, size_px, channels).

  Raises ValueError where they do not fit such images.
  """
  del channels  # taken from the images
  check(size_px, **fields)
  return DiT(**fields)


def check(
  size_px: int,
  *,
  width: int,
  depth: int,
  heads: int,
  patch: int,
  skips: bool,
  remat: str | bool = '',
  **_: Any,
) -> None:
  """Raises ValueError where the fields do not fit images of size_px."""
  vit.check_encoder(size_px, width=width, heads=heads, patch=patch)
  in_range(depth, 1, float('inf'), '--config.model.depth')
  if skips and depth % 2 == 0:
    raise ValueError(
      f'model.depth={depth} is even, and long skips join two halves around a '
      'middle block. Set --config.model.depth to an odd number, or '
      '--config.model.skips=False.'
    )
  check_remat(remat)

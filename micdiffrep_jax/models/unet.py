"""The DDPM UNet, with every block's output as a named tap.

Source: Ho et al. 2020 (layout, widths, initialisation). Ours: the patchified
stem, for machines on which full-resolution convolutions are too dear.
Letters: b batch, h w pixels, c channels, d features, p pixels of a patch.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import math
from typing import Any

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from micdiffrep_jax.models.group_norm import GroupNorm

_INIT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
_ZEROS = nn.initializers.zeros
_PRODUCT = 'product'  # what is dear to compute again, by name
RECIPE = (  # parts of config.recipe that it knows
  'tell_augment',
  'blocks',
  'blank_px',
  'levels_px',
  'self_condition',
  'crop_px',
)


def time_embedding(t: jax.Array, width: int) -> jax.Array:
  """Sinusoids of the integer timestep: t (b,) -> (b, width) float32.

  t is not divided by T: neighbouring steps would become indistinguishable.
  """
  half = width // 2
  frequencies = jnp.exp(-math.log(10000.0) / (half - 1) * jnp.arange(half))
  angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def embed(
  t: jax.Array, width: int, out: int, told: jax.Array | None, numbers: int
) -> jax.Array:
  """Two layers on the sinusoids of t (...,), and on what else is told.

  told: (b, numbers), or None for zeros; t (b, ...) -> (b, ..., out). Its
  submodules, time1, time2 and told, are of the module that calls it.
  """
  embedding = time_embedding(t.reshape(-1), width).reshape(*t.shape, width)
  if numbers:
    # Before the two layers, as Karras et al. 2022 have it; without a bias, so
    # that nothing told is nothing added.
    told = jnp.zeros((len(t), numbers)) if told is None else told
    told = nn.Dense(width, use_bias=False, kernel_init=_ZEROS, name='told')(
      told
    )
    embedding = embedding + told.reshape(len(t), *(1,) * (t.ndim - 1), width)
  dense = functools.partial(nn.Dense, out, kernel_init=_INIT)
  return dense(name='time2')(nn.silu(dense(name='time1')(embedding)))


def rematerialised(
  module: type[nn.Module], remat: str | bool, kept: Callable
) -> Any:
  """The module as `remat` has it: '', 'norms' but for what is kept, or all."""
  if not remat:
    return module
  return nn.remat(module, policy=kept if remat == 'norms' else None)


def check_remat(remat: str | bool) -> None:
  """Raises ValueError for what is no way to save memory."""
  if remat not in ('', 'norms', 'stages', False, True):
    raise ValueError(
      f"model.remat={remat!r}; one of '' (nothing), norms, stages. Set "
      '--config.model.remat.'
    )


def _spread(
  shift: jax.Array, second: jax.Array | None, like: jax.Array
) -> jax.Array:
  """What to add to `like` (b, h, w, c): shift (b, c) at every pixel.

  Or shift (b, 2, c) by second (b, H, W), the share of [:, 1] at each pixel of
  the image: its average where h and w are smaller.
  """
  if second is None:
    return shift[:, None, None, :]
  b, h, w, _ = like.shape
  cells = second.reshape(b, h, second.shape[1] // h, w, second.shape[2] // w)
  share = jnp.mean(cells, axis=(2, 4))[..., None].astype(shift.dtype)
  shift = shift[:, :, None, None, :]
  return (1 - share) * shift[:, 0] + share * shift[:, 1]


class ResBlock(nn.Module):
  """GroupNorm, SiLU, conv, timestep, GroupNorm, SiLU, conv; x (b, h, w, c).

  temb (b, d), or (b, 2, d) with `second`, as _spread has it.
  """

  width: int
  groups: int
  dropout: float
  train: bool
  dtype: str

  @nn.compact
  def __call__(
    self, x: jax.Array, temb: jax.Array, second: jax.Array | None = None
  ) -> jax.Array:
    norm = functools.partial(GroupNorm, self.groups)
    conv = functools.partial(
      nn.Conv, self.width, (3, 3), dtype=self.dtype, kernel_init=_INIT
    )
    h = conv(name='conv1')(nn.silu(norm(name='norm1')(x)))
    h = checkpoint_name(h, _PRODUCT)
    shift = nn.Dense(
      self.width, dtype=self.dtype, kernel_init=_INIT, name='time'
    )(nn.silu(temb))
    h = h + _spread(shift, second, h)
    h = nn.silu(norm(name='norm2')(h))
    h = nn.Dropout(self.dropout, name='dropout')(
      h, deterministic=not self.train
    )
    # Zero initialisation: every block starts as the identity.
    h = checkpoint_name(conv(name='conv2', kernel_init=_ZEROS)(h), _PRODUCT)
    if x.shape[-1] != self.width:
      x = nn.Dense(
        self.width, dtype=self.dtype, kernel_init=_INIT, name='shortcut'
      )(x)
    return x + h


class Attention(nn.Module):
  """Self-attention over the pixels of x (b, h, w, c), with a residual."""

  heads: int
  groups: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    y = GroupNorm(self.groups, name='norm')(x)
    qkv = nn.Dense(3 * c, dtype=self.dtype, kernel_init=_INIT, name='qkv')(
      y.reshape(b, h * w, c)
    )
    qkv = checkpoint_name(qkv, _PRODUCT)
    qkv = qkv.reshape(b, h * w, 3, self.heads, c // self.heads)
    y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
    y = nn.Dense(c, dtype=self.dtype, kernel_init=_ZEROS, name='out')(
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
  def __call__(self, x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    kernel = self.param('kernel', _INIT, (3, 3, c, self.width))
    bias = self.param('bias', _ZEROS, (self.width,))
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)

    def fold(k: jax.Array, place: int) -> jax.Array:
      """Place 0 sees the pixel before its own, 1 the next."""
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
  def __call__(
    self, x: jax.Array, temb: jax.Array, second: jax.Array | None = None
  ) -> jax.Array:
    x = ResBlock(
      self.width,
      self.groups,
      self.dropout,
      self.train,
      self.dtype,
      name='res',
    )(x, temb, second)
    if self.attend:
      x = Attention(self.heads, self.groups, self.dtype, name='attention')(x)
    return x


def fold_patches(x: jax.Array, p: int) -> jax.Array:
  """x (b, h, w, c) -> (b, h/p, w/p, p p c): patches become channels."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // p, w // p, p * p * c)


def unfold_patches(x: jax.Array, p: int) -> jax.Array:
  """Undoes fold_patches."""
  b, h, w, d = x.shape
  x = x.reshape(b, h, w, p, p, d // p**2).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h * p, w * p, d // p**2)


class UNet(nn.Module):
  """x (b, h, w, c) in [-1, 1], t (b,) int -> output (b, h, w, c), taps.

  taps: {name: (b, h', w', d)}, the output of every stage (block and attention):
  `down<level>_<block>`, `mid`, `up<level>_<block>`; level 0 is the finest.
  Nothing in a tap depends on layers above it, so jit drops those.

  Training may tell it more of x by keyword; zeros stand for what is not told:
    told: (b, told) numbers, how the picture was changed.
    blank: (b, h, w), 1 at pixels that are hidden.
    second: (b, h, w), 1 at pixels noised to t[:, 1], 0 at those noised to
      t[:, 0]; t is (b, 2) then.
    guide: (b, d), a vector for the way up, as wide as the middle.

  Attributes:
    channels: width of level 0.
    multipliers: width of each level over `channels`.
    blocks: residual blocks per level downward, for all levels or each; one more
      upward.
    attention: resolutions, in pixels of the feature map of a whole image, with
      attention after each block; the middle has it always.
    heads: attention heads; the paper's form is 1.
    groups: of GroupNorm; divides every width.
    dropout: rate inside residual blocks.
    patch: the stem folds patch x patch pixels into channels, the output
      unfolds them; 1 is the paper's form.
    dtype: of convolutions, dense layers and attention; the rest is float32.
    remat: what the backward pass computes again to save memory: '' nothing,
      'norms' all but products, 'stages' all within a stage.
    size_px: side of a whole image where x may be a crop; 0 where it is not.
    told: how many numbers it is told; 0 for none.
    blank: whether it is told hidden pixels, as one more channel.
    guide: where the vector for the way up comes from: '' nowhere, 'own' the
      average of its own middle, 'first' what it is told.
  """

  channels: int = 128
  multipliers: Sequence[int] = (1, 2, 2, 2)
  blocks: int | Sequence[int] = 2
  attention: Sequence[int] = (16,)
  heads: int = 1
  groups: int = 32
  dropout: float = 0.0
  patch: int = 1
  dtype: str = 'float32'
  remat: str | bool = ''  # True, in older configs, is 'stages'
  size_px: int = 0
  told: int = 0
  blank: bool = False
  guide: str = ''

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    t: jax.Array,
    *,
    told: jax.Array | None = None,
    blank: jax.Array | None = None,
    second: jax.Array | None = None,
    guide: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    # t (b,) -> (b, d), t (b, 2) -> (b, 2, d).
    temb = embed(t, self.channels, 4 * self.channels, told, self.told)
    # A crop has attention at the levels at which its whole image has it.
    whole = self.size_px or x.shape[1]
    stage = functools.partial(
      self._stage,
      attention=[r * x.shape[1] / whole for r in self.attention],
      temb=temb,
      second=second,
      train=train,
    )
    taps: dict[str, jax.Array] = {}
    out = self.patch**2 * x.shape[-1]
    if self.blank:
      hidden = jnp.zeros(x.shape[:3]) if blank is None else blank
      x = jnp.concatenate([x, hidden[..., None]], axis=-1)

    skips = self._down(fold_patches(x, self.patch), stage, taps)
    h = skips[-1]
    h = stage('mid0', h.shape[-1], h)
    h = taps['mid'] = stage('mid', h.shape[-1], h)
    if self.guide:
      guided = temb + self._guidance(h, guide, temb)
      stage = functools.partial(stage, temb=guided)
    h = self._up(h, skips, stage, taps)

    h = GroupNorm(self.groups, name='out_norm')(h)
    h = nn.Conv(out, (3, 3), dtype=self.dtype, kernel_init=_ZEROS, name='out')(
      nn.silu(h)
    )
    return unfold_patches(h, self.patch).astype(jnp.float32), taps

  def _guidance(
    self, middle: jax.Array, guide: jax.Array | None, temb: jax.Array
  ) -> jax.Array:
    """What the way up gets beside temb, shaped to be added to it.

    Source: Xiang et al. 2025 (DDAE++), where it is the network's own middle.
    """
    if self.guide == 'own':
      guide = jnp.mean(middle, axis=(1, 2))
    elif guide is None:
      guide = jnp.zeros((len(middle), middle.shape[-1]))
    guide = nn.Dense(
      temb.shape[-1], use_bias=False, kernel_init=_ZEROS, name='guide'
    )(guide)
    return guide.reshape(len(temb), *(1,) * (temb.ndim - 2), temb.shape[-1])

  def _stage(
    self,
    name: str,
    width: int,
    h: jax.Array,
    attention: Sequence[float],
    temb: jax.Array,
    second: jax.Array | None,
    train: bool,
  ) -> jax.Array:
    """Applies the stage called `name`; one submodule."""
    # The middle is block, attention, block at any resolution.
    attend = name == 'mid0' or (name != 'mid' and h.shape[1] in attention)
    kept = jax.checkpoint_policies.save_only_these_names(_PRODUCT)
    stage = rematerialised(Stage, self.remat, kept)(
      width,
      attend,
      self.heads,
      self.groups,
      self.dropout,
      train,
      self.dtype,
      name=name,
    )
    return stage(h, temb, second)

  def _down(
    self, x: jax.Array, stage: Callable, taps: dict[str, jax.Array]
  ) -> list[jax.Array]:
    """From the stem to the coarsest level; all that the way up joins."""
    conv = functools.partial(nn.Conv, dtype=self.dtype, kernel_init=_INIT)
    h = conv(self.channels, (3, 3), name='in')(x)
    skips = [h]
    for level, multiplier in enumerate(self.multipliers):
      width = self.channels * multiplier
      for block in range(blocks_of(self)[level]):
        name = f'down{level}_{block}'
        h = taps[name] = stage(name, width, h)
        skips.append(h)
      if level < len(self.multipliers) - 1:
        # (0, 1): TensorFlow's SAME for stride 2, as in the reference.
        h = conv(
          width,
          (3, 3),
          strides=2,
          padding=((0, 1), (0, 1)),
          name=f'down{level}_pool',
        )(h)
        skips.append(h)
    return skips

  def _up(
    self,
    h: jax.Array,
    skips: Sequence[jax.Array],
    stage: Callable,
    taps: dict[str, jax.Array],
  ) -> jax.Array:
    """From the middle to the finest level; joins the way down, last first."""
    left = list(skips)
    for level in reversed(range(len(self.multipliers))):
      width = self.channels * self.multipliers[level]
      for block in range(blocks_of(self)[level] + 1):
        name = f'up{level}_{block}'
        h = jnp.concatenate([h, left.pop()], axis=-1)
        h = taps[name] = stage(name, width, h)
      if level > 0:
        h = Grow(width, self.dtype, name=f'up{level}_grow')(h)
    return h


def blocks_of(model: UNet) -> tuple[int, ...]:
  """Residual blocks of each level downward."""
  return _per_level(model.blocks, len(model.multipliers))


def _per_level(blocks: int | Sequence[int], levels: int) -> tuple[int, ...]:
  return (blocks,) * levels if isinstance(blocks, int) else tuple(blocks)


def encoder_taps(model: UNet) -> tuple[str, ...]:
  """Names of the taps from the input to the middle, which is the last."""
  levels = enumerate(blocks_of(model))
  return (*(f'down{i}_{j}' for i, n in levels for j in range(n)), 'mid')


def decoder_taps(model: UNet) -> tuple[str, ...]:
  """Names of the taps after the middle, to the output."""
  levels = reversed(tuple(enumerate(blocks_of(model))))
  return tuple(f'up{i}_{j}' for i, n in levels for j in range(n + 1))


def divisor(model: UNet) -> int:
  """Sides that the network takes are multiples of this many pixels."""
  return model.patch * 2 ** (len(model.multipliers) - 1)


def make(fields: Mapping[str, Any], size_px: int, channels: int) -> UNet:
  """The UNet with these fields for images (size_px, size_px, channels).

  Raises ValueError where they do not fit such images.
  """
  del channels  # taken from the images
  check_unet(size_px, **fields)
  return UNet(**fields, size_px=size_px)


def check_unet(
  size_px: int,
  *,
  channels: int,
  multipliers: Sequence[int],
  attention: Sequence[int],
  heads: int,
  groups: int,
  patch: int,
  blocks: int | Sequence[int] = 1,
  remat: str | bool = '',
  **_: Any,
) -> None:
  """Raises ValueError where the fields do not fit images of size_px."""
  divisor = patch * 2 ** (len(multipliers) - 1)
  if size_px % divisor:
    raise ValueError(
      f'Images of {size_px} px do not halve {len(multipliers) - 1} times after '
      f'patches of {patch}: the size must be a multiple of {divisor}. Prepare '
      'with another --config.data.size_px, or change --config.model.multipliers'
      ' or --config.model.patch.'
    )
  sizes = [size_px // patch // 2**i for i in range(len(multipliers))]
  absent = [r for r in attention if r not in sizes]
  if absent:
    raise ValueError(
      f'Attention at {absent}: this UNet has feature maps of {sizes} px only. '
      "Set --config.model.attention, e.g. '(14, 7)' for 112 px images."
    )
  for name, number in (('groups', groups), ('heads', heads)):
    if any(channels * m % number for m in multipliers):
      raise ValueError(
        f'model.{name}={number} does not divide every width '
        f'{[channels * m for m in multipliers]}. Set --config.model.{name} or '
        '--config.model.channels.'
      )
  each = _per_level(blocks, len(multipliers))
  if len(each) != len(multipliers) or min(each) < 1:
    raise ValueError(
      f'Blocks {blocks}: give one number from 1 up, --config.model.blocks, or '
      f'one for each of {len(multipliers)} levels, --config.recipe.blocks.'
    )
  check_remat(remat)
  if channels % 2 or channels < 4:
    raise ValueError(
      f'model.channels={channels} must be even and at least 4. Set '
      '--config.model.channels.'
    )

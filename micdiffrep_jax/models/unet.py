"""The DDPM UNet, with every block's output as a named tap.

Source: Ho et al. 2020 (layout, widths, initialisation). Ours: the patchified
stem, for machines on which full-resolution convolutions are too dear.
Letters: b batch, h w pixels, c channels, d features.
"""

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from micdiffrep_jax.models.unet_blocks import (
  INIT,
  PRODUCT,
  ZEROS,
  Grow,
  Stage,
  time_embedding,
)


class UNet(nn.Module):
  """x (b, h, w, c) in [-1, 1], t (b,) int -> output (b, h, w, c), taps.

  taps: {name: (b, h', w', d)}, the output of every stage (block and attention):
  `down<level>_<block>`, `mid`, `up<level>_<block>`; level 0 is the finest.
  Nothing in a tap depends on layers above it, so jit drops those.

  Attributes:
    channels: width of level 0.
    multipliers: width of each level over `channels`.
    blocks: residual blocks per level downward; one more upward.
    attention: resolutions, in pixels of the feature map, with attention after
      each block; the middle has it always.
    heads: attention heads; the paper's form is 1.
    groups: of GroupNorm; divides every width.
    dropout: rate inside residual blocks.
    patch: the stem folds patch x patch pixels into channels, the output
      unfolds them; 1 is the paper's form.
    dtype: of convolutions, dense layers and attention; the rest is float32.
    remat: what the backward pass computes again to save memory: '' nothing,
      'norms' all but products, 'stages' all within a stage.
  """

  channels: int = 128
  multipliers: Sequence[int] = (1, 2, 2, 2)
  blocks: int = 2
  attention: Sequence[int] = (16,)
  heads: int = 1
  groups: int = 32
  dropout: float = 0.0
  patch: int = 1
  dtype: str = 'float32'
  remat: str | bool = ''  # True, in older configs, is 'stages'

  @nn.compact
  def __call__(self, x, t, *, train: bool = False):
    b, height, width, c = x.shape
    p, levels = self.patch, len(self.multipliers)
    stage_class = Stage
    if self.remat == 'norms':
      kept = jax.checkpoint_policies.save_only_these_names(PRODUCT)
      stage_class = nn.remat(Stage, policy=kept)
    elif self.remat:
      stage_class = nn.remat(Stage)
    conv = functools.partial(nn.Conv, dtype=self.dtype, kernel_init=INIT)

    def stage(name, features, h):
      # The middle is block, attention, block at any resolution.
      attend = name == 'mid0' or (
        name != 'mid' and h.shape[1] in self.attention
      )
      return stage_class(
        features,
        attend,
        self.heads,
        self.groups,
        self.dropout,
        train,
        self.dtype,
        name=name,
      )(h, temb)

    temb = time_embedding(t, self.channels)
    temb = nn.Dense(4 * self.channels, kernel_init=INIT, name='time1')(temb)
    temb = nn.Dense(4 * self.channels, kernel_init=INIT, name='time2')(
      nn.silu(temb)
    )

    taps = {}
    if p > 1:
      x = x.reshape(b, height // p, p, width // p, p, c)
      x = x.transpose(0, 1, 3, 2, 4, 5)
      x = x.reshape(b, height // p, width // p, p * p * c)
    h = conv(self.channels, (3, 3), name='in')(x)
    skips = [h]
    for level, multiplier in enumerate(self.multipliers):
      features = self.channels * multiplier
      for block in range(self.blocks):
        name = f'down{level}_{block}'
        h = taps[name] = stage(name, features, h)
        skips.append(h)
      if level < levels - 1:
        # (0, 1): TensorFlow's SAME for stride 2, as in the reference.
        h = conv(
          features,
          (3, 3),
          strides=2,
          padding=((0, 1), (0, 1)),
          name=f'down{level}_pool',
        )(h)
        skips.append(h)

    h = stage('mid0', h.shape[-1], h)
    h = taps['mid'] = stage('mid', h.shape[-1], h)

    for level in reversed(range(levels)):
      features = self.channels * self.multipliers[level]
      for block in range(self.blocks + 1):
        name = f'up{level}_{block}'
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = taps[name] = stage(name, features, h)
      if level > 0:
        h = Grow(features, self.dtype, name=f'up{level}_grow')(h)

    h = nn.silu(nn.GroupNorm(self.groups, epsilon=1e-6, name='out_norm')(h))
    h = nn.Conv(p * p * c, (3, 3), kernel_init=ZEROS, name='out')(h)
    if p > 1:
      h = h.reshape(b, height // p, width // p, p, p, c)
      h = h.transpose(0, 1, 3, 2, 4, 5).reshape(b, height, width, c)
    return h.astype(jnp.float32), taps


def tap_names(levels: int, blocks: int) -> tuple[str, ...]:
  """Names of a UNet's taps, from the input to the output."""
  down = [f'down{i}_{j}' for i in range(levels) for j in range(blocks)]
  up = [
    f'up{i}_{j}' for i in reversed(range(levels)) for j in range(blocks + 1)
  ]
  return (*down, 'mid', *up)


def check_unet(
  size_px: int,
  *,
  channels: int,
  multipliers: Sequence[int],
  attention: Sequence[int],
  heads: int,
  groups: int,
  patch: int,
  remat: str | bool = '',
  **_,
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
  if remat not in ('', 'norms', 'stages', False, True):
    raise ValueError(
      f"model.remat={remat!r}; one of '' (nothing), norms, stages. Set "
      '--config.model.remat.'
    )
  if channels % 2 or channels < 4:
    raise ValueError(
      f'model.channels={channels} must be even and at least 4. Set '
      '--config.model.channels.'
    )

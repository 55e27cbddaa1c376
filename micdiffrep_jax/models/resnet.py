"""ResNet with a grouped batch norm, and the projectors on top of it.

Source: He et al. 2015 with the stride in the 3 x 3 convolution, as torchvision
has it. Ours: stems for small images, and batch statistics per group.
Letters: b batch, g groups, h w pixels, c channels, d features.
"""

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from micdiffrep_jax.run.checks import lookup

# How far each shrinks an image.
STEMS = {'imagenet': 4, 'stride4': 4, 'stride2': 2, 'stride1': 1}
SMALLEST_PX = 3

_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class GroupedBatchNorm(nn.Module):
  """Batch norm within each of `groups` equal runs of the batch; x (b, ..., d).

  What per-device batch norm computes, on any number of devices; where groups
  lie whole on a device, without communication but for the running averages.
  1 group is the norm over the global batch.
  Running averages start at mean 0, variance 1 and are read unless `train`.
  """

  groups: int = 1
  decay: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x, *, train: bool):
    x = x.astype(jnp.float32)
    d = x.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (d,))
    bias = self.param('bias', nn.initializers.zeros, (d,))
    mean = self.variable('batch_stats', 'mean', jnp.zeros, (d,))
    var = self.variable('batch_stats', 'var', jnp.ones, (d,))
    shape = x.shape
    # Rows of a group lie together, so this moves nothing. Pixels keep their
    # axes: with one axis for all, gradients on CPU take three times as long.
    x = x.reshape(self.groups if train else 1, -1, *shape[1:])
    ones = (1,) * (x.ndim - 1)
    if not train:
      m, v = mean.value.reshape(*ones, d), var.value.reshape(*ones, d)
    else:
      axes = tuple(range(1, x.ndim - 1))
      m = jnp.mean(x, axes, keepdims=True)
      v = jnp.mean(jnp.square(x - m), axes, keepdims=True)
      if not self.is_initializing():
        every = tuple(range(x.ndim - 1))
        mean.value += (1 - self.decay) * (jnp.mean(m, every) - mean.value)
        var.value += (1 - self.decay) * (jnp.mean(v, every) - var.value)
    gain = jax.lax.rsqrt(v + self.epsilon) * scale.reshape(*ones, d)
    return ((x - m) * gain + bias.reshape(*ones, d)).reshape(shape)


class Block(nn.Module):
  """Two 3 x 3 convolutions, or 1-3-1 with four times the width, and a skip."""

  width: int
  stride: int
  bottleneck: bool
  groups: int
  dtype: str

  @nn.compact
  def __call__(self, x, *, train: bool):
    norm = functools.partial(GroupedBatchNorm, self.groups)

    def conv(width, kernel, stride, name, x):
      y = nn.Conv(
        width,
        (kernel, kernel),
        stride,
        padding=kernel // 2,
        use_bias=False,
        dtype=self.dtype,
        kernel_init=_init,
        name=f'conv{name}',
      )(x)
      return norm(name=f'norm{name}')(y, train=train)

    if self.bottleneck:
      out = 4 * self.width
      y = nn.relu(conv(self.width, 1, 1, '1', x))
      y = nn.relu(conv(self.width, 3, self.stride, '2', y))
      y = conv(out, 1, 1, '3', y)
    else:
      out = self.width
      y = nn.relu(conv(out, 3, self.stride, '1', x))
      y = conv(out, 3, 1, '2', y)
    if x.shape != y.shape:
      x = conv(out, 1, self.stride, '_skip', x)
    return nn.relu(x + y)


class ResNet(nn.Module):
  """x (b, h, w, c) -> average (b, d) float32, taps {stage1, ...: (b, h, w, d)}.

  Attributes:
    blocks: per stage; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) with
      bottlenecks ResNet-50.
    bottleneck: 1-3-1 blocks.
    width: of the first stage; doubles with each.
    stem: imagenet (7 x 7 by 2, max-pool by 2) | stride4 (7 x 7) | stride2 |
      stride1 (3 x 3).
    groups: of the batch norm.
    dtype: of convolutions; the rest is float32.
  """

  blocks: Sequence[int] = (3, 4, 6, 3)
  bottleneck: bool = True
  width: int = 64
  stem: str = 'imagenet'
  groups: int = 1
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    imagenet = self.stem == 'imagenet'
    kernel = 7 if STEMS[self.stem] == 4 else 3
    x = nn.Conv(
      self.width,
      (kernel, kernel),
      2 if imagenet else STEMS[self.stem],
      padding=kernel // 2,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=_init,
      name='stem',
    )(x)
    x = nn.relu(GroupedBatchNorm(self.groups, name='stem_norm')(x, train=train))
    if imagenet:
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    taps = {}
    for i, count in enumerate(self.blocks):
      for j in range(count):
        x = Block(
          self.width * 2**i,
          2 if i and not j else 1,
          self.bottleneck,
          self.groups,
          self.dtype,
          name=f'stage{i + 1}_{j}',
        )(x, train=train)
      taps[f'stage{i + 1}'] = x
    return jnp.mean(x, axis=(1, 2)), taps


class Projector(nn.Module):
  """Dense, (batch norm,) ReLU, dense: x (b, d) -> (b, out) float32.

  The last layer has a bias only without the norm, as MoCo v2 and BYOL have it.
  """

  hidden: int
  out: int
  norm: bool
  groups: int = 1
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    x = nn.Dense(self.hidden, dtype=self.dtype, name='hidden')(x)
    if self.norm:
      x = GroupedBatchNorm(self.groups, name='norm')(x, train=train)
    x = nn.relu(x)
    x = nn.Dense(
      self.out, use_bias=not self.norm, dtype=self.dtype, name='out'
    )(x)
    return x.astype(jnp.float32)


class Embedder(nn.Module):
  """A ResNet and its projector: x (b, h, w, c) -> (b, out), taps."""

  encoder: ResNet
  projector: Projector

  def __call__(self, x, *, train: bool = False):
    x, taps = self.encoder(x, train=train)
    return self.projector(x, train=train), taps


def check_resnet(size_px: int, blocks: Sequence[int], stem: str) -> None:
  """Raises ValueError where the last feature map would be under 3 x 3.

  There a 3 x 3 convolution reads mostly padding, and XLA on CPU takes 50 to 130
  times as long for it.
  """
  shrinks = lookup(STEMS, stem, 'stem', '--config.model.stem')
  if not blocks or any(
    not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in blocks
  ):
    raise ValueError(
      f'model.blocks={tuple(blocks)} must be one or more counts of at least 1. '
      'Set --config.model.blocks.'
    )
  last = size_px
  for _ in range(shrinks.bit_length() - 1 + len(blocks) - 1):
    last = -(-last // 2)
  if last < SMALLEST_PX:
    raise ValueError(
      f'{len(blocks)} stages after the stem {stem!r} shrink {size_px} px to '
      f'{last}; at least {SMALLEST_PX} are needed. Set --config.model.stem '
      f'(one of {", ".join(STEMS)}), fewer --config.model.blocks, or prepare '
      'larger images with --config.data.size_px.'
    )

"""ResNets: one that is trained here, with its projectors, and CLIP's.

Sources: He et al. 2015 with the stride in the 3 x 3 convolution, as torchvision
has it; Radford et al. 2021 and their public weights (RN50): a stem of three
convolutions, strides by average pooling instead of in the convolutions, a mean
that attends to the last map instead of a plain one; inference only. Ours: stems
for small images, and batch statistics per group.
Letters: b batch, g groups or pixels per side of the last map, h w pixels, c
channels, d features.
"""

from collections.abc import Callable, Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from micdiffrep_jax.run.checks import lookup

# How far each shrinks an image.
STEMS = {'imagenet': 4, 'stride4': 4, 'stride2': 2, 'stride1': 1}
SMALLEST_PX = 3
CLIP_SHRINKS = 32  # an image, to the last map of CLIP's

Taps = dict[str, jax.Array]
_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
# CLIP's random weights are a control: without the statistics of a batch each
# ReLU's halving is made good, and what a block adds is kept from doubling its
# input.
_clip_init = nn.initializers.he_normal()
_RESIDUAL_SCALE = 0.5


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
  start: float = 1.0  # of the scale

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = x.astype(jnp.float32)
    d = x.shape[-1]
    scale = self.param('scale', nn.initializers.constant(self.start), (d,))
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


def _conv(
  x: jax.Array,
  width: int,
  kernel: int,
  stride: int,
  name: str,
  dtype: str,
  init: Callable = _init,
) -> jax.Array:
  """A convolution without a bias that keeps h and w but for the stride."""
  return nn.Conv(
    width,
    (kernel, kernel),
    stride,
    padding=kernel // 2,
    use_bias=False,
    dtype=dtype,
    kernel_init=init,
    name=name,
  )(x)


class Block(nn.Module):
  """Two 3 x 3 convolutions, or 1-3-1 with four times the width, and a skip."""

  width: int
  stride: int
  bottleneck: bool
  groups: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    def conv(
      x: jax.Array, width: int, kernel: int, stride: int, name: str
    ) -> jax.Array:
      x = _conv(x, width, kernel, stride, f'conv{name}', self.dtype)
      norm = GroupedBatchNorm(self.groups, name=f'norm{name}')
      return norm(x, train=train)

    if self.bottleneck:
      out = 4 * self.width
      y = nn.relu(conv(x, self.width, 1, 1, '1'))
      y = nn.relu(conv(y, self.width, 3, self.stride, '2'))
      y = conv(y, out, 1, 1, '3')
    else:
      out = self.width
      y = nn.relu(conv(x, out, 3, self.stride, '1'))
      y = conv(y, out, 3, 1, '2')
    if x.shape != y.shape:
      x = conv(x, out, 1, self.stride, '_skip')
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
  def __call__(
    self, x: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, Taps]:
    imagenet = self.stem == 'imagenet'
    kernel = 7 if STEMS[self.stem] == 4 else 3
    stride = 2 if imagenet else STEMS[self.stem]
    x = _conv(x, self.width, kernel, stride, 'stem', self.dtype)
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
  """Dense, (norm,) ReLU, dense: x (b, ..., d) -> (b, ..., out) float32.

  The last layer has a bias only without a norm, as MoCo v2 and BYOL have it.
  norm: '' | batch | layer; groups: of the batch norm.
  """

  hidden: int
  out: int
  norm: str
  groups: int = 1
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    x = nn.Dense(self.hidden, dtype=self.dtype, name='hidden')(x)
    if self.norm == 'batch':
      x = GroupedBatchNorm(self.groups, name='norm')(x, train=train)
    elif self.norm == 'layer':
      x = nn.LayerNorm(name='norm')(x)
    x = nn.relu(x)
    x = nn.Dense(
      self.out, use_bias=not self.norm, dtype=self.dtype, name='out'
    )(x)
    return x.astype(jnp.float32)


class Embedder(nn.Module):
  """A ResNet and its projector: x (b, h, w, c) -> (b, out), taps."""

  encoder: ResNet
  projector: Projector

  def __call__(
    self, x: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, Taps]:
    x, taps = self.encoder(x, train=train)
    return self.projector(x, train=train), taps


def _pool(x: jax.Array, stride: int) -> jax.Array:
  """Averages of stride x stride pixels; a rest at the edge is left out."""
  if stride == 1:
    return x
  return nn.avg_pool(x, (stride, stride), (stride, stride))


def _clip_conv(
  x: jax.Array,
  width: int,
  kernel: int,
  name: str,
  dtype: str,
  stride: int = 1,
  start: float = 1.0,
) -> jax.Array:
  """A convolution, then a batch norm whose scale starts at `start`."""
  x = _conv(x, width, kernel, stride, f'conv{name}', dtype, _clip_init)
  norm = GroupedBatchNorm(start=start, name=f'norm{name}')
  return norm(x, train=False)


class ClipBlock(nn.Module):
  """1-3-1 to four times the width, and a skip; x (b, h, w, c).

  Both ways are blurred before they are strided: the main one after its 3 x 3
  convolution, the skip before its 1 x 1.
  """

  width: int
  stride: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    out = 4 * self.width
    y = nn.relu(_clip_conv(x, self.width, 1, '1', self.dtype))
    y = nn.relu(_clip_conv(y, self.width, 3, '2', self.dtype))
    y = _pool(y, self.stride)
    y = _clip_conv(y, out, 1, '3', self.dtype, start=_RESIDUAL_SCALE)
    if self.stride > 1 or x.shape[-1] != out:
      x = _clip_conv(_pool(x, self.stride), out, 1, '_skip', self.dtype)
    return nn.relu(x + y)


class AttentionPool(nn.Module):
  """The mean of a map attends to it and itself: x (b, g, g, d) -> (b, out)."""

  heads: int
  out: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
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
  """CLIP's: x (b, h, w, 3), normalised -> (embedding (b, out), taps).

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
  def __call__(self, x: jax.Array) -> tuple[jax.Array, Taps]:
    for i, (width, stride) in enumerate(
      ((self.width // 2, 2), (self.width // 2, 1), (self.width, 1))
    ):
      x = nn.relu(_clip_conv(x, width, 3, f'{i + 1}', self.dtype, stride))
    x = _pool(x, 2)
    taps = {}
    for i, count in enumerate(self.blocks):
      for j in range(count):
        stride = 2 if i and not j else 1
        x = ClipBlock(
          self.width * 2**i, stride, self.dtype, name=f'stage{i + 1}_{j}'
        )(x)
      taps[f'stage{i + 1}'] = x
    embedding = AttentionPool(self.heads, self.out, name='pool')(x)
    taps['embedding'] = embedding[:, None, None]
    return embedding, taps


def tap_names(blocks: Sequence[int]) -> tuple[str, ...]:
  """Names of the taps of a ResNet, from the input to the output."""
  return tuple(f'stage{i + 1}' for i in range(len(blocks)))


def clip_tap_names(blocks: Sequence[int]) -> tuple[str, ...]:
  """Names of the taps of CLIP's, from the input to the output."""
  return (*tap_names(blocks), 'embedding')


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

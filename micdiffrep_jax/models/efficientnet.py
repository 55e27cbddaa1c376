"""EfficientNet-Lite: inverted residual blocks with ReLU6, no squeeze.

Source: Tan & Le 2019, in the "lite" form of the TensorFlow TPU models: stem and
head keep their widths, batch norms have epsilon 1e-3. Inference only.
Letters: b batch, h w pixels, c channels, d features.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp


class Stage(NamedTuple):
  """Blocks of one width; the stride is that of the first."""

  kernel: int
  stride: int
  expand: int
  width: int
  repeats: int


LITE0 = (
  Stage(3, 1, 1, 16, 1),
  Stage(3, 2, 6, 24, 2),
  Stage(5, 2, 6, 40, 2),
  Stage(3, 2, 6, 80, 3),
  Stage(5, 1, 6, 112, 3),
  Stage(5, 2, 6, 192, 4),
  Stage(3, 1, 6, 320, 1),
)


# Random weights are a control: without the statistics of a batch their outputs
# would vanish unless each ReLU's halving is made good.
_before_relu = nn.initializers.he_normal()


def relu6(x: jax.Array) -> jax.Array:
  """min(max(x, 0), 6)."""
  return jnp.clip(x, 0.0, 6.0)


def _norm(name: str) -> nn.BatchNorm:
  return nn.BatchNorm(use_running_average=True, epsilon=1e-3, name=name)


class Depthwise(nn.Module):
  """A k x k filter per channel, with TensorFlow's SAME padding; (b, h, w, c).

  A sum of shifted products, which XLA fuses: on a CPU its grouped convolution
  takes many times longer.
  """

  kernel: int
  stride: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    k, stride = self.kernel, self.stride
    kernel = self.param('kernel', _before_relu, (k, k, 1, x.shape[-1]))
    x, kernel = (v.astype(self.dtype) for v in (x, kernel))
    pads = [same_padding(n, k, stride) for n in x.shape[1:3]]
    h, w = (-(-n // stride) for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    products = [
      x[
        :,
        i : i + (h - 1) * stride + 1 : stride,
        j : j + (w - 1) * stride + 1 : stride,
      ]
      * kernel[i, j][None, None]
      for i in range(k)
      for j in range(k)
    ]
    return functools.reduce(jnp.add, products)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
  """Pixels before and after; the odd one is after."""
  total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
  return total // 2, total - total // 2


class Block(nn.Module):
  """Expands 1 x 1, filters each channel, projects 1 x 1; x (b, h, w, c)."""

  kernel: int
  stride: int
  expand: int
  width: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
    h, inner = x, self.expand * x.shape[-1]
    if self.expand != 1:
      h = conv(inner, (1, 1), kernel_init=_before_relu, name='expand')(h)
      h = relu6(_norm('expand_norm')(h))
    h = Depthwise(self.kernel, self.stride, self.dtype, name='depthwise')(h)
    h = relu6(_norm('depthwise_norm')(h))
    h = conv(self.width, (1, 1), name='project')(h)
    h = _norm('project_norm')(h)
    return x + h if self.stride == 1 and x.shape == h.shape else h


class EfficientNetLite(nn.Module):
  """x (b, h, w, 3), normalised -> (mean of the head (b, d), taps).

  Taps: 'stem', 'block<i>', 'head', each (b, h', w', d) float32.
  """

  stages: Sequence[Sequence[int]] = LITE0
  stem: int = 32
  head: int = 1280
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    conv = functools.partial(
      nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=_before_relu
    )
    taps = {}
    # TensorFlow's SAME: at stride 2 the padding is on the right and below.
    h = conv(self.stem, (3, 3), 2, name='stem')(x)
    h = taps['stem'] = relu6(_norm('stem_norm')(h))
    for i, stage in enumerate(blocks(self.stages)):
      name = f'block{i}'
      h = Block(
        stage.kernel,
        stage.stride,
        stage.expand,
        stage.width,
        self.dtype,
        name=name,
      )(h)
      taps[name] = h
    h = conv(self.head, (1, 1), name='head')(h)
    h = taps['head'] = relu6(_norm('head_norm')(h))
    taps = {k: v.astype(jnp.float32) for k, v in taps.items()}
    return jnp.mean(taps['head'], axis=(1, 2)), taps


def blocks(stages: Sequence[Sequence[int]]) -> list[Stage]:
  """One single-block stage per block, in order."""
  found = []
  for stage in (Stage(*s) for s in stages):
    found.append(stage._replace(repeats=1))
    found += (stage.repeats - 1) * [stage._replace(stride=1, repeats=1)]
  return found


def tap_names(stages: Sequence[Sequence[int]]) -> tuple[str, ...]:
  """Names of the taps, from the input to the output."""
  return ('stem', *(f'block{i}' for i in range(len(blocks(stages)))), 'head')

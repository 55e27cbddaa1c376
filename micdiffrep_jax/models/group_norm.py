"""GroupNorm as two sums of each channel and one multiply-add of each value.

Letters: b batch, c channels, g groups.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp


class GroupNorm(nn.Module):
  """Normalises x (b, ..., c) over its pixels and c / groups channels.

  Returns float32. Its weights are those of flax.linen.GroupNorm, which gives
  the array one axis more, of a group's channels: backwards a GPU then keeps a
  float32 copy of it. Here only sums over pixels (b, c) get that axis.
  """

  groups: int
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, c = x.shape[0], x.shape[-1]  # b may be a symbol, in an export
    scale = self.param('scale', nn.initializers.ones, (c,))[None]
    bias = self.param('bias', nn.initializers.zeros, (c,))[None]
    pixels = tuple(range(1, x.ndim - 1))

    def average(x: jax.Array) -> jax.Array:
      """Of pixels and a group's channels, for each channel: (b, c)."""
      by_group = jnp.mean(x, pixels).reshape(b, self.groups, -1)
      mean = jnp.mean(by_group, axis=-1, keepdims=True)
      return jnp.broadcast_to(mean, by_group.shape).reshape(b, c)

    x = x.astype(jnp.float32)
    mean = average(x)
    variance = jnp.maximum(average(x * x) - mean**2, 0)
    slope = scale * jax.lax.rsqrt(variance + self.epsilon)
    shift = bias - mean * slope
    return x * jnp.expand_dims(slope, pixels) + jnp.expand_dims(shift, pixels)

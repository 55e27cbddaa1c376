"""GroupNorm against flax's."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from micdiffrep_jax.models.group_norm import GroupNorm


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shape', [(2, 5, 4, 12), (3, 7, 12)])
def test_values_gradients_and_weights_are_those_of_flax(shape, dtype):
  keys = iter(jax.random.split(jax.random.key(0), 4))
  # Far from zero: the mean must be taken off before it is too late.
  x = (3 + jax.random.normal(next(keys), shape)).astype(dtype)
  weight = jax.random.normal(next(keys), shape)
  variables = {
    'params': {
      'scale': 1 + 0.3 * jax.random.normal(next(keys), shape[-1:]),
      'bias': jax.random.normal(next(keys), shape[-1:]),
    }
  }

  def read(module):
    def loss(variables, x):
      y = module.apply(variables, x)
      return jnp.sum(weight * y), y

    (_, y), slopes = jax.value_and_grad(loss, (0, 1), has_aux=True)(
      variables, x
    )
    return y, slopes

  ours = GroupNorm(4)
  flaxs = nn.GroupNorm(4, epsilon=ours.epsilon)
  assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), x)) == (
    jax.tree.map(jnp.shape, flaxs.init(jax.random.key(1), x))
  )
  got, want = read(ours), read(flaxs)
  assert got[0].dtype == want[0].dtype == jnp.float32
  # Some tens of float32's roundings; gradients of bfloat16 are rounded to it.
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    assert a.dtype == b.dtype
    least = 1e-2 if a.dtype == jnp.bfloat16 else 3e-5
    assert jnp.allclose(a, b, rtol=least, atol=least)

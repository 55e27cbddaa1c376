"""Heads that are trained by gradient: a linear probe and the MSFA module.

Letters: b rows, d features, k classes, m hidden units. Features arrive flat;
concatenating layers, standardising and dropout are the caller's part.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

Params = dict[str, Array]


class Net(NamedTuple):
  """init(key, width, d, m, k, bias) -> params; apply(params, x) -> logits.

  `width` may be traced and smaller than d: columns from `width` on are padding,
  zero in the features, and the weights of the others do not depend on d.
  """

  init: Callable[..., Params]
  apply: Callable[[Params, Array], Array]


def _uniform(key: Array, d: int, out: int, fan_in: Any) -> Array:
  """(out, d), uniform within 1 / sqrt(fan_in), as torch starts a Linear.

  Outputs lead, so that the weights of many heads on the same features stack
  to one matrix and one product, without a copy. Drawn as (d, out), so the
  weights of the first columns do not depend on the padding.
  """
  bound = 1.0 / jnp.sqrt(jnp.maximum(fan_in, 1).astype(jnp.float32))
  kernel = jax.random.uniform(key, (d, out), jnp.float32, -1.0, 1.0)
  return (bound * kernel).T


def dense(params: Params, name: str, x: Array) -> Array:
  """(b, out) = x (b, d) times the weights of that name, plus their bias."""
  # Weights first: the compiler then turns the few rows, not the many weights.
  y = jnp.einsum('od,bd->ob', params[name], x).T
  bias = params.get(name + '_bias')
  return y if bias is None else y + bias[None, :]


def _init_linear(
  key: Array, width: Any, d: int, m: int, k: int, bias: bool
) -> Params:
  del m
  params = {'M': _uniform(key, d, k, jnp.asarray(width))}
  return params | {'M_bias': jnp.zeros(k)} if bias else params


def _apply_linear(params: Params, x: Array) -> Array:
  """M x."""
  return dense(params, 'M', x)


def _init_msfa(
  key: Array, width: Any, d: int, m: int, k: int, bias: bool
) -> Params:
  key_w, key_m = jax.random.split(key)
  params = {
    'W': _uniform(key_w, d, m, jnp.asarray(width)),
    'M': _uniform(key_m, m, k, jnp.asarray(m)),
  }
  if bias:
    params |= {'W_bias': jnp.zeros(m), 'M_bias': jnp.zeros(k)}
  return params


def _apply_msfa(params: Params, x: Array) -> Array:
  """M relu(W F), eqs. 5 and 6; F (b, d) is the concatenation of eq. 4."""
  return dense(params, 'M', jax.nn.relu(dense(params, 'W', x)))


# On a concatenation of layers 'mlp' is MSFA; on one layer it is the equal head
# that a fair comparison needs.
HEADS = {
  'linear': Net(_init_linear, _apply_linear),
  'mlp': Net(_init_msfa, _apply_msfa),
}

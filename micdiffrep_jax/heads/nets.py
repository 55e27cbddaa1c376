"""Heads that are trained by gradient: a linear probe and the MSFA module.

Letters: b rows, d features, k classes, m hidden units, a maps. Features arrive
flat; concatenating layers, standardising and dropout are the caller's part.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from micdiffrep_jax.heads.matrix import Maps, spans

QUERIES = 8  # of attention pooling, for each map

Params = dict[str, Array]


class Net(NamedTuple):
  """init(key, width, d, m, k, bias, maps) -> params; apply(params, x, maps).

  `width` may be traced and smaller than d: columns from `width` on are padding,
  zero in the features, and the weights of the others do not depend on d. apply
  gives logits (b, k). maps: of the features, where the net `reads_maps`: its
  parameters are then of their shapes. members(params, x, maps) -> (a, b, k):
  logits of nets side by side, each trained by a loss of its own; None for one.
  """

  init: Callable[..., Params]
  apply: Callable[..., Array]
  reads_maps: bool = False
  members: Callable[..., Array] | None = None


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
  key: Array, width: Any, d: int, m: int, k: int, bias: bool, maps: Maps = ()
) -> Params:
  del m, maps
  params = {'M': _uniform(key, d, k, jnp.asarray(width))}
  return params | {'M_bias': jnp.zeros(k)} if bias else params


def _apply_linear(params: Params, x: Array, maps: Maps = ()) -> Array:
  """M x."""
  del maps
  return dense(params, 'M', x)


def _init_msfa(
  key: Array, width: Any, d: int, m: int, k: int, bias: bool, maps: Maps = ()
) -> Params:
  del maps
  key_w, key_m = jax.random.split(key)
  params = {
    'W': _uniform(key_w, d, m, jnp.asarray(width)),
    'M': _uniform(key_m, m, k, jnp.asarray(m)),
  }
  if bias:
    params |= {'W_bias': jnp.zeros(m), 'M_bias': jnp.zeros(k)}
  return params


def _apply_msfa(params: Params, x: Array, maps: Maps = ()) -> Array:
  """M relu(W F), eqs. 5 and 6; F (b, d) is the concatenation of eq. 4."""
  del maps
  return dense(params, 'M', jax.nn.relu(dense(params, 'W', x)))


def member(params: Params, i: int) -> Params:
  """The parameters of one of several, which are called '0.W', '1.W', ..."""
  start = f'{i}.'
  return {
    name.removeprefix(start): value
    for name, value in params.items()
    if name.startswith(start)
  }


def _init_committee(
  key: Array, width: Any, d: int, m: int, k: int, bias: bool, maps: Maps = ()
) -> Params:
  """An MLP for each map."""
  del width, d
  params: Params = {}
  for i, (key_i, one) in enumerate(zip(jax.random.split(key, len(maps)), maps)):
    own = _init_msfa(key_i, one.width, one.width, m, k, bias)
    params |= {f'{i}.{name}': value for name, value in own.items()}
  return params


def _committee_members(params: Params, x: Array, maps: Maps = ()) -> Array:
  """What the MLP of each map says (a, b, k)."""
  return jnp.stack(
    [
      _apply_msfa(member(params, i), x[:, at])
      for i, at in enumerate(spans(maps))
    ]
  )


def _apply_committee(params: Params, x: Array, maps: Maps = ()) -> Array:
  """Log of the mean of their probabilities."""
  said = jax.nn.log_softmax(_committee_members(params, x, maps))
  return jax.nn.logsumexp(said, axis=0) - jnp.log(len(maps))


def _init_attention(
  key: Array, width: Any, d: int, m: int, k: int, bias: bool, maps: Maps = ()
) -> Params:
  """Queries over the cells of each map, and MSFA on what they gather."""
  del width, d
  key_queries, key_msfa = jax.random.split(key)
  keys = jax.random.split(key_queries, len(maps))
  params: Params = {}
  for i, (key_i, one) in enumerate(zip(keys, maps)):
    fan_in = jnp.asarray(one.channels)
    params |= {
      f'{i}.queries': _uniform(key_i, one.channels, QUERIES, fan_in),
      f'{i}.places_bias': jnp.zeros((QUERIES, one.cells)),
    }
  gathered = QUERIES * sum(one.channels for one in maps)
  own = _init_msfa(key_msfa, jnp.asarray(gathered), gathered, m, k, bias)
  return params | own


def _attend(queries: Array, places: Array, tokens: Array) -> Array:
  """Means of tokens (b, cells, c), weighted by each query: (b, queries * c).

  Weights are softmax(queries tokens + places) over the cells, so queries and
  places of zero give the plain mean. Source: efficient probing, Psomas et al.
  2025 (arXiv 2506.10178): no projection of keys, and that of values is the
  layer that follows. The places are ours: convolutions do not tell a cell where
  it is.
  """
  scores = jnp.einsum('blc,qc->bql', tokens, queries) + places[None]
  weights = jax.nn.softmax(scores, axis=-1)
  return jnp.einsum('bql,blc->bqc', weights, tokens).reshape(len(tokens), -1)


def _apply_attention(params: Params, x: Array, maps: Maps = ()) -> Array:
  """MSFA on the gathered means of all maps."""
  gathered = []
  for i, (at, one) in enumerate(zip(spans(maps), maps)):
    tokens = x[:, at].reshape(len(x), one.cells, one.channels)
    own = member(params, i)
    gathered.append(_attend(own['queries'], own['places_bias'], tokens))
  return _apply_msfa(params, jnp.concatenate(gathered, axis=1))


# On a concatenation of layers 'mlp' is MSFA; on one layer it is the equal head
# that a fair comparison needs. 'mlp_layers' is an MLP per layer, 'attention'
# MSFA on means that learned queries weigh.
HEADS = {
  'linear': Net(_init_linear, _apply_linear),
  'mlp': Net(_init_msfa, _apply_msfa),
  'mlp_layers': Net(
    _init_committee,
    _apply_committee,
    reads_maps=True,
    members=_committee_members,
  ),
  'attention': Net(_init_attention, _apply_attention, reads_maps=True),
}

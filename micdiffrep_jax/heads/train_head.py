"""Trains one head on frozen features; vmap makes it many.

Padded feature columns are zero and so are their gradients, so a head does not
depend on the width that it is padded to.

Letters: n rows of a feature set, d features, k classes, b batch, s steps of an
epoch, e evaluation rows, r noise draws, a settings, c cells.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from micdiffrep_jax.heads.nets import HEADS
from micdiffrep_jax.run.checks import lookup

BLOCK = 256  # rows that are scored at a time


class Options(NamedTuple):
  """How every head of one call is trained. Hashable: it is a jit constant."""

  kind: str = 'linear'
  hidden: int = 256
  bias: bool = True
  epochs: int = 15  # passes over the largest `rows` of the call
  batch_size: int = 128
  dropout: float = 0.0  # of features
  feature_noise: float = 0.0  # standard deviation, after standardising
  label_smoothing: float = 0.0
  best_epoch: bool = False  # keep the epoch with the best evaluation accuracy
  trace: bool = False  # evaluation accuracy of every epoch


def _gather(x: Array, shift: Array, scale: Array, at: Any) -> Array:
  """Standardised float32 rows x[at] (b, d)."""
  part = x[at].astype(jnp.float32)
  return (part - shift[None, :]) * scale[None, :]


def _score(
  apply: Callable[..., Array],
  params: Any,
  data: tuple,
  which: Array,
  rows: Array,
) -> Array:
  """Logits (e, k) of rows, averaged over the draws; e divides by the block."""
  x, shift, scale = data

  def block(at: Array) -> Array:
    def draw(r: Array) -> Array:
      part = _gather(x, shift[which], scale[which], (which, r, at))
      return apply(params, part)

    return jnp.mean(jax.lax.map(draw, jnp.arange(x.shape[1])), 0)

  logits = jax.lax.map(block, rows.reshape(-1, min(BLOCK, len(rows))))
  return logits.reshape(len(rows), -1)


def train_head(
  options: Options,
  data: tuple[Array, Array, Array],  # x (sets, r, n, d), shift, scale (sets, d)
  labels: Array,  # (n,)
  class_weights: Array,  # (k,)
  evaluate: tuple[Array, Array],  # rows (e,) and their weights, 0 = padding
  which: Array,  # () the feature set
  width: Array,  # () its columns before padding
  batches: tuple[Array, Array],  # rows and draws, (epochs, s, b)
  key: Array,
  setting: Array,  # (2,) learning rate, weight decay
) -> tuple[Any, Array, Array]:
  """One head, from start to end: parameters, trace, evaluation logits."""
  import optax  # for training alone; a bundle needs none

  head = lookup(HEADS, options.kind, 'head', '--config.heads.kinds')
  x, shift, scale = data
  d, k = x.shape[-1], len(class_weights)
  learning_rate, weight_decay = setting
  key_init, key_train = jax.random.split(key)
  params = head.init(key_init, width, d, options.hidden, k, options.bias)
  adam = optax.scale_by_adam()
  epochs, steps = batches[0].shape[:2]
  padded = jnp.arange(d) >= width

  def augment(part: Array, step: Array) -> Array:
    # Drawn as (d, b): so the first columns do not depend on the padding.
    key_noise, key_drop = jax.random.split(jax.random.fold_in(key_train, step))
    if options.feature_noise:
      noise = jax.random.normal(key_noise, part.T.shape).T
      noise = jnp.where(padded[None, :], 0.0, noise)
      part = part + options.feature_noise * noise
    if options.dropout:
      keep = jax.random.bernoulli(key_drop, 1 - options.dropout, part.T.shape).T
      part = jnp.where(keep, part / (1 - options.dropout), 0.0)
    return part

  def loss(params: Any, part: Array, y: Array) -> Array:
    target = optax.smooth_labels(jax.nn.one_hot(y, k), options.label_smoothing)
    value = optax.softmax_cross_entropy(head.apply(params, part), target)
    weight = class_weights[y]
    return jnp.sum(weight * value) / jnp.sum(weight)

  def update(carry: Any, batch: Any) -> tuple[Any, None]:
    params, state, step = carry
    rows, draws = batch
    part = _gather(x, shift[which], scale[which], (which, draws, rows))
    if options.feature_noise or options.dropout:
      part = augment(part, step)
    grads = jax.grad(loss)(params, part, labels[rows])
    updates, state = adam.update(grads, state)
    rate = 0.5 * learning_rate * (1 + jnp.cos(jnp.pi * step / (epochs * steps)))
    params = {
      name: value
      - rate
      * (
        updates[name]
        # Biases are not decayed.
        + (0.0 if name.endswith('_bias') else weight_decay) * value
      )
      for name, value in params.items()
    }
    return (params, state, step + 1), None

  def accuracy(params: Any) -> Array:
    rows, weights = evaluate
    logits = _score(head.apply, params, data, which, rows)
    right = jnp.argmax(logits, -1) == labels[rows]
    return jnp.sum(right * weights) / jnp.sum(weights)

  def epoch(carry: Any, batch: Any) -> tuple[Any, Array]:
    carry, best, best_value = carry
    carry, _ = jax.lax.scan(update, carry, batch)
    if not (options.best_epoch or options.trace):
      return (carry, best, best_value), jnp.zeros(())
    value = accuracy(carry[0])
    if options.best_epoch:
      better = value > best_value
      best = jax.tree.map(
        lambda new, old: jnp.where(better, new, old), carry[0], best
      )
      best_value = jnp.maximum(value, best_value)
    return (carry, best, best_value), value

  best = params if options.best_epoch else {}
  carry = ((params, adam.init(params), jnp.int32(0)), best, jnp.float32(-1.0))
  ((params, _, _), best, _), trace = jax.lax.scan(epoch, carry, batches)
  params = best if options.best_epoch else params
  logits = _score(head.apply, params, data, which, evaluate[0])
  return params, trace, logits


@functools.partial(jax.jit, static_argnums=0)
def train_cells(
  options: Options,
  *arguments: Any,
) -> tuple[Any, Array, Array]:
  """Runs train_head over cells (c) and, within them, over settings (a).

  arguments as train_head has them, but a seed (c,) in place of a key.
  """
  *before, seeds, settings = arguments
  keys = jax.vmap(jax.random.key)(seeds)
  one = jax.vmap(
    functools.partial(train_head, options), in_axes=(None,) * 8 + (0,)
  )
  cells: Any = jax.vmap(one, in_axes=(None,) * 4 + (0,) * 4 + (None,))
  return cells(*before, keys, settings)

"""The state of a run and the step that moves it; both pure."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from micdiffrep_jax.methods import Method

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a run needs to go on: arrays only, no functions."""

  step: jax.Array  # () int32, updates done
  params: Tree  # what the optimizer moves
  extra: Tree  # what it does not: EMA, target network, queue
  opt_state: Tree
  averages: dict  # running means of the metrics; here, so that they resume too


def make_state(
  method: Method, tx: optax.GradientTransformation, key: jax.Array
) -> TrainState:
  """The state before the first update."""
  params, extra = method.init(key)
  averages = {k: jnp.float32(0) for k in (*method.metrics, 'grad_norm')}
  return TrainState(jnp.int32(0), params, extra, tx.init(params), averages)


def make_step(
  method: Method, tx: optax.GradientTransformation, accumulate: int = 1
) -> Callable:
  """(state, batch, key) -> (state, metrics); `key` is the same every step.

  With accumulate > 1 the batch is worked off in that many parts, one after
  another, to save memory; gradients are averaged, and one update follows.
  """
  grad_fn = jax.value_and_grad(method.loss, has_aux=True)

  def gradients(params, extra, batch, key):
    if accumulate == 1:
      (_, aux), grads = grad_fn(params, extra, batch, key)
      return aux, grads
    # Part i takes every accumulate-th image: each device keeps its own.
    parts = jax.tree.map(
      lambda x: jnp.moveaxis(
        x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), 1, 0
      ),
      batch,
    )

    def body(carry, part):
      extra, total = carry
      i, part = part
      (_, (extra, metrics)), grads = grad_fn(
        params, extra, part, jax.random.fold_in(key, i)
      )
      return (extra, jax.tree.map(jnp.add, total, grads)), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    (extra, total), metrics = jax.lax.scan(
      body, (extra, zeros), (jnp.arange(accumulate), parts)
    )
    metrics = jax.tree.map(jnp.mean, metrics)
    return (extra, metrics), jax.tree.map(lambda g: g / accumulate, total)

  def step_fn(state, batch, key):
    key = jax.random.fold_in(key, state.step)
    (extra, metrics), grads = gradients(state.params, state.extra, batch, key)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    extra = method.after(params, extra, state.step)
    metrics = {**metrics, 'grad_norm': optax.global_norm(grads)}
    rate = jnp.maximum(1.0 / (state.step + 1.0), 0.02)
    averages = {
      k: v + (metrics[k] - v) * rate for k, v in state.averages.items()
    }
    state = TrainState(state.step + 1, params, extra, opt_state, averages)
    return state, {**metrics, 'averages': averages}

  return step_fn

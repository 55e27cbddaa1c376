"""The state of a run, the step that moves it, and how both are compiled.

State and step are pure.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from micdiffrep_jax.methods import Method
from micdiffrep_jax.pretrain.optim import make_optimizer
from micdiffrep_jax.run import devices

Tree = Any

# XLA's default hands single convolutions to YNNPACK, whose filter gradient
# (a kernel as large as the image) takes twice the time of Eigen's. Measured:
# benchmarks/train_step.py, step of the tiny preset, 1.2 times as fast.
_CPU = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE'}


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
  return state_of(method, tx, *method.init(key))


def state_of(
  method: Method, tx: optax.GradientTransformation, params: Tree, extra: Tree
) -> TrainState:
  """The state before the first update of weights that are at hand."""
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

  def gradients(params: Tree, extra: Tree, batch: Tree, key: Any) -> Any:
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

    def body(carry: Any, part: Any) -> Any:
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

  def step_fn(state: TrainState, batch: Tree, key: Any) -> Any:
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


class Program(NamedTuple):
  """What a run compiles, and the shapes and shardings of its state."""

  init: Callable  # key -> state
  step: Callable  # state, batch, key -> state, metrics
  abstract: TrainState  # of jax.ShapeDtypeStruct
  place: Callable | None = None  # params, extra -> state, of copies


@functools.cache
def compiler_options(platform: str = '') -> dict[str, str]:
  """Under which a step is faster; empty where this XLA does not know them.

  platform: of the devices that a program is for, '' for those at hand.
  """
  if (platform or jax.default_backend()) != 'cpu':
    return {}
  try:
    jax.jit(lambda: 0.0, compiler_options=_CPU).lower().compile()
  except jax.errors.JaxRuntimeError:
    return {}
  return _CPU


def compile_program(
  method: Method, config: ConfigDict, steps: int, mesh: Any
) -> Program:
  """Prepares the jitted functions of a run; they compile on first use."""
  tx = make_optimizer(config.optim, steps, method.rates)
  init = functools.partial(make_state, method, tx)
  shapes = jax.eval_shape(init, jax.random.key(0))
  shardings = devices.state_sharding(shapes, mesh, config.fsdp)
  step = jax.jit(
    make_step(method, tx, config.accumulate),
    # What was donated cannot be run again in search of a NaN.
    donate_argnums=() if config.debug else 0,
    out_shardings=(shardings, devices.replicated(mesh)),
    compiler_options=compiler_options(mesh.devices.flat[0].platform),
  )
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )

  def copied(params: Tree, extra: Tree) -> TrainState:
    # A step gives its state away; whoever has the weights may need them yet.
    params, extra = jax.tree.map(jnp.copy, (params, extra))
    return state_of(method, tx, params, extra)

  fresh, place = (jax.jit(f, out_shardings=shardings) for f in (init, copied))
  return Program(fresh, step, abstract, place)

"""The optimizer chain and its learning-rate schedule, from config.optim."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax
import optax.contrib

from micdiffrep_jax.run.checks import lookup

_ADAM_RMS = 0.2  # root mean square of Adam's updates, about
_HIDDEN = 8  # channels in and out from which a weight is of a hidden layer


def make_schedule(optim: ConfigDict, steps: int) -> optax.Schedule:
  """The learning rate at each of `steps` updates, after a linear warm-up.

  Raises ValueError for an unknown schedule or a warm-up longer than the run.
  """
  warmup = optim.warmup_steps
  if not 0 <= warmup < max(steps, 1):
    raise ValueError(
      f'A warm-up of {warmup} steps does not fit a run of {steps}. '
      'Set --config.optim.warmup_steps.'
    )
  rest = max(steps - warmup, 1)
  schedules = {
    'linear': lambda: optax.linear_schedule(optim.lr, 0.0, rest),
    'cosine': lambda: optax.cosine_decay_schedule(optim.lr, rest),
    'constant': lambda: optax.constant_schedule(optim.lr),
  }
  main = lookup(
    schedules, optim.schedule, 'schedule', '--config.optim.schedule'
  )()
  if not warmup:
    return main
  ramp = optax.linear_schedule(0.0, optim.lr, warmup)
  return optax.join_schedules([ramp, main], [warmup])


def lars(
  schedule: optax.Schedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
  """LARS as BYOL has it; biases and norms are neither decayed nor rescaled.

  Momentum sums rescaled gradients and the rate multiplies last. optax.lars
  multiplies first, so that under a warm-up old gradients keep their old rate.
  Source: You et al. 2017; Grill et al. 2020, appendix.
  """
  return optax.chain(
    optax.add_decayed_weights(weight_decay, matrices),
    optax.masked(optax.scale_by_trust_ratio(trust_coefficient=1e-3), matrices),
    optax.trace(momentum),
    optax.scale_by_learning_rate(schedule),
  )


def muon(
  schedule: optax.Schedule, optim: ConfigDict
) -> optax.GradientTransformation:
  """Momentum made orthogonal, for weights of hidden layers; Adam for the rest.

  Both have Nesterov's momentum.
  A convolution counts as the matrix (height x width x in, out) that it is. The
  rate is Adam's for all: updates are scaled to the size of Adam's. Weights
  that lead out to a few channels are left to Adam. Sources: Jordan et al.
  2024; Liu et al. 2025 (2502.16982), for the scale.
  """
  return optax.contrib.muon(
    schedule,
    weight_decay=optim.weight_decay,
    adam_b1=optim.b1,
    adam_b2=optim.b2,
    adam_weight_decay=0.0,
    muon_weight_dimension_numbers=as_matrices,
    consistent_rms=_ADAM_RMS,
  )


def as_matrices(params: Any) -> Any:
  """Which axes of each leaf are summed over and which lead out; None: neither.

  The last axis leads out, as flax stores kernels.
  """

  def of(x: Any) -> optax.contrib.MuonDimensionNumbers | None:
    if x.ndim < 2 or min(x.shape[-2:]) < _HIDDEN:
      return None
    return optax.contrib.MuonDimensionNumbers(
      tuple(range(x.ndim - 1)), x.ndim - 1
    )

  return jax.tree.map(of, params)


def matrices(params: Any) -> Any:
  """True for weights, False for biases, gains and tokens, which never decay."""
  return jax.tree.map(lambda x: x.ndim > 1, params)


def make_optimizer(
  optim: ConfigDict,
  steps: int,
  rates: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
  """Clips by global norm (0: not at all), then one of the optimizers.

  rates: params -> for each leaf what its learning rate is multiplied by.
  """
  schedule = make_schedule(optim, steps)
  optimizers = {
    'adam': lambda: optax.adam(schedule, optim.b1, optim.b2),
    'adamw': lambda: optax.adamw(
      schedule,
      optim.b1,
      optim.b2,
      weight_decay=optim.weight_decay,
      mask=matrices,
    ),
    'sgd': lambda: optax.chain(
      optax.add_decayed_weights(optim.weight_decay),
      optax.sgd(schedule, optim.b1),
    ),
    'muon': lambda: muon(schedule, optim),
    'lars': lambda: lars(schedule, optim.b1, optim.weight_decay),
  }
  optimizer = lookup(
    optimizers, optim.name, 'optimizer', '--config.optim.name'
  )()
  if optim.clip_norm < 0:
    raise ValueError(
      f'optim.clip_norm={optim.clip_norm} is negative; 0 means no clipping. '
      'Set --config.optim.clip_norm.'
    )
  parts = [optimizer]
  if optim.clip_norm:
    parts.insert(0, optax.clip_by_global_norm(optim.clip_norm))
  if rates:
    # Last, so that weight decay is multiplied too, as BEiT has it.
    parts.append(
      optax.stateless(
        lambda u, params: jax.tree.map(jnp.multiply, u, rates(params))
      )
    )
  return optax.chain(*parts) if parts[1:] else optimizer

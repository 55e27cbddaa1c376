"""The optimizer chain and its learning-rate schedule, from config.optim."""

from typing import Any

import jax
from ml_collections import ConfigDict
import optax

from micdiffrep_jax.run.checks import lookup


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


def matrices(params: Any) -> Any:
  """True for weights, False for biases, gains and tokens, which never decay."""
  return jax.tree.map(lambda x: x.ndim > 1, params)


def make_optimizer(
  optim: ConfigDict, steps: int
) -> optax.GradientTransformation:
  """Clips by global norm (0: not at all), then adam, adamw, sgd or lars."""
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
  if optim.clip_norm:
    return optax.chain(optax.clip_by_global_norm(optim.clip_norm), optimizer)
  return optimizer

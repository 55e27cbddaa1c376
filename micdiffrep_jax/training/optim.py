"""The optimizer chain and its learning-rate schedule, from config.optim."""

from ml_collections import ConfigDict
import optax

from micdiffrep_jax.lookup import lookup


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


def make_optimizer(
  optim: ConfigDict, steps: int
) -> optax.GradientTransformation:
  """Clips by global norm (0: not at all), then adam, adamw or sgd."""
  schedule = make_schedule(optim, steps)
  optimizers = {
    'adam': lambda: optax.adam(schedule, optim.b1, optim.b2),
    'adamw': lambda: optax.adamw(
      schedule, optim.b1, optim.b2, weight_decay=optim.weight_decay
    ),
    'sgd': lambda: optax.sgd(schedule, optim.b1),
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

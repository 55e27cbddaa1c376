"""Compiler options under which a training step is faster."""

import functools

import jax

# XLA's default hands single convolutions to YNNPACK, whose filter gradient
# (a kernel as large as the image) takes twice the time of Eigen's. Measured:
# benchmarks/train_step.py, step of the tiny preset, 1.2 times as fast.
_CPU = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE'}


@functools.cache
def options() -> dict[str, str]:
  """For jax.jit's compiler_options; empty where this XLA does not know them."""
  if jax.default_backend() != 'cpu':
    return {}
  try:
    jax.jit(lambda: 0.0, compiler_options=_CPU).lower().compile()
  except jax.errors.JaxRuntimeError:
    return {}
  return _CPU

"""Pretraining methods: each is a record of functions behind one shape.

A pretraining config and the size of the images enter; what trains and what
reads features leaves. encoders and the rooms above it import METHODS; a method
knows models, diffusion and data sets, but no optimizer, file or loop. A new one
is a file beside this and a line in METHODS.
"""

from collections.abc import Callable
import functools

from micdiffrep_jax.methods import (
  byol,
  clip,
  ddpm,
  ddpm_aligned,
  ddpm_contrast,
  external,
  finetune,
  mae,
  moco,
  supervised,
)
from micdiffrep_jax.methods.base import Method, Reader

# config, size_px, channels -> a Method, or the Reader of what others trained.
METHODS: dict[str, Callable[..., Reader]] = {
  'ddpm': ddpm.make,
  'ddpm_contrast': ddpm_contrast.make,
  'ddpm_aligned': ddpm_aligned.make,
  'moco': moco.make,
  'byol': byol.make,
  'mae': mae.make,
  'clip': clip.make,
  'supervised': supervised.make,
  'clip_frozen': external.make,
  'imagenet_supervised': external.make,
}
DENOISERS = ('ddpm', 'ddpm_contrast', 'ddpm_aligned')
# It trains on what any of them trained, itself included.
METHODS['finetune'] = functools.partial(finetune.make, METHODS)

__all__ = ['DENOISERS', 'METHODS', 'Method', 'Reader']

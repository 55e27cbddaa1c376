"""Pretraining methods: each is a record of functions behind one shape."""

from micdiffrep_jax.methods import (
  byol,
  clip,
  ddpm,
  external,
  mae,
  moco,
  supervised,
)
from micdiffrep_jax.methods.base import Method

METHODS = {
  'ddpm': ddpm.make,
  'moco': moco.make,
  'byol': byol.make,
  'mae': mae.make,
  'clip': clip.make,
  'supervised': supervised.make,
  'clip_frozen': external.make,
  'imagenet_supervised': external.make,
}

__all__ = ['METHODS', 'Method']

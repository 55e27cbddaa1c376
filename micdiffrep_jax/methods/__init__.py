"""Pretraining methods: each is a record of functions behind one shape."""

from micdiffrep_jax.methods import (
  byol,
  clip,
  ddpm,
  frozen,
  mae,
  moco,
  supervised,
)
from micdiffrep_jax.methods.method import Method

METHODS = {
  'ddpm': ddpm.make,
  'moco': moco.make,
  'byol': byol.make,
  'mae': mae.make,
  'clip': clip.make,
  'supervised': supervised.make,
  'clip_frozen': frozen.make,
  'imagenet_supervised': frozen.make,
}

__all__ = ['METHODS', 'Method']

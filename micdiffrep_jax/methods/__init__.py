"""Pretraining methods: each is a record of functions behind one shape."""

from micdiffrep_jax.methods import byol, clip, ddpm, frozen, moco
from micdiffrep_jax.methods.method import Method

METHODS = {
  'ddpm': ddpm.make,
  'moco': moco.make,
  'byol': byol.make,
  'clip': clip.make,
  'clip_frozen': frozen.make,
  'imagenet_supervised': frozen.make,
}

__all__ = ['METHODS', 'Method']

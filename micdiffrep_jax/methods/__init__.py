"""Pretraining methods: each is a record of functions behind one shape."""

from micdiffrep_jax.methods import byol, ddpm, moco
from micdiffrep_jax.methods.method import Method

METHODS = {'ddpm': ddpm.make, 'moco': moco.make, 'byol': byol.make}

__all__ = ['METHODS', 'Method']

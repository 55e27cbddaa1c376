"""Pretraining methods: each is a record of functions behind one shape."""

from micdiffrep_jax.methods import ddpm
from micdiffrep_jax.methods.method import Method

METHODS = {'ddpm': ddpm.make}

__all__ = ['METHODS', 'Method']

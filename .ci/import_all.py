"""Imports every module of the package: what they need at their top is there."""

import importlib
import pkgutil

import micdiffrep_jax as package

for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
  importlib.import_module(module.name)

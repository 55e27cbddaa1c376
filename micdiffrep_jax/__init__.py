"""Label-efficient classification of medical images from diffusion features.

import micdiffrep_jax as mdr

encoder = mdr.load('results/bundle.npz')  # or the folder of a run
x = encoder.features(images, t=1, layers='encoder', cells=4)
head = mdr.KernelClassifier().fit(x, y, groups=patients)
probabilities = encoder.predict_proba(images)  # of a bundle's own head

Names are imported on use: importing the package loads nothing heavy.
Research use only.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from micdiffrep_jax.api.encoder import Encoder, load, open_dataset
  from micdiffrep_jax.api.estimators import (
    DiffusionFeatures,
    KernelClassifier,
    MSFAClassifier,
  )

_MODULES = {
  'Encoder': 'encoder',
  'load': 'encoder',
  'open_dataset': 'encoder',
  'DiffusionFeatures': 'estimators',
  'KernelClassifier': 'estimators',
  'MSFAClassifier': 'estimators',
}
__all__ = [
  'DiffusionFeatures',
  'Encoder',
  'KernelClassifier',
  'MSFAClassifier',
  'load',
  'open_dataset',
]


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'{__name__}.api.{_MODULES[name]}')
  return getattr(module, name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})

"""What a pretraining method is to the rest of the code."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from micdiffrep_jax.data.dataset import Dataset

Tree = Any
Sums = dict[str, tuple[jax.Array, jax.Array]]


class Method(NamedTuple):
  """Pure functions over params, which the optimizer moves, and extra.

  Images are uint8 (b, h, w, c). keys are (b,) typed keys, one per image, so
  that what is drawn for an image does not depend on its batch.

  Attributes:
    init: key -> (params, extra).
    loss: params, extra, batch {'image'}, key -> (), (extra, metrics).
    after: params, extra, step -> extra; once an update (EMA, target network).
    frozen: params, extra -> variables, all that the functions below read.
    features: variables, images, keys, t () int32 -> {layer: (b, h', w', d)
      float32}; the caller jits and keeps the layers it wants.
    validate: variables, images, keys, weights (b,) -> {name: (sum, count)},
      to be summed over batches and divided once.
    sample: variables, keys -> (b, h, w, c) float32 in [-1, 1]; None where the
      method generates nothing.
    layers: names that `features` knows, from the input onward.
    timesteps: number of noise levels that `features` knows; 1 where the method
      has none.
    metrics: names of what `loss` reports, logged as running means.
    side: dataset -> {name: (N, ...) array}, rows that travel with their images
      in `batch` (labels, captions); None where images are all there is.
    row: shape and dtype of one row of each array that `side` gives.
    output: the layer whose average over pixels stands for an image where one
      vector is wanted; '' for the last of `layers`.
    check: number of training images -> None; ValueError where they do not suit
      the settings. None where any number does.
    encoder: variables -> the parameters that `features` is made of: no decoder,
      projector, queue or running average, which training alone needs.
    facts: what every result must say of the method beside its name.
  """

  init: Callable[[jax.Array], tuple[Tree, Tree]]
  loss: Callable[..., tuple[jax.Array, tuple[Tree, dict]]]
  after: Callable[[Tree, Tree, jax.Array], Tree]
  frozen: Callable[[Tree, Tree], Tree]
  features: Callable[..., dict[str, jax.Array]]
  validate: Callable[..., Sums]
  sample: Callable[[Tree, jax.Array], jax.Array] | None
  layers: tuple[str, ...]
  timesteps: int
  metrics: tuple[str, ...] = ('loss',)
  side: Callable[[Dataset], dict[str, np.ndarray]] | None = None
  row: Mapping[str, jax.ShapeDtypeStruct] = MappingProxyType({})
  output: str = ''
  check: Callable[[int], None] | None = None
  encoder: Callable[[Tree], Tree] = lambda variables: variables
  facts: Mapping[str, Any] = MappingProxyType({})


def unchanged(params: Tree, extra: Tree, step: jax.Array) -> Tree:
  """`after` of a method whose extra no update moves."""
  del params, step
  return extra


def to_float(images: jax.Array) -> jax.Array:
  """uint8 [0, 255] -> float32 [-1, 1], on the device: bytes travel."""
  return images.astype(jax.numpy.float32) / 127.5 - 1.0


def ema(old: Tree, new: Tree, decay) -> Tree:
  """decay old + (1 - decay) new, leaf by leaf."""
  return jax.tree.map(lambda o, n: o + (1.0 - decay) * (n - o), old, new)

"""Encoders that others trained: readers, which no method here trains.

`clip_frozen` are image towers of CLIP; `imagenet_supervised` is a network that
was trained with ImageNet's labels, and is called so in every table. Their
weights come from configs/convert_clip.py. No budget is matched: neither the
images they saw nor their number are ours.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from micdiffrep_jax.methods.base import (
  Reader,
  State,
  Taps,
  Tree,
  noiseless,
)
from micdiffrep_jax.models import efficientnet, resnet, vit
from micdiffrep_jax.run.checks import lookup


def prepare(
  images: jax.Array, size_px: int, mean: tuple, std: tuple
) -> jax.Array:
  """uint8 (b, h, w, 1 or 3) -> float32 (b, s, s, 3), as the encoder expects.

  Bicubic with antialiasing, as Pillow does; grey becomes three equal channels.
  mean, std: of R, G, B in [0, 1].
  """
  b, c = images.shape[0], images.shape[-1]
  x = images.astype(jnp.float32) / 255.0
  if images.shape[1:3] != (size_px, size_px):
    x = jax.image.resize(x, (b, size_px, size_px, c), 'cubic')
    x = jnp.clip(x, 0.0, 1.0)  # a cubic overshoots at edges; bytes cannot
  x = jnp.broadcast_to(x, (b, size_px, size_px, 3))
  shape = (1, 1, 1, 3)
  return (x - jnp.reshape(jnp.array(mean), shape)) / jnp.reshape(
    jnp.array(std), shape
  )


Fields = dict[str, Any]  # of a network, as config.model has them


class Tower(NamedTuple):
  """A network(x (b, s, s, 3), normalised) -> (vector, taps) and its layers."""

  network: Any
  layers: tuple[str, ...]


def _efficientnet(model: Fields, size_px: int) -> Tower:
  del size_px  # convolutions take any
  layers = efficientnet.tap_names(model['stages'])
  return Tower(efficientnet.EfficientNetLite(**model), layers)


def _resnet(model: Fields, size_px: int) -> Tower:
  del size_px  # what it was trained on, so it fits
  layers = resnet.clip_tap_names(model['blocks'])
  return Tower(resnet.ClipResNet(**model), layers)


def _vit(model: Fields, size_px: int) -> Tower:
  vit.check_vit(size_px, **model)
  layers = vit.clip_tap_names(model['depth'], model['out'])
  return Tower(vit.VisionTransformer(**model), layers)


TOWERS: dict[str, Callable[[Fields, int], Tower]] = {
  'efficientnet_lite': _efficientnet,
  'resnet': _resnet,
  'vit': _vit,
}


def _init(network: Any, size_px: int, key: jax.Array) -> State:
  return network.init(key, jnp.zeros((1, size_px, size_px, 3))), {}


def make(config: ConfigDict, size_px: int, channels: int) -> Reader:
  """The reader of a converted checkpoint, for images of one size."""
  del size_px  # images of any size are resized
  if channels not in (1, 3):
    raise ValueError(
      f'Images of {channels} channels are neither grey nor RGB. Prepare them '
      'with --config.data.channels=1 or 3.'
    )
  model, given = config.model.to_dict(), config.input
  tower = lookup(TOWERS, model.pop('tower'), 'tower', '--config.model.tower')
  network, layers = tower(model, given.size_px)

  def taps(variables: Tree, images: jax.Array) -> Taps:
    x = prepare(images, given.size_px, given.mean, given.std)
    return network.apply(variables, x)[1]

  imagenet = config.method == 'imagenet_supervised'
  return Reader(
    init=functools.partial(_init, network, given.size_px),
    frozen=lambda params, extra: params,
    features=noiseless(taps),
    layers=layers,
    encoder=lambda variables: variables['params'],
    facts={'external': True}
    | ({'imagenet_supervised': True} if imagenet else {}),
  )

"""Encoders that others trained, as a method that only has features.

`clip_frozen` are image towers of CLIP; `imagenet_supervised` is a network that
was trained with ImageNet's labels, and is called so in every table. Their
weights come from configs/convert_clip.py. No budget is matched: neither the
images they saw nor their number are ours.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from micdiffrep_jax.methods.base import Method, unchanged
from micdiffrep_jax.models import clip_resnet, clip_vision, efficientnet
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


def _efficientnet(model: dict[str, Any], size_px: int):
  del size_px  # convolutions take any
  names = efficientnet.tap_names(model['stages'])
  return efficientnet.EfficientNetLite(**model), names


def _resnet(model: dict[str, Any], size_px: int):
  del size_px  # what it was trained on, so it fits
  names = clip_resnet.tap_names(model['blocks'])
  return clip_resnet.ClipResNet(**model), names


def _vit(model: dict[str, Any], size_px: int):
  clip_vision.check_vit(size_px, **model)
  names = clip_vision.tap_names(model['depth'], model['out'])
  return clip_vision.VisionTransformer(**model), names


TOWERS: dict[str, Callable] = {
  'efficientnet_lite': _efficientnet,
  'resnet': _resnet,
  'vit': _vit,
}


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a converted checkpoint, for images of one size."""
  del size_px  # images of any size are resized
  if channels not in (1, 3):
    raise ValueError(
      f'Images of {channels} channels are neither grey nor RGB. Prepare them '
      'with --config.data.channels=1 or 3.'
    )
  imagenet = config.method == 'imagenet_supervised'
  model = config.model.to_dict()
  tower = lookup(TOWERS, model.pop('tower'), 'tower', '--config.model.tower')
  network, layers = tower(model, config.input.size_px)
  side, mean, std = config.input.size_px, config.input.mean, config.input.std

  def init(key):
    return network.init(key, jnp.zeros((1, side, side, 3))), {}

  def refuse(*_):
    raise ValueError(
      f'{config.method!r} is an encoder that others trained; it is converted '
      'by configs/convert_clip.py and probed, not pretrained. Set '
      '--config.method.'
    )

  def features(variables, images, keys, t):
    del keys, t  # nothing is drawn
    return network.apply(variables, prepare(images, side, mean, std))[1]

  return Method(
    init=init,
    loss=refuse,
    after=unchanged,
    frozen=lambda params, extra: params,
    features=features,
    validate=lambda variables, images, keys, weights: {},
    sample=None,
    layers=layers,
    timesteps=1,
    encoder=lambda variables: variables['params'],
    facts={'external': True}
    | ({'imagenet_supervised': True} if imagenet else {}),
  )

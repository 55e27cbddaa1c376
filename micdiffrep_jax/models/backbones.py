"""The networks that can denoise, by the name in config.model.name.

A denoiser is a module(x (b, h, w, c) float32, t (b,) int32, train=bool) ->
(output like x, {tap: (b, h', w', d)}). All its weights are in 'params'; while
it trains it may draw from the stream 'dropout'. A new one is a file beside this
and a line in BACKBONES.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import linen as nn

from micdiffrep_jax.models import dit, unet


class Backbone(NamedTuple):
  """How a denoiser is built, and what its taps are called.

  Attributes:
    make: the fields of config.model beside its name, size_px and channels of
      the images -> module. ValueError where they do not fit.
    encoder_taps: module -> names from the input to the bottleneck, whose tap is
      the last: it stands for an image where one vector is wanted.
    decoder_taps: module -> names from there to the output; () without any.
    recipe: the parts of config.recipe, by name, for which it has UNet's fields
      and keywords: what else it may be told in training.
    divisor: module -> sides that it takes are multiples of this many pixels.
  """

  make: Callable[[Mapping[str, Any], int, int], nn.Module]
  encoder_taps: Callable[[Any], tuple[str, ...]]
  decoder_taps: Callable[[Any], tuple[str, ...]]
  recipe: tuple[str, ...] = ()
  divisor: Callable[[Any], int] = lambda model: 1


BACKBONES = {
  'unet': Backbone(
    unet.make, unet.encoder_taps, unet.decoder_taps, unet.RECIPE, unet.divisor
  ),
  'vit': Backbone(
    dit.make, dit.encoder_taps, dit.decoder_taps, dit.RECIPE, dit.divisor
  ),
}

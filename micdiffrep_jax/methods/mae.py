"""Masked autoencoder: hidden patches are drawn from the visible ones.

Source: He et al. 2021. Ours: an optional floor under the variance of a patch.
A fifth of the patches of a brain MRI is black background; divided by their own
deviation, they make the noise of JPEG files a target.
Letters: b batch, l patches, v visible ones, n values of a patch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from micdiffrep_jax.methods import views
from micdiffrep_jax.methods.base import (
  Batch,
  Loss,
  Method,
  State,
  Sums,
  Tree,
  apply,
  loss_sums,
  noiseless,
  to_float,
  unchanged,
)
from micdiffrep_jax.models import vit


class Autoencoder(NamedTuple):
  """Both networks and the task that they are given."""

  encoder: vit.Encoder
  decoder: vit.Decoder
  patches: int  # of an image
  visible: int  # of them
  normalise: bool
  floor: float  # of a patch's variance


def random_mask(
  key: jax.Array, patches: int, visible: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """One image's mask: keep (v,), restore (l,) int32 and hidden (l,) float32.

  keep: the visible patches; restore: the place of each patch in the sequence
  visible, then hidden; hidden: 1 where a patch is to be drawn.
  """
  order = jnp.argsort(jax.random.uniform(key, (patches,)))
  restore = jnp.argsort(order)
  return order[:visible], restore, (restore >= visible).astype(jnp.float32)


def targets(patches: jax.Array, normalise: bool, floor: float) -> jax.Array:
  """Patches (b, l, n), each with mean 0 and variance 1 if `normalise`.

  floor: least variance, of values in [-1, 1], that is divided by.
  """
  if not normalise:
    return patches
  mean = jnp.mean(patches, axis=-1, keepdims=True)
  var = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
  return (patches - mean) / jnp.sqrt(jnp.maximum(var, floor) + 1e-6)


def check(config: ConfigDict, size_px: int) -> None:
  """Raises ValueError for what can be told to be wrong before a compile."""
  model, mae = config.model, config.mae
  vit.check_encoder(size_px, **model.to_dict())
  vit.check_width('mae.width', mae.width, mae.heads)
  if not 0 < mae.mask < 1 or not visible_patches(config, size_px):
    raise ValueError(
      f'mae.mask={mae.mask} of {(size_px // model.patch) ** 2} patches leaves '
      'none visible or none hidden. Set --config.mae.mask, a share in (0, 1).'
    )
  low, high = config.crop
  if not 0 < low <= high <= 1:
    raise ValueError(
      f'crop={config.crop} is no range of shares in (0, 1]. Set --config.crop.'
    )
  if mae.variance_floor < 0:
    raise ValueError(
      f'mae.variance_floor={mae.variance_floor} is negative. Set '
      '--config.mae.variance_floor.'
    )


def visible_patches(config: ConfigDict, size_px: int) -> int:
  """How many patches the encoder sees; rounded down, as in the reference."""
  return int((size_px // config.model.patch) ** 2 * (1 - config.mae.mask))


def _init(
  nets: Autoencoder, shape: tuple[int, int, int], key: jax.Array
) -> State:
  k_encoder, k_decoder = jax.random.split(key)
  tokens = jnp.zeros((1, 1 + nets.visible, nets.encoder.width))
  restore = jnp.zeros((1, nets.patches), jnp.int32)
  return {
    'encoder': nets.encoder.init(k_encoder, jnp.zeros((1, *shape)))['params'],
    'decoder': nets.decoder.init(k_decoder, tokens, restore)['params'],
  }, {}


def _errors(
  nets: Autoencoder, params: Tree, x: jax.Array, keys: jax.Array
) -> jax.Array:
  """Mean squared error over the hidden patches of each image, (b,)."""
  keep, restore, hidden = jax.vmap(
    lambda k: random_mask(k, nets.patches, nets.visible)
  )(keys)
  tokens, _ = apply(nets.encoder, params['encoder'], x, keep)
  drawn = apply(nets.decoder, params['decoder'], tokens, restore)
  patches = vit.patches(x, nets.encoder.patch)
  aim = targets(patches, nets.normalise, nets.floor)
  of_patch = jnp.mean(jnp.square(drawn - aim), axis=-1)
  return jnp.sum(of_patch * hidden, axis=-1) / jnp.sum(hidden, axis=-1)


def _loss(
  nets: Autoencoder,
  view: views.View,
  params: Tree,
  extra: Tree,
  batch: Batch,
  key: jax.Array,
) -> Loss:
  k_view, k_mask = jax.random.split(key)
  x = views.draw_view(k_view, to_float(batch['image']), view)
  value = jnp.mean(_errors(nets, params, x, jax.random.split(k_mask, len(x))))
  return value, (extra, {'loss': value})


def _validate(
  nets: Autoencoder,
  variables: Tree,
  images: jax.Array,
  keys: jax.Array,
  weights: jax.Array,
) -> Sums:
  """Hides the same patches of an image at every call."""
  return loss_sums(_errors(nets, variables, to_float(images), keys), weights)


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a pretraining config, for images of one size."""
  check(config, size_px)
  model, mae = config.model, config.mae
  nets = Autoencoder(
    vit.Encoder(**model.to_dict()),
    vit.Decoder(
      mae.width, mae.depth, mae.heads, model.patch**2 * channels, model.dtype
    ),
    (size_px // model.patch) ** 2,
    visible_patches(config, size_px),
    mae.normalise,
    mae.variance_floor,
  )
  view = views.View(tuple(config.crop), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, flip=0.5)
  return Method(
    init=functools.partial(_init, nets, (size_px, size_px, channels)),
    loss=functools.partial(_loss, nets, view),
    after=unchanged,
    frozen=lambda params, extra: params,
    features=noiseless(
      lambda v, images: apply(nets.encoder, v['encoder'], to_float(images))[1]
    ),
    validate=functools.partial(_validate, nets),
    layers=vit.tap_names(model.depth),
    encoder=lambda variables: variables['encoder'],
  )

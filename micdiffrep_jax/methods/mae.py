"""Masked autoencoder: hidden patches are drawn from the visible ones.

Source: He et al. 2021. Ours: an optional floor under the variance of a patch.
A fifth of the patches of a brain MRI is black background; divided by their own
deviation, they make the noise of JPEG files a target.
Letters: b batch, l patches, v visible ones, n values of a patch.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from micdiffrep_jax.methods import views
from micdiffrep_jax.methods.base import Method, to_float, unchanged
from micdiffrep_jax.models import vit


def random_mask(key: jax.Array, patches: int, visible: int):
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


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a pretraining config, for images of one size."""
  check(config, size_px)
  model, mae = config.model, config.mae
  encoder = vit.Encoder(**model.to_dict())
  decoder = vit.Decoder(
    mae.width, mae.depth, mae.heads, model.patch**2 * channels, model.dtype
  )
  count = (size_px // model.patch) ** 2
  visible = visible_patches(config, size_px)
  view = views.View(tuple(config.crop), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, flip=0.5)

  def init(key):
    k_encoder, k_decoder = jax.random.split(key)
    x = jnp.zeros((1, size_px, size_px, channels))
    tokens = jnp.zeros((1, 1 + visible, model.width))
    restore = jnp.zeros((1, count), jnp.int32)
    return {
      'encoder': encoder.init(k_encoder, x)['params'],
      'decoder': decoder.init(k_decoder, tokens, restore)['params'],
    }, {}

  def errors(params, x, keys):
    """Mean squared error over the hidden patches of each image, (b,)."""
    keep, restore, hidden = jax.vmap(lambda k: random_mask(k, count, visible))(
      keys
    )
    tokens, _ = encoder.apply({'params': params['encoder']}, x, keep)
    drawn = decoder.apply({'params': params['decoder']}, tokens, restore)
    aim = targets(
      vit.patches(x, model.patch), mae.normalise, mae.variance_floor
    )
    of_patch = jnp.mean(jnp.square(drawn - aim), axis=-1)
    return jnp.sum(of_patch * hidden, axis=-1) / jnp.sum(hidden, axis=-1)

  def loss(params, extra, batch, key):
    k_view, k_mask = jax.random.split(key)
    x = views.draw_view(k_view, to_float(batch['image']), view)
    value = jnp.mean(errors(params, x, jax.random.split(k_mask, len(x))))
    return value, (extra, {'loss': value})

  def features(variables, images, keys, t):
    del keys, t  # all patches are seen
    variables = {'params': variables['encoder']}
    return encoder.apply(variables, to_float(images))[1]

  def validate(variables, images, keys, weights):
    """Hides the same patches of an image at every call."""
    error = errors(variables, to_float(images), keys)
    return {'loss': (jnp.sum(weights * error), jnp.sum(weights))}

  return Method(
    init=init,
    loss=loss,
    after=unchanged,
    frozen=lambda params, extra: params,
    features=features,
    validate=validate,
    sample=None,
    layers=vit.tap_names(model.depth),
    timesteps=1,
    encoder=lambda variables: variables['encoder'],
  )

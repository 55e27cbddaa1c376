"""Denoising diffusion: learns by predicting the noise in an image.

Source: Ho et al. 2020; features as in Xiang et al. 2023 (DDAE), from EMA
weights on images noised to step t, but at any block, not the decoder's only.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from micdiffrep_jax.diffusion import process as diffusion
from micdiffrep_jax.diffusion import samplers
from micdiffrep_jax.methods import augment
from micdiffrep_jax.methods.base import Method, ema, to_float
from micdiffrep_jax.models.unet import UNet, check_unet, tap_names
from micdiffrep_jax.run.keys import stream

LOSS_BINS = 10  # validation loss is reported for each tenth of the timesteps


class Denoiser(NamedTuple):
  """The diffusion process and its network.

  apply(variables, x_t (b, h, w, c), t (b,) int32) -> (raw output, taps).
  """

  process: diffusion.Diffusion
  apply: Callable
  model: UNet


def denoiser(config: ConfigDict, size_px: int) -> Denoiser:
  """Builds both from a pretraining config; ValueError before a compile."""
  fields: dict[str, Any] = {
    k: tuple(v) if isinstance(v, list | tuple) else v
    for k, v in config.model.items()
  }
  check_unet(size_px, **fields)
  model = UNet(**fields)
  fields = config.diffusion.to_dict()
  fields.pop('weighting')
  process = diffusion.make_diffusion(**fields)

  def apply(variables, x_t, t):
    return model.apply({'params': variables}, x_t, t)

  return Denoiser(process, apply, model)


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a pretraining config, for images of one size."""
  process, apply, model = denoiser(config, size_px)
  T = process.timesteps
  weighting = config.diffusion.weighting
  diffusion.loss_weight(process, jnp.zeros(1, jnp.int32), weighting)  # the name
  augment.check(config.augment)
  if not 0 <= config.ema_decay < 1:
    raise ValueError(
      f'ema_decay={config.ema_decay} is outside [0, 1). Set --config.ema_decay.'
    )

  def init(key):
    x = jnp.zeros((1, size_px, size_px, channels))
    params = model.init(key, x, jnp.zeros((1,), jnp.int32))['params']
    return params, {'ema': jax.tree.map(jnp.copy, params)}

  def squared_error(output, x0, t, eps):
    target = diffusion.training_target(process, x0, t, eps)
    return jnp.mean(jnp.square(output - target), axis=(1, 2, 3))

  def loss(params, extra, batch, key):
    k_augment, k_t, k_eps, k_drop = jax.random.split(key, 4)
    x0 = to_float(batch['image'])
    x0 = augment.augment(k_augment, x0, config.augment)
    t = jax.random.randint(k_t, x0.shape[:1], 0, T)
    eps = jax.random.normal(k_eps, x0.shape)
    output, _ = model.apply(
      {'params': params},
      diffusion.q_sample(process, x0, t, eps),
      t,
      train=True,
      rngs={'dropout': k_drop},
    )
    weight = diffusion.loss_weight(process, t, weighting)
    value = jnp.mean(weight * squared_error(output, x0, t, eps))
    return value, (extra, {'loss': value})

  def after(params, extra, step):
    # The warm-up keeps the first averages from being the initial weights.
    decay = jnp.minimum(config.ema_decay, (1.0 + step) / (10.0 + step))
    return {'ema': ema(extra['ema'], params, decay)}

  def frozen(params, extra):
    del params
    return extra['ema']

  def noised(keys, images, t):
    x0 = to_float(images)
    eps = jax.vmap(lambda k, x: jax.random.normal(k, x.shape))(keys, x0)
    return x0, eps, diffusion.q_sample(process, x0, t, eps)

  def features(variables, images, keys, t):
    t = jnp.full(images.shape[:1], t, jnp.int32)
    _, _, x_t = noised(keys, images, t)
    return {
      k: v.astype(jnp.float32) for k, v in apply(variables, x_t, t)[1].items()
    }

  def validate(variables, images, keys, weights):
    """Draws the same t and noise for an image at every call."""
    k_t = jax.vmap(lambda k: stream(k, 't'))(keys)
    k_eps = jax.vmap(lambda k: stream(k, 'eps'))(keys)
    t = jax.vmap(lambda k: jax.random.randint(k, (), 0, T))(k_t)
    x0, eps, x_t = noised(k_eps, images, t)
    error = squared_error(apply(variables, x_t, t)[0], x0, t, eps)
    sums = {'loss': (jnp.sum(weights * error), jnp.sum(weights))}
    for i in range(LOSS_BINS):
      low, high = i * T // LOSS_BINS, (i + 1) * T // LOSS_BINS
      w = weights * ((t >= low) & (t < high))
      sums[f'loss_t{low:04d}'] = (jnp.sum(w * error), jnp.sum(w))
    return sums

  def sample(variables, keys):
    return samplers.sample(
      process,
      lambda x_t, t: apply(variables, x_t, t)[0],
      keys,
      (size_px, size_px, channels),
      sampler='ddim',
      steps=min(50, T),
    )

  return Method(
    init=init,
    loss=loss,
    after=after,
    frozen=frozen,
    features=features,
    validate=validate,
    sample=sample,
    layers=tap_names(len(model.multipliers), model.blocks),
    timesteps=T,
    output='mid',
  )

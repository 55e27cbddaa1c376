"""Denoising diffusion: learns by predicting the noise in an image.

Source: Ho et al. 2020; features as in Xiang et al. 2023 (DDAE), from EMA
weights on images noised to step t, but at any block, not the decoder's only.
Letters: b batch, h w pixels, c channels, d features.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.diffusion import process as diffusion
from micdiffrep_jax.diffusion import samplers
from micdiffrep_jax.methods import recipe as recipes
from micdiffrep_jax.methods import views
from micdiffrep_jax.methods.base import (
  Batch,
  Loss,
  Method,
  State,
  Sums,
  Taps,
  Tree,
  apply,
  check_share,
  ema,
  loss_sums,
  to_float,
)
from micdiffrep_jax.models.backbones import BACKBONES, Backbone
from micdiffrep_jax.run.checks import lookup
from micdiffrep_jax.run.keys import stream

LOSS_BINS = 10  # validation loss is reported for each tenth of the timesteps


class Denoiser(NamedTuple):
  """The diffusion process and its network.

  apply(variables, x_t (b, h, w, c), t (b,) int32) -> (raw output, taps). What
  else the recipe tells the network goes by keyword to model.apply.
  """

  process: diffusion.Diffusion
  apply: Callable[..., tuple[jax.Array, Taps]]
  model: Any  # as models.backbones has it


def _backbone(model: ConfigDict) -> Backbone:
  return lookup(BACKBONES, model.name, 'backbone', '--config.model.name')


def denoiser(config: ConfigDict, size_px: int, channels: int) -> Denoiser:
  """Builds both from a pretraining config; ValueError before a compile."""
  fields = {
    k: tuple(v) if isinstance(v, list | tuple) else v
    for k, v in config.model.items()
    if k != 'name'
  }
  backbone, recipe = _backbone(config.model), recipe_of(config)
  for part in recipe.network_parts():
    if part not in backbone.recipe:
      known = ', '.join(('density', *backbone.recipe))
      raise ValueError(
        f'The backbone {config.model.name!r} knows no recipe.{part}, of '
        f'config.recipe only {known}. Leave out --config.recipe.{part}, or '
        'take a preset of the UNet.'
      )
  fields |= recipe.network_fields()
  try:
    model: Any = backbone.make(fields, size_px, channels)
  except TypeError as e:
    raise ValueError(
      f'config.model has not the fields of {config.model.name!r}: {e}. Choose '
      'a network by its preset, as --config=configs/pretrain.py:vit, not by '
      '--config.model.name alone.'
    ) from e
  recipes.check(recipe, size_px, backbone.divisor(model))
  fields = config.diffusion.to_dict()
  fields.pop('weighting')
  process = diffusion.make_diffusion(**fields)
  return Denoiser(process, functools.partial(apply, model), model)


def recipe_of(config: ConfigDict) -> recipes.Recipe:
  """The parts of the recipe that a pretraining config switches on."""
  return recipes.Recipe(**config.recipe.to_dict())


def _init(model: Any, shape: tuple[int, int, int], key: jax.Array) -> State:
  x, t = jnp.zeros((1, *shape)), jnp.zeros((1,), jnp.int32)
  params = model.init(key, x, t)['params']
  return params, {'ema': jax.tree.map(jnp.copy, params)}


def squared_error(
  process: diffusion.Diffusion,
  output: jax.Array,
  x0: jax.Array,
  t: jax.Array,
  eps: jax.Array,
) -> jax.Array:
  """Of the raw output (b, h, w, c) for x0 noised by eps to t (b,); (b,)."""
  target = diffusion.training_target(process, x0, t, eps)
  return jnp.mean(jnp.square(output - target), axis=(1, 2, 3))


class _Task(NamedTuple):
  """What a step is asked for: fields of the config, and the middle's tap."""

  recipe: recipes.Recipe
  augment: ConfigDict
  weighting: str
  middle: str


def _loss(
  d: Denoiser,
  task: _Task,
  params: Tree,
  extra: Tree,
  batch: Batch,
  key: jax.Array,
) -> Loss:
  recipe, k_recipe = task.recipe, stream(key, 'recipe')
  k_augment, k_t, k_eps, k_drop = jax.random.split(key, 4)
  x0, _, told = recipe.augmented(
    k_augment, to_float(batch['image']), task.augment
  )

  def value(
    keys: recipes.Keys, x0: jax.Array, told: dict[str, jax.Array]
  ) -> jax.Array:
    k_t, k_eps, k_drop, k_rest = keys
    shown = recipes.show(
      recipe, d.process, task.weighting, x0, told, (k_t, k_eps, k_rest)
    )
    if recipe.self_condition == 'first':
      shown = _guided(d, task.middle, extra['ema'], shown)
    output, _ = d.model.apply(
      {'params': params},
      shown.x_t,
      shown.t,
      train=True,
      rngs={'dropout': k_drop},
      **shown.told,
    )
    return shown.loss(output)

  keys = (k_t, k_eps, k_drop, k_recipe)
  found = recipes.whole_and_crops(recipe.crop_px, keys, x0, told, value)
  return found, (extra, {'loss': found})


def _guided(
  d: Denoiser, middle: str, averaged: Tree, shown: recipes.Shown
) -> recipes.Shown:
  """Tells two pictures of four the middle of a first pass over them, averaged.

  Through the averaged weights, so no gradient goes there, and up to the middle
  only: jit drops the rest. Two of four, as every other may be partly hidden.
  """
  rows = np.flatnonzero(np.arange(len(shown.x_t)) // 2 % 2 == 0)
  told = {name: x[rows] for name, x in shown.told.items()}
  some = (shown.x_t[rows], shown.t[rows])
  taps = d.model.apply({'params': averaged}, *some, **told)[1]
  found = jnp.mean(taps[middle], axis=(1, 2)).astype(jnp.float32)
  guide = jnp.zeros((len(shown.x_t), found.shape[-1])).at[rows].set(found)
  return shown._replace(told={**shown.told, 'guide': guide})


def _average(decay: float, params: Tree, extra: Tree, step: jax.Array) -> Tree:
  # The warm-up keeps the first averages from being the initial weights.
  warm = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return {'ema': ema(extra['ema'], params, warm)}


def _averaged(params: Tree, extra: Tree) -> Tree:
  del params
  return extra['ema']


def _noised(
  process: diffusion.Diffusion,
  keys: jax.Array,
  images: jax.Array,
  t: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """x0, eps and x_t of uint8 images, (b, h, w, c) each; keys, t (b,)."""
  x0 = to_float(images)
  eps = jax.vmap(lambda k, x: jax.random.normal(k, x.shape))(keys, x0)
  return x0, eps, diffusion.q_sample(process, x0, t, eps)


def _features(
  d: Denoiser, variables: Tree, images: jax.Array, keys: jax.Array, t: jax.Array
) -> Taps:
  t = jnp.full(images.shape[:1], t, jnp.int32)
  _, _, x_t = _noised(d.process, keys, images, t)
  taps = d.apply(variables, x_t, t)[1]
  return {k: v.astype(jnp.float32) for k, v in taps.items()}


def _validate(
  d: Denoiser,
  variables: Tree,
  images: jax.Array,
  keys: jax.Array,
  weights: jax.Array,
) -> Sums:
  """Draws the same t and noise for an image at every call."""
  T = d.process.timesteps
  k_t = jax.vmap(lambda k: stream(k, 't'))(keys)
  k_eps = jax.vmap(lambda k: stream(k, 'eps'))(keys)
  t = jax.vmap(lambda k: jax.random.randint(k, (), 0, T))(k_t)
  x0, eps, x_t = _noised(d.process, k_eps, images, t)
  output, _ = d.apply(variables, x_t, t)
  error = squared_error(d.process, output, x0, t, eps)
  sums = loss_sums(error, weights)
  for i in range(LOSS_BINS):
    low, high = i * T // LOSS_BINS, (i + 1) * T // LOSS_BINS
    w = weights * ((t >= low) & (t < high))
    sums[f'loss_t{low:04d}'] = (jnp.sum(w * error), jnp.sum(w))
  return sums


def _sample(
  d: Denoiser, shape: tuple[int, int, int], variables: Tree, keys: jax.Array
) -> jax.Array:
  return samplers.sample(
    d.process,
    lambda x_t, t: d.apply(variables, x_t, t)[0],
    keys,
    shape,
    sampler='ddim',
    steps=min(50, d.process.timesteps),
  )


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a pretraining config, for images of one size."""
  d = denoiser(config, size_px, channels)
  weighting, shape = config.diffusion.weighting, (size_px, size_px, channels)
  # For the check of the name.
  diffusion.loss_weight(d.process, jnp.zeros(1, jnp.int32), weighting)
  views.check_augment(config.augment)
  check_share('--config.ema_decay', config.ema_decay)
  backbone = _backbone(config.model)
  encoder = backbone.encoder_taps(d.model)
  decoder = backbone.decoder_taps(d.model)
  task = _Task(recipe_of(config), config.augment, weighting, encoder[-1])
  return Method(
    init=functools.partial(_init, d.model, shape),
    loss=functools.partial(_loss, d, task),
    after=functools.partial(_average, config.ema_decay),
    frozen=_averaged,
    features=functools.partial(_features, d),
    validate=functools.partial(_validate, d),
    sample=functools.partial(_sample, d, shape),
    layers=(*encoder, *decoder),
    decoder=decoder,
    timesteps=d.process.timesteps,
    output=encoder[-1],
  )

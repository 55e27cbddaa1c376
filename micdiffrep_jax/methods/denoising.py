"""The pass of a DDPM that a second loss shares: its error and its taps.

Letters: b batch, h w pixels, c channels.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from micdiffrep_jax.diffusion import process as diffusion
from micdiffrep_jax.methods import ddpm
from micdiffrep_jax.methods.base import Method, Taps, Tree, no_sums
from micdiffrep_jax.methods.recipe import Recipe
from micdiffrep_jax.run.checks import lookup

ALONE = '_alone'  # how the fact of a method without denoising ends


def noisy_pass(
  d: ddpm.Denoiser,
  weighting: str,
  params: Tree,
  x0: jax.Array,
  told: dict[str, jax.Array],
  t: jax.Array,
  key: jax.Array,
) -> tuple[jax.Array, Taps]:
  """Denoises x0 (b, h, w, c) from t (b,): weighted squared error (b,), taps.

  told: what was done to x0, as Recipe.augmented has it. What is not used of the
  two results, the compiler drops.
  """
  k_eps, k_drop = jax.random.split(key)
  eps = jax.random.normal(k_eps, x0.shape)
  output, taps = d.model.apply(
    {'params': params},
    diffusion.q_sample(d.process, x0, t, eps),
    t,
    train=True,
    rngs={'dropout': k_drop},
    **told,
  )
  error = ddpm.squared_error(d.process, output, x0, t, eps)
  return diffusion.loss_weight(d.process, t, weighting) * error, taps


def check_recipe(config: ConfigDict) -> Recipe:
  """The recipe; ValueError for parts that change what a step is asked for."""
  recipe = ddpm.recipe_of(config)
  for name in ('blank_px', 'levels_px', 'crop_px'):
    if getattr(recipe, name):
      raise ValueError(
        f'recipe.{name}={getattr(recipe, name)}: pictures that are denoised in '
        f'parts are no views of a whole. Set --config.recipe.{name}=0, or '
        '--config.method=ddpm.'
      )
  if recipe.self_condition == 'first':
    raise ValueError(
      "recipe.self_condition='first' takes a pass of its own. Set "
      '--config.recipe.self_condition=own, or --config.method=ddpm.'
    )
  return recipe


def tap_shapes(
  d: ddpm.Denoiser, shape: tuple[int, int, int]
) -> dict[str, tuple[int, ...]]:
  """{tap: (h', w', c')} for images of a shape (h, w, c)."""
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  t = jax.ShapeDtypeStruct((1,), jnp.int32)
  key = jax.eval_shape(functools.partial(jax.random.key, 0))
  (_, taps), _ = jax.eval_shape(d.model.init_with_output, key, x, t)
  return {name: tap.shape[1:] for name, tap in taps.items()}


def encoder_layers(method: Method) -> tuple[str, ...]:
  """Its taps from the input to the middle."""
  return tuple(n for n in method.layers if n not in method.decoder)


def known_tap(base: Method, name: str, flag: str) -> str:
  """Returns the name of a tap from the input to the middle; else ValueError."""
  known = {layer: layer for layer in encoder_layers(base)}
  return lookup(known, name, 'tap of the encoder', flag)


def average(base: Method, params: Tree, extra: Tree, step: jax.Array) -> Tree:
  """`extra` with the running average of the network moved on."""
  return {**extra, **base.after(params['net'], {'ema': extra['ema']}, step)}


def alone(method: Method, part: str) -> Method:
  """The method where no image is denoised, which trains by `part` alone.

  Without what only denoising trains: decoder, samples, validation loss. Its
  facts say so beside results.
  """
  return dataclasses.replace(
    method,
    layers=encoder_layers(method),
    decoder=(),
    validate=no_sums,
    sample=None,
    metrics=tuple(name for name in method.metrics if name != 'denoise'),
    facts={**method.facts, part + ALONE: True},
  )


def check_weight(config: ConfigDict, part: str, name: str) -> None:
  """Raises ValueError for the weight of a loss that is not above 0."""
  value = config[part][name]
  if value <= 0:
    raise ValueError(
      f'{part}.{name}={value} is not above 0, which is the method ddpm. Set '
      f'--config.{part}.{name}, or --config.method.'
    )

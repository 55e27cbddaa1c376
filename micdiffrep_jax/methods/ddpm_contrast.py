"""Denoising and momentum contrast in one network.

The pass that denoises one view of an image also describes it: averages of its
last encoder layers, through a projector, shall agree with the key of the
image's other view, among a queue of keys of other images. Keys come from the
running average that DDPM keeps anyway, so there is no second pass to train.
Contrast takes the encoder alone, so the images that are compared may be spared
the way back up: then the others alone are denoised, as they are, not as views.
Weight 0 of the denoising loss leaves contrast alone in the same encoder: what
denoising adds can only be told beside that.
Sources: Ho et al. 2020; He et al. 2020; a contrastive term in a diffusion
model as in DDAE++ (2505.10999); images that are only compared are ours.
Letters: b batch, h w pixels, c channels, d features, T steps.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from micdiffrep_jax.diffusion import process as diffusion
from micdiffrep_jax.methods import ddpm, denoising, two_view, views
from micdiffrep_jax.methods import queue as queues
from micdiffrep_jax.methods.base import (
  Batch,
  Loss,
  Method,
  State,
  Taps,
  Tree,
  to_float,
)
from micdiffrep_jax.methods.recipe import Recipe
from micdiffrep_jax.models.resnet import Projector
from micdiffrep_jax.run.checks import in_range, one_of
from micdiffrep_jax.run.keys import stream

NORMS = ('', 'layer', 'batch')


class _Both(NamedTuple):
  """The network, what its pass is compared with, and how much that counts.

  taps: whose averages, side by side, the projector reads; fields: of
  config.contrast.
  """

  base: Method
  d: ddpm.Denoiser
  projector: Projector
  queue: queues.Queue
  taps: tuple[str, ...]
  shape: tuple[int, int, int]  # of an image
  weighting: str  # of the denoising loss
  views: str
  augment: ConfigDict
  fields: ConfigDict
  recipe: Recipe


def pooled(taps: Taps, names: tuple[str, ...]) -> jax.Array:
  """Averages over pixels, side by side: {name: (b, h, w, d)} -> (b, sum d)."""
  means = [jnp.mean(taps[n].astype(jnp.float32), (1, 2)) for n in names]
  return jnp.concatenate(means, axis=-1)


def low_rows(share: float, b: int) -> int:
  """How many of b images are drawn at little noise, and compared."""
  return min(b, math.ceil(share * b))


def draw_timesteps(m: _Both, key: jax.Array, b: int) -> jax.Array:
  """t (b,) int32: below the limit for a share of the images, the first ones.

  As the recipe draws them for the others. A fixed number, so that batches do
  not differ.
  """
  k_low, k_all = jax.random.split(key)
  low = jax.random.randint(k_low, (b,), 0, m.fields.t_limit)
  others = m.recipe.draw_t(m.d.process, k_all, (b,))
  return jnp.where(jnp.arange(b) < low_rows(m.fields.share, b), low, others)


def _groups(fields: ConfigDict) -> int:
  """Of the projector's batch norm; 1 where it has none."""
  return fields.groups if fields.norm == 'batch' else 1


def _init(m: _Both, key: jax.Array) -> State:
  k_net, k_projector, k_queue = jax.random.split(key, 3)
  net, extra = m.base.init(k_net)
  shapes = denoising.tap_shapes(m.d, m.shape)
  width = sum(shapes[name][-1] for name in m.taps)
  head = m.projector.init(k_projector, jnp.zeros((1, width)))
  stats = head.get('batch_stats', {})
  return {'net': net, 'projector': head['params']}, {
    **extra,
    'projector': jax.tree.map(jnp.copy, head['params']),
    'stats': stats,
    'key_stats': jax.tree.map(jnp.copy, stats),
    'warm': jnp.float32(0 if m.fields.warmup_steps else 1),
    **m.queue.init(k_queue),
  }


def _keys(
  m: _Both, extra: Tree, x: jax.Array, key: jax.Array
) -> tuple[jax.Array, Tree]:
  """Unit keys (b, d) of the running averages for x (b, h, w, c), and stats."""
  k_t, k_eps = jax.random.split(key)
  t = jax.random.randint(k_t, x.shape[:1], 0, m.fields.t_key)
  eps = jax.random.normal(k_eps, x.shape)
  noised = diffusion.q_sample(m.d.process, x, t, eps)
  _, taps = m.d.apply(extra['ema'], noised, t)
  groups = _groups(m.fields)
  k, stats = two_view.train_pass(
    m.projector,
    extra['projector'],
    extra['key_stats'],
    queues.scatter(pooled(taps, m.taps), groups),
  )
  return jax.lax.stop_gradient(two_view.unit(queues.gather(k, groups))), stats


def _denoised(
  m: _Both, params: Tree, x0: jax.Array, t: jax.Array, keys: list[jax.Array]
) -> tuple[jax.Array, Taps]:
  """Errors (b,) of denoising x0 (b, h, w, c) from t (b,), and taps.

  x0 after config.augment, which the network may be told. keys: of that, and of
  the pass. Where errors are not used, the compiler drops the decoder.
  """
  k_augment, k_pass = keys
  x0, _, told = m.recipe.augmented(k_augment, x0, m.augment)
  net = params['net']
  return denoising.noisy_pass(m.d, m.weighting, net, x0, told, t, k_pass)


def _passes(
  m: _Both,
  params: Tree,
  shown: tuple[jax.Array, jax.Array],
  t: jax.Array,
  n: int,
  keys: list[jax.Array],
) -> tuple[jax.Array, Taps]:
  """Errors of what is denoised, and taps of the n that are compared, the first.

  shown: images as they are, and their first views, (b, h, w, c) both.
  """
  plain, view = shown
  if m.fields.denoise_compared or not m.fields.denoise:
    error, taps = _denoised(m, params, view, t, keys)
    return error, {name: tap[:n] for name, tap in taps.items()}
  others = [stream(key, 'others') for key in keys]
  error, _ = _denoised(m, params, plain[n:], t[n:], others)
  return error, _denoised(m, params, view[:n], t[:n], keys)[1]


def _loss(
  m: _Both, params: Tree, extra: Tree, batch: Batch, key: jax.Array
) -> Loss:
  k_views, k_a, k_b, k_t, k_pass, k_key = jax.random.split(key, 6)
  plain = x_a = x_b = to_float(batch['image'])
  if m.views:
    x_a, x_b = views.two_views(k_views, plain, m.views)
  # Keys are made as features are read: of a picture of which nothing is told.
  x_b = views.augment(k_b, x_b, m.augment)
  fields, b = m.fields, len(x_a)
  t = draw_timesteps(m, k_t, b)
  # Only they, so that a batch norm sees no picture that is all noise.
  n = low_rows(fields.share, b)
  error, taps = _passes(m, params, (plain, x_a), t, n, [k_a, k_pass])
  q, stats = two_view.train_pass(
    m.projector, params['projector'], extra['stats'], pooled(taps, m.taps)
  )
  q = two_view.unit(q)
  k, key_stats = _keys(m, extra, x_b, k_key)
  compared = jax.tree.map(lambda x: x[:n], batch)
  contrast = jnp.mean(m.queue.compare(extra, q, k[:n], compared))
  value = extra['warm'] * fields.weight * contrast
  metrics = {'contrast': contrast}
  if fields.denoise:
    metrics['denoise'] = jnp.mean(error)
    value = value + fields.denoise * metrics['denoise']
  metrics |= two_view.spread(q)
  extra = {
    **extra,
    'stats': stats,
    'key_stats': key_stats,
    **m.queue.push(extra, k, batch),
  }
  return value, (extra, {'loss': value, **metrics})


def _after(m: _Both, params: Tree, extra: Tree, step: jax.Array) -> Tree:
  extra = denoising.average(m.base, params, extra, step)
  slow = {'ema': extra['projector']}
  slow = m.base.after(params['projector'], slow, step)
  warm = jnp.minimum(1.0, (step + 1.0) / max(m.fields.warmup_steps, 1))
  return {**extra, 'projector': slow['ema'], 'warm': jnp.float32(warm)}


def check(config: ConfigDict, timesteps: int) -> None:
  """Raises ValueError for what can be told to be wrong before a compile."""
  fields, flag = config.contrast, '--config.contrast.'
  if config.views:
    views.get_policy(config.views)
  one_of(NORMS, fields.norm, 'norm of the projector', f'{flag}norm')
  denoising.check_weight(config, 'contrast', 'weight')
  in_range(fields.denoise, 0, math.inf, f'{flag}denoise')
  in_range(fields.warmup_steps, 0, math.inf, f'{flag}warmup_steps')
  for name in ('t_limit', 't_key'):
    note = 'A number of noise levels of config.diffusion.timesteps.'
    in_range(fields[name], 1, timesteps, f'{flag}{name}', note)
  if not 0 < fields.share <= 1:
    raise ValueError(
      f'contrast.share={fields.share} is outside (0, 1]. Set {flag}share.'
    )
  part = config.batch_size // max(config.accumulate, 1)
  groups, compared = _groups(fields), low_rows(fields.share, part)
  if fields.denoise and not fields.denoise_compared and compared == part:
    raise ValueError(
      f'contrast.share={fields.share} compares all {part} images (batch_size / '
      'accumulate), and with contrast.denoise_compared=False none is left to '
      f'denoise. Set {flag}share, or {flag}denoise=0.'
    )
  if fields.norm == 'batch' and (
    groups < 2 or part % groups or compared % groups or compared < 2 * groups
  ):
    raise ValueError(
      f'contrast.groups={groups}: {part} images (batch_size / accumulate) and '
      f'the {compared} of them that are compared (contrast.share) do not '
      'divide into at least 2 groups of at least 2, and with one batch norm '
      'over queries and their keys its statistics give the answer away. Set '
      f"{flag}groups or {flag}share, or {flag}norm to '' or layer."
    )


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a pretraining config, for images of one size."""
  base = ddpm.make(config, size_px, channels)
  fields, shape = config.contrast, (size_px, size_px, channels)
  check(config, base.timesteps)
  queue = queues.make(config, 'contrast')
  taps = tuple(
    denoising.known_tap(base, name, '--config.contrast.taps')
    for name in fields.taps
  )
  m = _Both(
    base,
    ddpm.denoiser(config, size_px, channels),
    Projector(
      fields.hidden,
      fields.features,
      fields.norm,
      _groups(fields),
      config.model.dtype,
    ),
    queue,
    taps or denoising.encoder_layers(base)[-2:],
    shape,
    config.diffusion.weighting,
    config.views,
    config.augment,
    fields,
    denoising.check_recipe(config),
  )
  method = dataclasses.replace(
    base,
    init=functools.partial(_init, m),
    loss=functools.partial(_loss, m),
    after=functools.partial(_after, m),
    frozen=lambda params, extra: base.frozen(params['net'], extra),
    metrics=('loss', 'denoise', 'contrast', 'feature_std', 'top_share'),
    facts={'contrast': True},
    check=queue.check_images,
    **queue.beside(),
  )
  return method if fields.denoise else denoising.alone(method, 'contrast')

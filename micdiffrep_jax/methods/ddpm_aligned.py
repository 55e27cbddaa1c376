"""Denoising with a teacher: a layer also says what another encoder sees.

Each cell of a layer, through a small projector, shall point where the teacher's
map of the clean picture points: 1 - cosine, added to the denoising loss. The
teacher is frozen and its maps travel with their images; they are turned with
them, so moves other than a flip are refused. What is learnt so is distilled:
results name the teacher, and say of it what its own would.
Source: Yu et al. 2024 (REPA, 2410.06940).
Letters: b batch, h w pixels, c channels, g cells per side, d features.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from micdiffrep_jax.methods import ddpm, denoising, two_view
from micdiffrep_jax.methods.base import (
  Batch,
  Loss,
  Method,
  State,
  Tree,
  apply,
  to_float,
)
from micdiffrep_jax.methods.recipe import Recipe
from micdiffrep_jax.models.resnet import Projector

_MOVES = ('rotate_deg', 'scale', 'shift')


class _Aligned(NamedTuple):
  """The network, and which of its layers says what the teacher sees."""

  base: Method
  d: ddpm.Denoiser
  projector: Projector
  tap: str
  width: int  # of the tap
  cells: int  # per side, of the teacher's map
  weight: float  # of the alignment
  weighting: str  # of the denoising loss
  augment: ConfigDict
  recipe: Recipe


def flip_maps(done: jax.Array, maps: jax.Array) -> jax.Array:
  """Mirrors maps (b, g, g, d) where their images were, left to right.

  done (b, TOLD): of views.augmented, which tells the flip first.
  """
  flipped = done[:, 0, None, None, None] > 0
  return jnp.where(flipped, maps[:, :, ::-1], maps)


def to_cells(x: jax.Array, g: int) -> jax.Array:
  """Averages x (b, h, w, c) over g x g equal cells; g divides h and w."""
  b, h, w, c = x.shape
  x = x.astype(jnp.float32).reshape(b, g, h // g, g, w // g, c)
  return jnp.mean(x, axis=(2, 4))


def misalignment(said: jax.Array, seen: jax.Array) -> jax.Array:
  """1 - cosine of said and seen (b, g, g, d), averaged over cells: (b,)."""
  cosine = jnp.sum(two_view.unit(said) * two_view.unit(seen), axis=-1)
  return 1 - jnp.mean(cosine, axis=(1, 2))


def _init(m: _Aligned, key: jax.Array) -> State:
  k_net, k_projector = jax.random.split(key)
  net, extra = m.base.init(k_net)
  x = jnp.zeros((1, m.cells, m.cells, m.width))
  head = m.projector.init(k_projector, x)
  return {'net': net, 'projector': head['params']}, extra


def _loss(
  m: _Aligned, params: Tree, extra: Tree, batch: Batch, key: jax.Array
) -> Loss:
  k_augment, k_t, k_pass = jax.random.split(key, 3)
  x0, done, told = m.recipe.augmented(
    k_augment, to_float(batch['image']), m.augment
  )
  seen = flip_maps(done, batch['teacher'].astype(jnp.float32))
  t = m.recipe.draw_t(m.d.process, k_t, x0.shape[:1])
  error, taps = denoising.noisy_pass(
    m.d, m.weighting, params['net'], x0, told, t, k_pass
  )
  cells = to_cells(taps[m.tap], m.cells)
  said = apply(m.projector, params['projector'], cells)
  denoise = jnp.mean(error)
  align = jnp.mean(misalignment(said, seen))
  value = denoise + m.weight * align
  return value, (extra, {'loss': value, 'denoise': denoise, 'align': align})


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before a compile."""
  denoising.check_weight(config, 'align', 'weight')
  two_view.check_counts(config.align, 'align', 'hidden')
  for name in _MOVES:
    if config.augment[name]:
      raise ValueError(
        f'augment.{name}={config.augment[name]}: the maps of a teacher are '
        'flipped with their images, but not moved otherwise. Set '
        f'--config.augment.{name}=0.'
      )
  if not config.teacher.shape:
    raise ValueError(
      'There is no teacher. Set --config.teacher.checkpoint to a pretraining '
      'run, a bundle or what configs/convert_clip.py made, or '
      '--config.teacher.features to an .npz with id and features.'
    )


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a pretraining config, for images of one size.

  config.teacher.shape is that of a map, (g, g, d); a run fills it in.
  """
  base = ddpm.make(config, size_px, channels)
  check(config)
  recipe = denoising.check_recipe(config)
  d, teacher = ddpm.denoiser(config, size_px, channels), config.teacher
  g, _, width = teacher.shape
  flag = '--config.align.tap'
  tap = denoising.known_tap(base, config.align.tap, flag)
  h, _, c = denoising.tap_shapes(d, (size_px, size_px, channels))[tap]
  if h % g:
    raise ValueError(
      f'{tap!r} has {h} x {h} pixels, which do not make the {g} x {g} cells of '
      f'the teacher. Set {flag} or --config.teacher.grid.'
    )
  hidden, dtype = config.align.hidden, config.model.dtype
  m = _Aligned(
    base,
    d,
    Projector(hidden, width, '', dtype=dtype),
    tap,
    c,
    g,
    config.align.weight,
    config.diffusion.weighting,
    config.augment,
    recipe,
  )
  return dataclasses.replace(
    base,
    init=functools.partial(_init, m),
    loss=functools.partial(_loss, m),
    after=functools.partial(denoising.average, base),
    frozen=lambda params, extra: base.frozen(params['net'], extra),
    metrics=('loss', 'denoise', 'align'),
    row={'teacher': jax.ShapeDtypeStruct((g, g, width), jnp.float16)},
    facts={'teacher': teacher.name, **dict.fromkeys(teacher.flags, True)},
  )

"""Denoising with a teacher: a layer also says what another encoder sees.

Each cell of a layer, through a small projector, shall point where the teacher's
map of the clean picture points: 1 - cosine, added to the denoising loss. The
teacher is frozen and its maps travel with their images; they are turned with
them, so moves other than a flip are refused. What is learnt so is distilled:
results name the teacher, and say of it what its own would.
As published, all images are denoised and aligned. Aligning takes the encoder
alone, so part of a batch, at little noise, may be spared the way back up; all
of it is the control, which tells what denoising adds.
Source: Yu et al. 2024 (REPA, 2410.06940); more than one layer, and images that
are only aligned, are ours.
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
from micdiffrep_jax.run.checks import in_range
from micdiffrep_jax.run.keys import stream

_TAP = '--config.align.tap'
_MOVES = ('rotate_deg', 'scale', 'shift')


class _Tap(NamedTuple):
  """A layer that says what the teacher sees, and where its projector is."""

  name: str
  key: str  # of the projector's weights
  width: int
  cells: int  # per side that are compared


class _Aligned(NamedTuple):
  """The network, and which of its layers say what the teacher sees."""

  base: Method
  d: ddpm.Denoiser
  projector: Projector
  taps: tuple[_Tap, ...]
  weight: float  # of the alignment
  every: int  # so many images make one that is denoised; 0 is none
  t_limit: int  # the others have less noise
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
  params = {'net': net}
  for i, tap in enumerate(m.taps):
    x = jnp.zeros((1, tap.cells, tap.cells, tap.width))
    k = jax.random.fold_in(k_projector, i) if i else k_projector
    params[tap.key] = m.projector.init(k, x)['params']
  return params, extra


def spared(x: jax.Array, every: int) -> jax.Array:
  """Rows of x (b, ...) that are aligned alone: all but each `every`th."""
  if not every:
    return x
  dealt = x.reshape(-1, every, *x.shape[1:])[:, 1:]
  return dealt.reshape(-1, *x.shape[1:])


def _pass(
  m: _Aligned,
  params: Tree,
  shown: tuple[jax.Array, jax.Array, dict[str, jax.Array]],
  t: jax.Array,
  key: jax.Array,
) -> tuple[jax.Array, list[jax.Array]]:
  """Errors (b,) of denoising from t (b,), and misalignment (b,) of each layer.

  shown: images (b, h, w, c), the teacher's maps (b, g, g, d), what is told.
  Where errors are not used, the compiler drops the decoder.
  """
  x, seen, told = shown
  net = params['net']
  error, taps = denoising.noisy_pass(m.d, m.weighting, net, x, told, t, key)
  return error, [
    misalignment(
      apply(m.projector, params[tap.key], to_cells(taps[tap.name], tap.cells)),
      to_cells(seen, tap.cells),
    )
    for tap in m.taps
  ]


def _loss(
  m: _Aligned, params: Tree, extra: Tree, batch: Batch, key: jax.Array
) -> Loss:
  k_augment, k_t, k_pass = jax.random.split(key, 3)
  x0, done, told = m.recipe.augmented(
    k_augment, to_float(batch['image']), m.augment
  )
  seen = flip_maps(done, batch['teacher'].astype(jnp.float32))
  shown, apart, metrics = (x0, seen, told), [], {}
  if m.every:
    some = jax.tree.map(lambda x: x[:: m.every], shown)
    t = m.recipe.draw_t(m.d.process, k_t, some[0].shape[:1])
    error, found = _pass(m, params, some, t, k_pass)
    metrics['denoise'] = jnp.mean(error)
    apart += found
  if m.every != 1:
    k_low, k_spared = jax.random.split(stream(key, 'spared'))
    rest = jax.tree.map(lambda x: spared(x, m.every), shown)
    t = jax.random.randint(k_low, rest[0].shape[:1], 0, m.t_limit)
    apart += _pass(m, params, rest, t, k_spared)[1]
  metrics['align'] = jnp.mean(jnp.concatenate(apart))
  value = metrics.get('denoise', 0.0) + m.weight * metrics['align']
  return value, (extra, {'loss': value, **metrics})


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before a compile."""
  denoising.check_weight(config, 'align', 'weight')
  every, flag = config.align.denoise_every, '--config.align.'
  part = config.batch_size // max(config.accumulate, 1)
  in_range(every, 0, part, f'{flag}denoise_every')
  if every and part % every:
    raise ValueError(
      f'align.denoise_every={every} does not divide the {part} images of a '
      f'pass (batch_size / accumulate). Set {flag}denoise_every.'
    )
  if every != 1:
    note = 'A number of noise levels of config.diffusion.timesteps.'
    most = config.diffusion.timesteps
    in_range(config.align.t_limit, 1, most, f'{flag}t_limit', note)
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
  taps = _taps(config.align.tap, base, d, (size_px, size_px, channels), g)
  hidden, dtype = config.align.hidden, config.model.dtype
  m = _Aligned(
    base,
    d,
    Projector(hidden, width, '', dtype=dtype),
    taps,
    config.align.weight,
    config.align.denoise_every,
    config.align.t_limit,
    config.diffusion.weighting,
    config.augment,
    recipe,
  )
  method = dataclasses.replace(
    base,
    init=functools.partial(_init, m),
    loss=functools.partial(_loss, m),
    after=functools.partial(denoising.average, base),
    frozen=lambda params, extra: base.frozen(params['net'], extra),
    metrics=('loss', 'denoise', 'align'),
    row={'teacher': jax.ShapeDtypeStruct((g, g, width), jnp.float16)},
    facts={'teacher': teacher.name, **dict.fromkeys(teacher.flags, True)},
  )
  return method if m.every else denoising.alone(method, 'aligned')


def _taps(
  names: str,
  base: Method,
  d: ddpm.Denoiser,
  shape: tuple[int, int, int],
  g: int,
) -> tuple[_Tap, ...]:
  """The layers of 'A+B' for maps of g x g cells; ValueError if one cannot."""
  shapes = denoising.tap_shapes(d, shape)
  taps: list[_Tap] = []
  parts = names.split('+')
  if len(set(parts)) < len(parts):
    raise ValueError(f'align.tap={names!r} names a layer twice. Set {_TAP}.')
  for name in parts:
    tap = denoising.known_tap(base, name, _TAP)
    h, _, c = shapes[tap]
    cells = min(h, g)
    if h % cells or g % cells:
      raise ValueError(
        f'{tap!r} has {h} x {h} pixels, which do not make the {g} x {g} cells '
        f'of the teacher. Set {_TAP} or --config.teacher.grid.'
      )
    key = f'projector_{tap}' if taps else 'projector'
    taps.append(_Tap(tap, key, c, cells))
  return tuple(taps)

"""Parts of a DDPM's pretraining, each off by default, and what a step shows.

A step shows the network pictures, whole or cropped, noised to one level or two,
half of them partly hidden, and tells it what was done. Nothing of this is there
when features are read, images validated or sampled: a network that is told
nothing takes zeros. `show` goes from clean pictures to inputs and targets.
Letters: b batch, h w pixels, c channels, T steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.diffusion import process as diffusion
from micdiffrep_jax.methods import views
from micdiffrep_jax.run.checks import in_range, one_of
from micdiffrep_jax.run.keys import stream

BLANKED = 0.75  # share of the patches of a picture that are hidden
Keys = tuple[jax.Array, ...]
PLACE = 3  # numbers that tell a crop: that it is one, and its centre


class Recipe(NamedTuple):
  """config.recipe: what is on; configs/pretrain.py says what each part does.

  A stored config that lacks a field was trained without that part.
  """

  tell_augment: bool = False
  blocks: tuple[int, ...] = ()
  density: str = 'uniform'
  density_mean: float = -1.2
  density_std: float = 1.2
  blank_px: int = 0
  levels_px: int = 0
  self_condition: str = ''
  crop_px: int = 0

  def network_parts(self) -> tuple[str, ...]:
    """Parts that are on and that the network must know: all but a density."""
    return tuple(
      name
      for name, value in self._asdict().items()
      if value and not name.startswith('density')
    )

  def network_fields(self) -> dict[str, Any]:
    """Fields of the network beside those of config.model; {} if all is off."""
    fields = {
      'told': views.TOLD * self.tell_augment + PLACE * bool(self.crop_px),
      'blank': bool(self.blank_px),
      'guide': self.self_condition,
      'blocks': self.blocks,
    }
    return {name: value for name, value in fields.items() if value}

  def draw_t(
    self, process: diffusion.Diffusion, key: jax.Array, shape: tuple[int, ...]
  ) -> jax.Array:
    """Steps of a shape, int32, by the density that a run trains under."""
    how = (self.density, self.density_mean, self.density_std)
    return diffusion.draw_t(process, key, shape, *how)

  def augmented(
    self, key: jax.Array, x: jax.Array, augment: ConfigDict
  ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Augments x (b, h, w, c): the result, what was done (b, TOLD).

    And what of that is told to the network, by keyword.
    """
    x, done = views.augmented(key, x, augment)
    return x, done, {'told': done} if self.tell_augment else {}


def check(recipe: Recipe, size_px: int, divisor: int) -> None:
  """Raises ValueError for fields that do not fit images of size_px.

  divisor: sides that the network takes are multiples of it.
  """
  flag = '--config.recipe.'
  one_of(diffusion.DENSITIES, recipe.density, 'density', f'{flag}density')
  in_range(recipe.density_std, 1e-3, np.inf, f'{flag}density_std')
  sources, name = ('', 'own', 'first'), 'self_condition'
  one_of(sources, recipe.self_condition, name, flag + name)
  crop = recipe.crop_px
  if crop and not (0 < crop < size_px and crop % divisor == 0):
    raise ValueError(
      f'recipe.crop_px={crop} is no multiple of {divisor} below the {size_px} '
      f'px of the images; 0 is off. Set {flag}crop_px.'
    )
  for name in ('blank_px', 'levels_px'):
    px = getattr(recipe, name)
    for side in (size_px, crop or size_px):
      if px and not (0 < px < side and side % px == 0):
        raise ValueError(
          f'recipe.{name}={px} does not cut pictures of {side} px into whole '
          f'blocks; 8 is usual, 0 is off. Set {flag}{name}.'
        )


class Shown(NamedTuple):
  """What a step puts before the network, and what is asked for.

  Attributes:
    x_t: (b, h, w, c).
    t: (b,), or (b, 2) where a picture has two levels.
    told: what else the network is told, by keyword; float32, b rows each.
    target: (b, h, w, c).
    weight: of the squared error; (b,) of pictures, or (b, h, w) of pixels.
  """

  x_t: jax.Array
  t: jax.Array
  told: dict[str, jax.Array]
  target: jax.Array
  weight: jax.Array

  def loss(self, output: jax.Array) -> jax.Array:
    """The weighted mean squared error of output (b, h, w, c); ()."""
    square = jnp.square(output - self.target)
    rest = tuple(range(self.weight.ndim, square.ndim))
    return jnp.mean(self.weight * jnp.mean(square, axis=rest))


def show(
  recipe: Recipe,
  process: diffusion.Diffusion,
  weighting: str,
  x0: jax.Array,
  told: dict[str, jax.Array],
  keys: tuple[jax.Array, jax.Array, jax.Array],
) -> Shown:
  """Noises pictures x0 (b, h, w, c) in [-1, 1] as the recipe has it.

  told: of x0 itself; keys: of the steps, of the noise, of all else.
  """
  k_t, k_eps, k_rest = keys
  blank = _blanks(recipe.blank_px, stream(k_rest, 'blank'), x0.shape)
  second = _blocks(recipe.levels_px, stream(k_rest, 'second'), x0.shape)
  shape = x0.shape[:1] if second is None else (len(x0), 2)
  t = recipe.draw_t(process, k_t, shape)
  if blank is not None:
    told = {**told, 'blank': blank.astype(jnp.float32)}
    t = jnp.where(_at_end(blank.any((1, 2)), t.ndim), 0, t)
  level = t  # of each picture, or of each pixel
  if second is not None:
    told = {**told, 'second': second.astype(jnp.float32)}
    level = jnp.where(second, t[:, 1, None, None], t[:, 0, None, None])
  eps = jax.random.normal(k_eps, x0.shape)
  shown = Shown(
    diffusion.q_sample(process, x0, level, eps),
    t,
    told,
    diffusion.training_target(process, x0, level, eps),
    diffusion.loss_weight(process, level, weighting),
  )
  return shown if blank is None else _hide(shown, x0, blank)


def _at_end(x: jax.Array, ndim: int) -> jax.Array:
  """x with axes of 1 at the end."""
  return x.reshape(x.shape + (1,) * (ndim - x.ndim))


def _repeat(cells: jax.Array, px: int) -> jax.Array:
  """(b, h / px, w / px) -> (b, h, w)."""
  return jnp.repeat(jnp.repeat(cells, px, axis=1), px, axis=2)


def _blocks(
  px: int, key: jax.Array, shape: tuple[int, ...]
) -> jax.Array | None:
  """A coin (b, h, w) bool for each block of px, where there are any."""
  if not px:
    return None
  b, h, w, _ = shape
  return _repeat(jax.random.bernoulli(key, 0.5, (b, h // px, w // px)), px)


def _blanks(
  px: int, key: jax.Array, shape: tuple[int, ...]
) -> jax.Array | None:
  """Hidden pixels (b, h, w) bool: BLANKED of the patches, every other picture.

  The same number in each. Every other, so that devices have as many.
  """
  if not px:
    return None
  b, h, w, _ = shape
  if b < 2:
    raise ValueError(
      'recipe.blank_px hides parts of every other picture, and there is one at '
      'a time. Set --config.accumulate or --config.batch_size.'
    )
  cells = (h // px) * (w // px)
  drawn = jax.random.uniform(key, (b, cells))
  ranks = jnp.argsort(jnp.argsort(drawn, axis=1), axis=1)
  hidden = ranks < round(BLANKED * cells)
  hidden = hidden & (jnp.arange(b) % 2 == 1)[:, None]
  return _repeat(hidden.reshape(b, h // px, w // px), px)


def _hide(shown: Shown, x0: jax.Array, blank: jax.Array) -> Shown:
  """Greys out what is hidden, which alone counts where a picture has any.

  It is asked for as it was, whatever the target elsewhere: nothing tells its
  noise. Source: Hansen-Estruch et al. 2024 (UMD), whose t = 0 has no noise;
  ours has the least.
  """
  partly = blank.any((1, 2))
  share = jnp.mean(blank, axis=(1, 2), keepdims=True)
  return shown._replace(
    x_t=jnp.where(blank[..., None], 0.0, shown.x_t),
    target=jnp.where(_at_end(partly, 4), x0, shown.target),
    weight=jnp.where(
      _at_end(partly, 3),
      blank / jnp.maximum(share, 1e-6),
      _at_end(shown.weight, 3),
    ),
  )


def whole_and_crops(
  crop_px: int,
  keys: Keys,
  x0: jax.Array,
  told: dict[str, jax.Array],
  value: Callable[[Keys, jax.Array, dict[str, jax.Array]], jax.Array],
) -> jax.Array:
  """The average of value(keys, x0, told), with crops for every other picture.

  keys: for what value draws; x0 (b, h, w, c). Source: Wang et al. 2023
  (Patch Diffusion), who tell the place by two more channels and draw one size
  for a batch; here that branch in a step would cost a CPU more than it saves.
  """
  if not crop_px:
    return value(keys, x0, told)
  if len(x0) < 2:
    raise ValueError(
      'recipe.crop_px crops every other picture, and there is one at a time. '
      'Set --config.accumulate or --config.batch_size.'
    )
  others = tuple(stream(key, 'crops') for key in keys)
  pieces, place = crop(stream(keys[0], 'crop'), x0[1::2], crop_px)

  def part(keys: Keys, x: jax.Array, first: int, at: Any) -> jax.Array:
    known = {name: v[first::2] for name, v in told.items()}
    before = known.get('told', jnp.zeros((len(x), 0)))
    known['told'] = jnp.concatenate([before, at], axis=1)
    return len(x) / len(x0) * value(keys, x, known)

  whole = x0[::2]
  of_whole = part(keys, whole, 0, jnp.zeros((len(whole), PLACE)))
  return of_whole + part(others, pieces, 1, place)


def crop(key: jax.Array, x0: jax.Array, px: int) -> tuple[jax.Array, jax.Array]:
  """Squares (b, px, px, c) of x0 (b, h, w, c), and where each lies (b, PLACE).

  1, then its centre from that of the image, down and to the right, in units of
  half the image: a whole image is (0, 0, 0).
  """
  b, h, w, c = x0.shape
  spare = jnp.array([h - px, w - px])
  corner = jax.random.randint(key, (b, 2), 0, spare[None] + 1)
  pieces = jax.vmap(
    lambda x, at: jax.lax.dynamic_slice(x, (*at, 0), (px, px, c))
  )(x0, corner)
  centre = (2 * corner - spare[None]) / jnp.array([[h, w]])
  return pieces, jnp.concatenate([jnp.ones((b, 1)), centre], axis=1)

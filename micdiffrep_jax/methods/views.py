"""Random changes of images, batched and on the device.

`augment` changes an image a little: flips, small affine maps, intensity. Views
change it much, for self-supervised pretraining; their crops and blurs are two
small matrix products per image, one along each axis: far cheaper on CPU and
accelerators than gathers.
Letters: b batch, h w pixels, c channels; i of the output, j of the input.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from micdiffrep_jax.run.checks import in_range, lookup

# Fields of `augment`, half-ranges around the identity: 0 switches one off.
LIMITS = {
  'flip': (0.0, 1.0),
  'rotate_deg': (0.0, 180.0),
  'scale': (0.0, 0.9),
  'shift': (0.0, 0.5),
  'brightness': (0.0, 1.0),
  'contrast': (0.0, 1.0),
}


def check_augment(config: ConfigDict) -> None:
  """Raises ValueError for a field outside its range."""
  for name, (low, high) in LIMITS.items():
    in_range(config[name], low, high, f'--config.augment.{name}')


def affine(x: jax.Array, matrix: jax.Array, offset: jax.Array) -> jax.Array:
  """Samples x (h, w, c) at matrix @ (pixel - centre) + centre + offset.

  Bilinear; outside is -1, the black of the background.
  """
  h, w, _ = x.shape
  centre = jnp.array([(h - 1) / 2, (w - 1) / 2])
  grid = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing='ij'))
  grid = grid - centre[:, None, None]
  places = jnp.einsum('ij,jhw->ihw', matrix, grid)
  places = places + (centre + offset)[:, None, None]
  return jax.vmap(
    lambda plane: jax.scipy.ndimage.map_coordinates(
      plane, list(places), order=1, mode='constant', cval=-1.0
    ),
    in_axes=-1,
    out_axes=-1,
  )(x)


def _turned(
  x: jax.Array, angle: jax.Array, zoom: jax.Array | float, offset: jax.Array
) -> jax.Array:
  """Each of x (b, h, w, c) turned by angle (b,) in radians about its centre.

  zoom (b,) or one for all; offset (b, 2) pixels.
  """
  cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
  matrix = jnp.stack([cos, -sin, sin, cos], axis=-1).reshape(-1, 2, 2)
  return jax.vmap(affine)(x, matrix, offset)


TOLD = len(LIMITS) + 1  # numbers that tell an augmentation: a shift is two


def augment(key: jax.Array, x: jax.Array, config: ConfigDict) -> jax.Array:
  """What `augmented` makes of x (b, h, w, c), without what it tells."""
  return augmented(key, x, config)[0]


def augmented(
  key: jax.Array, x: jax.Array, config: ConfigDict
) -> tuple[jax.Array, jax.Array]:
  """x (b, h, w, c) float32 in [-1, 1] -> the same, each image on its own.

  flip: probability of a left-right flip; rotate_deg, scale (relative) and shift
  (share of the side): half-ranges of uniform draws; brightness (of 2, the whole
  range) and contrast (relative): likewise. Values are cut to [-1, 1].

  Beside it what was done, (b, TOLD) float32 in the order of LIMITS: 1 where
  flipped, the others in units of their half-range, in [-1, 1]; 0 is unchanged.
  """
  b, h = x.shape[:2]
  keys = dict(zip(LIMITS, jax.random.split(key, len(LIMITS)), strict=True))
  told = {name: jnp.zeros((b, 2 if name == 'shift' else 1)) for name in LIMITS}

  def uniform(
    name: str, half_range: float, shape: tuple[int, ...] = (b,)
  ) -> jax.Array:
    u = jax.random.uniform(keys[name], shape, minval=-1.0, maxval=1.0)
    if half_range:
      told[name] = u.reshape(b, -1)
    return half_range * u

  if config.flip:
    flip = jax.random.bernoulli(keys['flip'], config.flip, (b, 1, 1, 1))
    told['flip'] = flip.reshape(b, 1).astype(jnp.float32)
    x = jnp.where(flip, x[:, :, ::-1], x)
  if config.rotate_deg or config.scale or config.shift:
    angle = uniform('rotate_deg', config.rotate_deg * math.pi / 180)
    zoom = 1 + uniform('scale', config.scale)
    x = _turned(x, angle, zoom, uniform('shift', config.shift * h, (b, 2)))
  if config.brightness or config.contrast:
    gain = 1 + uniform('contrast', config.contrast, (b, 1, 1, 1))
    lift = 2 * uniform('brightness', config.brightness, (b, 1, 1, 1))
    # Around black, so that the background stays background.
    x = jnp.where(x > -0.98, (x + 1) * gain - 1 + lift, x)
    x = jnp.clip(x, -1.0, 1.0)
  return x, jnp.concatenate([told[name] for name in LIMITS], axis=1)


class View(NamedTuple):
  """How one view is drawn; probabilities in [0, 1], 0 switches a part off.

  Attributes:
    crop: least and largest share of the area.
    rotate_deg: half-range.
    jitter: probability that brightness and contrast change.
    brightness: relative half-range of a factor on intensities in [0, 1].
    contrast: relative half-range of a factor around the mean of the image.
    blur: probability.
    solarize: probability.
    flip: probability, left-right.
  """

  crop: tuple[float, float]
  rotate_deg: float
  jitter: float
  brightness: float
  contrast: float
  blur: float
  solarize: float
  flip: float


# Chen et al. 2020 (MoCo v2). Hue, saturation and grey-scale are the identity on
# grey images; brightness and contrast 0.6 instead of 0.4 make up for them.
_MOCO = View((0.2, 1.0), 0.0, 0.8, 0.6, 0.6, 0.5, 0.0, 0.5)
# Milder, ours: a lesion stays in the crop, and dark stays dark.
_MRI = View((0.4, 1.0), 10.0, 0.8, 0.4, 0.4, 0.25, 0.0, 0.5)
# Ours, for encoders that know no views: the whole head stays in sight.
_MILD = View((0.7, 1.0), 10.0, 0.5, 0.2, 0.2, 0.0, 0.0, 0.5)

POLICIES = {
  'paper': (_MOCO, _MOCO),
  # Grill et al. 2020, table 6, with MoCo's crop: 0.08 of 64 px shows nothing.
  'paper_asymmetric': (
    _MOCO._replace(blur=1.0),
    _MOCO._replace(blur=0.1, solarize=0.2),
  ),
  'mri': (_MRI, _MRI),
  'mild': (_MILD, _MILD),
}


def get_policy(name: str) -> tuple[View, View]:
  """The two views of a policy; ValueError for an unknown name."""
  return lookup(POLICIES, name, 'policy of views', '--config.views')


def _bilinear(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
  """Weights (b, i, j) that resize [start, start + length) (b,) to `size`.

  Antialiased: where the crop is larger than the output, the triangle widens.
  Rows add up to 1; beyond the border nothing is read.
  """
  step = length / size
  pixels = jnp.arange(size) + 0.5
  centre = start[:, None] + step[:, None] * pixels[None, :]
  distance = jnp.abs(centre[:, :, None] - pixels[None, None, :])
  weights = jax.nn.relu(1 - distance / jnp.maximum(step, 1.0)[:, None, None])
  return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _separable(rows: jax.Array, columns: jax.Array, x: jax.Array) -> jax.Array:
  """rows (b, i, h) and columns (b, k, w) on x (b, h, w, c) -> (b, i, k, c)."""
  x = jnp.einsum('bih,bhwc->biwc', rows, x)
  return jnp.einsum('bkw,biwc->bikc', columns, x)


def random_resized_crop(
  key: jax.Array,
  x: jax.Array,
  scale: tuple[float, float] = (0.2, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> jax.Array:
  """Crops a random part of each image and resizes it to the whole, bilinearly.

  x (b, h, w, c) float32 -> the same shape and range. scale: least and largest
  share of the area, in (0, 1]; ratio: of width to height, log-uniform. Ours: a
  side longer than the image is cut to it, where torchvision draws again.
  """
  b, h, w, _ = x.shape
  k_area, k_ratio, k_top, k_left = jax.random.split(key, 4)
  area = jax.random.uniform(k_area, (b,), minval=scale[0], maxval=scale[1])
  log_ratio = jax.random.uniform(
    k_ratio, (b,), minval=math.log(ratio[0]), maxval=math.log(ratio[1])
  )
  height = h * jnp.minimum(1.0, jnp.sqrt(area * jnp.exp(-log_ratio)))
  width = w * jnp.minimum(1.0, jnp.sqrt(area * jnp.exp(log_ratio)))
  top = jax.random.uniform(k_top, (b,)) * (h - height)
  left = jax.random.uniform(k_left, (b,)) * (w - width)
  return _separable(_bilinear(top, height, h), _bilinear(left, width, w), x)


def rotate(key: jax.Array, x: jax.Array, half_range_deg: float) -> jax.Array:
  """Turns x (b, h, w, c) about its centre; corners fill with -1."""
  limit = half_range_deg * math.pi / 180
  angle = jax.random.uniform(key, x.shape[:1], minval=-limit, maxval=limit)
  return _turned(x, angle, 1.0, jnp.zeros((len(x), 2)))


def jitter(
  key: jax.Array, x: jax.Array, brightness: float, contrast: float
) -> jax.Array:
  """Scales intensities, then their distance from the mean; clips to [-1, 1].

  x (b, h, w, c) in [-1, 1]; factors uniform within 1 -+ the half-ranges.
  """
  k_brightness, k_contrast = jax.random.split(key)

  def factor(k: jax.Array, half_range: float) -> jax.Array:
    shape = (x.shape[0], 1, 1, 1)
    return 1 + half_range * jax.random.uniform(k, shape, minval=-1.0)

  x = (x + 1) * factor(k_brightness, brightness) - 1
  x = jnp.clip(x, -1.0, 1.0)
  mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
  x = (x - mean) * factor(k_contrast, contrast) + mean
  return jnp.clip(x, -1.0, 1.0)


def _gaussian(sigma: jax.Array, size: int) -> jax.Array:
  """Weights (b, i, j) of a blur by sigma (b,) pixels; rows add up to 1."""
  pixels = jnp.arange(size)
  squares = jnp.square(pixels[:, None] - pixels[None, :]).astype(jnp.float32)
  return jax.nn.softmax(
    -squares[None, :, :] / (2 * jnp.square(sigma))[:, None, None], axis=-1
  )


def blur(key: jax.Array, x: jax.Array) -> jax.Array:
  """Gaussian blur of x (b, h, w, c), sigma uniform in [0.1, 2 h / 224] px.

  The papers' [0.1, 2] is meant for 224 px; it shrinks with the image.
  """
  b, h, w, _ = x.shape
  sigma = jax.random.uniform(
    key, (b,), minval=0.1, maxval=max(2 * h / 224, 0.1)
  )
  return _separable(_gaussian(sigma, h), _gaussian(sigma, w), x)


def solarize(x: jax.Array) -> jax.Array:
  """Inverts the bright half: x in [-1, 1] -> -|x|."""
  return -jnp.abs(x)


def draw_view(key: jax.Array, x: jax.Array, view: View) -> jax.Array:
  """One view of each image: x (b, h, w, c) float32 in [-1, 1] -> the same."""
  k_rotate, k_crop, k_flip, k_jitter, k_blur, k_solarize = jax.random.split(
    key, 6
  )

  def sometimes(
    k: jax.Array, probability: float, changed: jax.Array, x: jax.Array
  ) -> jax.Array:
    return jnp.where(
      jax.random.bernoulli(k, probability, (x.shape[0], 1, 1, 1)), changed, x
    )

  if view.rotate_deg:
    x = rotate(k_rotate, x, view.rotate_deg)
  x = random_resized_crop(k_crop, x, view.crop)
  if view.flip:
    x = sometimes(k_flip, view.flip, x[:, :, ::-1], x)
  if view.jitter:
    k_choice, k_draw = jax.random.split(k_jitter)
    changed = jitter(k_draw, x, view.brightness, view.contrast)
    x = sometimes(k_choice, view.jitter, changed, x)
  if view.blur:
    k_choice, k_draw = jax.random.split(k_blur)
    x = sometimes(k_choice, view.blur, blur(k_draw, x), x)
  if view.solarize:
    x = sometimes(k_solarize, view.solarize, solarize(x), x)
  return x


def two_views(
  key: jax.Array, x: jax.Array, policy: str
) -> tuple[jax.Array, jax.Array]:
  """Two independent views of x (b, h, w, c) float32 in [-1, 1], same shape."""
  k_first, k_second = jax.random.split(key)
  first, second = get_policy(policy)
  return draw_view(k_first, x, first), draw_view(k_second, x, second)

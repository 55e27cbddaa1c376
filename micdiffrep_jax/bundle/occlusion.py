"""Which parts of a picture a prediction hangs on, by covering them.

What a window hides is replaced by what lies around it, and the fall of the
predicted class's log-odds is noted where the window was. Only the object is
covered, and only from the object: air stays air. A blur, or grey, would change
the head's bright edge more than any finding, and would be what is measured.
Model-free, so the head may be anything. Source: Zeiler and Fergus 2014, section
4.2, with the surroundings in place of grey.

Letters: s side of the image, c channels, w windows.
"""

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from micdiffrep_jax.bundle.classifier import Classifier, bundle_predict
from micdiffrep_jax.encoders import features

_AIR = 0.35  # a rim darker than this share of the bright end is air
_ABOVE_AIR = 0.25  # where the object begins, on the way from air to bright
_STRONG = 0.6  # opacity where the fall is greatest
_LEAST_FALL = 0.5  # log-odds: less than this is not stretched to red
_TEXT_PX = 14
_BAR_PX = 14  # width of the legend's bar
_LEGEND_PX = 96  # width of the legend


class Windows(NamedTuple):
  """What is covered, and how: copies (w, s, s, c) uint8, an image per window.

  weights (w, s, s) in [0, 1]: how much a window says of a pixel, most in its
  middle; 0 outside of it and in air.
  """

  copies: np.ndarray
  weights: np.ndarray


def is_object(image: np.ndarray) -> np.ndarray:
  """What is no air in an image (s, s, c): (s, s) bool.

  Air is dark and reaches the border of the image, of which it fills more than
  half; an image without it is object all over.
  """
  grey = cv2.GaussianBlur(image.mean(-1).astype(np.float32), (0, 0), 1.0)
  rim = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
  air, bright = np.median(rim), np.quantile(grey, 0.95)
  if air > _AIR * bright or bright == 0:
    return np.ones(grey.shape, bool)
  dark = (grey <= air + _ABOVE_AIR * (bright - air)).astype(np.uint8)
  _, pieces = cv2.connectedComponents(dark, connectivity=4)
  ends = [pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]]
  outer = np.setdiff1d(np.unique(np.concatenate(ends)), 0)
  return ~np.isin(pieces, outer)


def cover(image: np.ndarray, window: float, stride: float) -> Windows:
  """Copies of an image (s, s, c), one per window that holds some object.

  window and stride are shares of the side; the last window ends at the border.
  Raises ValueError for shares outside (0, 1].
  """
  if not 0 < stride <= 1 or not 0 < window <= 1:
    raise ValueError(
      f'occlusion.window={window} and stride={stride} must be in (0, 1]. Set '
      '--config.occlusion.window and .stride.'
    )
  side, thing = image.shape[0], is_object(image)
  size = max(1, round(window * side))
  middle = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
  copies, weights = [], []
  starts = window_starts(side, window, stride)
  for top in starts:
    for left in starts:
      at = np.s_[top : top + size, left : left + size]
      if not thing[at].any():
        continue
      hidden = np.zeros_like(thing)
      hidden[at] = thing[at]
      filled = surroundings(image, thing & ~hidden, size)
      copies.append(np.where(hidden[..., None], filled, image))
      weight = np.zeros((side, side))
      weight[at] = np.outer(middle, middle)
      weights.append(weight * thing)
  return Windows(
    np.array(copies, np.uint8).reshape(-1, *image.shape),
    np.array(weights).reshape(-1, side, side),
  )


def surroundings(image: np.ndarray, known: np.ndarray, size: int) -> np.ndarray:
  """The image as its known pixels (s, s) bool foretell it: (s, s, c) uint8.

  Means weighted by distance, with a deviation of half a window of `size`
  pixels, and by the overall mean where nothing is near.
  """
  if not known.any():
    known = np.ones_like(known)
  weight = known[..., None].astype(np.float32)
  near = [
    cv2.GaussianBlur(x, (0, 0), size / 2).reshape(x.shape)
    for x in (weight * image, weight)
  ]
  little = 1e-3
  mean = image[known].mean(0)
  found = (near[0] + little * mean) / (near[1] + little)
  return np.rint(found).clip(0, 255).astype(np.uint8)


def window_starts(side: int, window: float, stride: float) -> np.ndarray:
  """First pixels (g,) of the windows along one side."""
  size, step = max(1, round(window * side)), max(1, round(stride * side))
  return np.unique(np.append(np.arange(0, side - size, step), side - size))


def drop_map(
  model: Classifier,
  image: np.ndarray,
  label: int,
  window: float = 0.25,
  stride: float = 0.125,
) -> np.ndarray:
  """Fall of the log-odds of a class where a pixel is covered: (s, s) float64.

  A weighted mean over the windows that cover the pixel; negative where covering
  speaks for the class, 0 in air. All copies carry the noise of the whole image,
  so that only what is covered differs.
  """
  copies, weights = cover(image, window, stride)
  seeds = np.repeat(features.image_seeds(image[None]), len(copies) + 1)
  probs = bundle_predict(model, np.concatenate([image[None], copies]), seeds)
  p = np.clip(probs[:, label].astype(np.float64), 1e-6, 1 - 1e-6)
  odds = np.log(p / (1 - p))
  total = np.einsum('w,whv->hv', odds[0] - odds[1:], weights)
  return total / np.maximum(weights.sum(0), 1e-9)


def overlay(
  image: np.ndarray, drop: np.ndarray, size_px: int, title: str = ''
) -> np.ndarray:
  """The image, and the image under its heat map, with title and legend.

  (size_px + header, 2 size_px + legend, 3) uint8. Red where covering takes from
  the class; where it adds nothing is shown.
  """
  grey = image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, -1)
  how = cv2.INTER_LINEAR
  grey = cv2.resize(grey, (size_px, size_px), interpolation=how)
  most = max(float(drop.max()), _LEAST_FALL)
  heat = cv2.resize(drop / most, (size_px, size_px), interpolation=how)
  heat = np.clip(heat, 0, 1)
  weight = _STRONG * heat[..., None]
  mixed = (1 - weight) * grey + weight * _colours(heat)
  both = np.concatenate([grey, mixed.astype(np.uint8)], axis=1)
  return _framed(both, most, title)


def _colours(heat: np.ndarray) -> np.ndarray:
  """Shares (h, w) in [0, 1] -> (h, w, 3) uint8, black over red to white."""
  levels = np.round(255 * heat).astype(np.uint8)
  return cv2.applyColorMap(levels, cv2.COLORMAP_HOT)[..., ::-1]


def _framed(both: np.ndarray, most: float, title: str) -> np.ndarray:
  """Puts a title above two pictures (h, 2 h, 3) and a legend beside them."""
  side, wide = both.shape[:2]
  head = _TEXT_PX + 8
  canvas = np.full((side + head, wide + _LEGEND_PX, 3), 255, np.uint8)
  canvas[head:, :wide] = both
  down = np.linspace(1, 0, side - 2 * _TEXT_PX)[:, None]
  left, top = wide + 8, head + _TEXT_PX
  bar = np.repeat(_colours(down), _BAR_PX, axis=1)
  canvas[top : top + len(bar), left : left + _BAR_PX] = bar
  picture = Image.fromarray(canvas)
  font = ImageFont.load_default(_TEXT_PX - 2)
  write = ImageDraw.Draw(picture).text
  write((4, 3), title, fill=(0, 0, 0), font=font)
  beside = left + _BAR_PX + 4
  write((beside, top - 6), f'-{most:.1f}', fill=(0, 0, 0), font=font)
  write((beside, top + len(bar) - 8), '0', fill=(0, 0, 0), font=font)
  words = 'log-odds\nof the class,\nif covered'
  write((beside, top + len(bar) // 2 - 20), words, fill=(0, 0, 0), font=font)
  return np.asarray(picture)


def points_at(drop: np.ndarray, target: np.ndarray, margin_px: int) -> bool:
  """Whether the hottest pixel lies in a target (s, s) bool, or so near to it.

  The pointing game. Source: Zhang et al. 2018, Top-down neural attention.
  """
  hottest = np.unravel_index(int(drop.argmax()), drop.shape)
  return bool(widened(target, margin_px)[hottest])


def widened(target: np.ndarray, margin_px: int) -> np.ndarray:
  """A target (s, s) bool with all pixels that are within a margin of it."""
  size = 2 * margin_px + 1
  disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
  return cv2.dilate(target.astype(np.uint8), disc) > 0

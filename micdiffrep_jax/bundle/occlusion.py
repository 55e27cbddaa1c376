"""Which parts of a picture a prediction hangs on, by covering them.

A window of the picture is replaced by its blurred self, and the fall of the
predicted class's log-odds is noted where the window was. Model-free, so the
head may be anything. Source: Zeiler and Fergus 2014, section 4.2, with blur in
place of grey, which would itself look like a finding.

Letters: s side of the image, c channels, g windows per side.
"""

import cv2
import numpy as np

from micdiffrep_jax.bundle.classifier import Classifier, bundle_predict
from micdiffrep_jax.encoders import features

_BLUR = 1 / 8  # standard deviation as a share of the side
_STRONG = 0.6  # opacity where the fall is greatest
_MIN_DROP = 0.05  # log-odds: less than this is noise and not stretched


def covered(image: np.ndarray, window: float, stride: float) -> np.ndarray:
  """Copies of an image (s, s, c), one per window: (g * g, s, s, c) uint8.

  window and stride are shares of the side; the last window ends at the border.
  Raises ValueError for shares outside (0, 1].
  """
  if not 0 < stride <= 1 or not 0 < window <= 1:
    raise ValueError(
      f'occlusion.window={window} and stride={stride} must be in (0, 1]. Set '
      '--config.occlusion.window and .stride.'
    )
  side = image.shape[0]
  size = max(1, round(window * side))
  blurred = cv2.GaussianBlur(image, (0, 0), _BLUR * side).reshape(image.shape)
  starts = window_starts(side, window, stride)
  copies = np.repeat(image[None], len(starts) ** 2, axis=0)
  for i, top in enumerate(starts):
    for j, left in enumerate(starts):
      at = np.s_[top : top + size, left : left + size]
      copies[i * len(starts) + j][at] = blurred[at]
  return copies


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

  The mean over the windows that cover the pixel; negative where covering
  speaks for the class. All copies carry the noise of the whole image, so that
  only what is covered differs.
  """
  copies = covered(image, window, stride)
  seeds = np.repeat(features.image_seeds(image[None]), len(copies) + 1)
  probs = bundle_predict(model, np.concatenate([image[None], copies]), seeds)
  p = np.clip(probs[:, label], 1e-6, 1 - 1e-6)
  odds = np.log(p / (1 - p))
  side = image.shape[0]
  size = max(1, round(window * side))
  starts = window_starts(side, window, stride)
  total, count = np.zeros((2, side, side))
  for k, fall in enumerate(odds[0] - odds[1:]):
    top, left = starts[k // len(starts)], starts[k % len(starts)]
    total[top : top + size, left : left + size] += fall
    count[top : top + size, left : left + size] += 1
  return total / np.maximum(count, 1)


def overlay(image: np.ndarray, drop: np.ndarray, size_px: int) -> np.ndarray:
  """The image, and the image under its heat map: (size_px, 2 size_px, 3) uint8.

  Red where covering takes from the class; where it adds nothing is shown.
  """
  grey = image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, -1)
  how = cv2.INTER_LINEAR
  grey = cv2.resize(grey, (size_px, size_px), interpolation=how)
  heat = np.clip(drop, 0, None) / max(float(drop.max()), _MIN_DROP)
  heat = cv2.resize(heat, (size_px, size_px), interpolation=how)
  levels = (255 * np.clip(heat, 0, 1)).astype(np.uint8)
  colour = cv2.applyColorMap(levels, cv2.COLORMAP_HOT)[..., ::-1]
  weight = _STRONG * heat[..., None]
  mixed = (1 - weight) * grey + weight * colour
  return np.concatenate([grey, mixed.astype(np.uint8)], axis=1)

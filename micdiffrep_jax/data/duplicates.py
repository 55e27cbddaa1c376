"""Finds pictures that show nearly the same thing.

Two pictures are near-duplicates when their heads, cut out and shrunk to
32 px, correlate: in full and in detail (high-pass), or in detail alone. A
perceptual hash is no help on brain MRI: at a distance of 4 it already joins
different patients. Dimension letters: n pictures, h w their pixels, d
pixels of a crop.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np

CROP_PX = 32
_LEVEL = 0.15  # of the 99th percentile: what counts as background
_LOOK_PX = 256  # a larger picture is shrunk before it is looked at
_SHARE = 0.02  # of a row or column that must be brighter
BLUR_PX = 2.0  # standard deviation of what the high-pass removes
_BLOCK = 4096
FLAT = 2.0  # grey levels of deviation below which there is nothing to compare


class Thresholds(NamedTuple):
  """Correlations from which two pictures count as one."""

  full: float = 0.98
  detail: float = 0.85
  detail_alone: float = 0.95


class Descriptors(NamedTuple):
  """Unit vectors (n, d) float32; zero where a picture is flat."""

  full: np.ndarray
  detail: np.ndarray


def head_crop(pixels: np.ndarray) -> np.ndarray:
  """Cuts out what is brighter than the background and shrinks it.

  pixels (h, w) or (h, w, 3) uint8, as read from the file: groups then do not
  depend on the size that a data set is prepared in. -> (32, 32) uint8.
  """
  grey = pixels
  if pixels.ndim == 3:
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
  if max(grey.shape) > _LOOK_PX:
    shrink = _LOOK_PX / max(grey.shape)
    sides = [max(1, round(shrink * side)) for side in grey.shape]
    grey = cv2.resize(grey, sides[::-1], interpolation=cv2.INTER_AREA)
  mask = grey > _LEVEL * _percentile(grey, 0.99)
  # A lone bright pixel, of which salt and pepper has many, moves no border.
  rows = np.flatnonzero(mask.mean(1) > _SHARE)
  cols = np.flatnonzero(mask.mean(0) > _SHARE)
  if len(rows) > 1 and len(cols) > 1:
    grey = grey[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
  for size_px in (2 * CROP_PX, CROP_PX):
    grey = cv2.resize(
      np.ascontiguousarray(grey),
      (size_px, size_px),
      interpolation=cv2.INTER_AREA,
    )
  return grey


def crops(images: Any, rows: np.ndarray) -> np.ndarray:
  """Head crops (len(rows), 32, 32) uint8 of prepared images.

  images[rows (n,)] gives (n, s, s, c) uint8.
  """
  out = np.zeros((len(rows), CROP_PX, CROP_PX), np.uint8)
  for start in range(0, len(rows), 1024):
    for i, image in enumerate(images[rows[start : start + 1024]]):
      out[start + i] = head_crop(
        image[..., 0] if image.shape[-1] == 1 else image
      )
  return out


def describe(crops: np.ndarray, blur_px: float = BLUR_PX) -> Descriptors:
  """Normalises head crops (n, 32, 32) uint8, or pictures of another side."""
  full = np.zeros((len(crops), crops.shape[1] * crops.shape[2]), np.float32)
  detail = np.zeros_like(full)
  for i, crop in enumerate(crops.astype(np.float32)):
    if crop.std() < FLAT:
      continue
    full[i] = _unit(crop)
    detail[i] = _unit(crop - cv2.GaussianBlur(crop, (0, 0), blur_px))
  return Descriptors(full, detail)


def agree(
  full: np.ndarray, detail: np.ndarray, thresholds: Thresholds
) -> np.ndarray:
  """Which pairs (m,) count as one picture, by their correlations (m,)."""
  both = (full >= thresholds.full) & (detail >= thresholds.detail)
  return both | (detail >= thresholds.detail_alone)


def pairs_within(x: Descriptors, thresholds: Thresholds) -> np.ndarray:
  """Near-duplicate pairs i < j, (m, 2) int64, in order."""
  found = [
    pairs[pairs[:, 0] < pairs[:, 1]]
    for pairs in _search(x, x, thresholds, upper=True)
  ]
  return _sorted(found)


def pairs_between(
  x: Descriptors, y: Descriptors, thresholds: Thresholds
) -> np.ndarray:
  """Near-duplicate pairs (row of x, row of y), (m, 2) int64, in order."""
  return _sorted(list(_search(x, y, thresholds, upper=False)))


def equal_pairs(hashes: np.ndarray, usable: np.ndarray) -> np.ndarray:
  """Links rows of equal hash in a chain: (m, 2) int64.

  usable (n,) bool leaves out pictures of one colour, which are equal to each
  other without showing the same thing.
  """
  rows = np.flatnonzero(usable)
  order = rows[np.argsort(hashes[rows], kind='stable')]
  same = hashes[order[1:]] == hashes[order[:-1]]
  return np.stack([order[:-1][same], order[1:][same]], axis=1)


def _search(
  x: Descriptors, y: Descriptors, thresholds: Thresholds, upper: bool
) -> Iterator[np.ndarray]:
  # Both rules need the detail to agree, so one product finds the candidates.
  least = min(thresholds.detail, thresholds.detail_alone)
  for a in range(0, len(x.detail), _BLOCK):
    for b in range(a if upper else 0, len(y.detail), _BLOCK):
      product = x.detail[a : a + _BLOCK] @ y.detail[b : b + _BLOCK].T
      i, j = np.nonzero(product >= least)
      detail = product[i, j]
      i, j = i + a, j + b
      full = np.einsum('md,md->m', x.full[i], y.full[j])
      keep = agree(full, detail, thresholds)
      yield np.stack([i[keep], j[keep]], axis=1)


def _percentile(grey: np.ndarray, share: float) -> int:
  """The grey level that a share of the pixels does not exceed."""
  below = np.cumsum(cv2.calcHist([grey], [0], None, [256], [0, 256]))
  return int(np.searchsorted(below, share * grey.size))


def _unit(x: np.ndarray) -> np.ndarray:
  x = x.ravel() - x.mean()
  return x / max(float(np.linalg.norm(x)), 1e-6)


def _sorted(found: list[np.ndarray]) -> np.ndarray:
  pairs = np.concatenate([np.zeros((0, 2), np.int64), *found])
  return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]

"""How a slice lies: turned as radiologists look at it, its pixels square.

One orientation for all readers: the patient's right is at the image's left.
Axial slices have the front on top, coronal and sagittal ones the head, and in
sagittal ones the front is at the left. Directions are those of DICOM: x to the
patient's left, y to the back, z to the head.

Dimension letters: h w pixels of a slice.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

# Per axis across which slices are cut: where columns run, where rows run.
_SHOWN = {
  2: ((1, 0, 0), (0, 1, 0)),  # axial
  1: ((1, 0, 0), (0, 0, -1)),  # coronal
  0: ((0, 1, 0), (0, 0, -1)),  # sagittal
}
_SQUARE = 0.01  # relative difference of spacings up to which pixels are square
_LONGEST = 20.0  # ratio of spacings beyond which a header must be wrong


class Geometry(NamedTuple):
  """What turns a stored slice (h, w) upright: transpose, then flips.

  spacing: distance of the stored rows, of the stored columns; None: unknown.
  """

  transposed: bool = False
  flip_rows: bool = False
  flip_columns: bool = False
  spacing: tuple[float, float] | None = None


def of_cosines(
  cosines: Sequence[float], spacing: tuple[float, float] | None
) -> Geometry:
  """From the directions in which a row and a column run (6 numbers).

  The nearest axes decide for an oblique slice. Raises ValueError for numbers
  that are no two directions.
  """
  along = np.asarray(cosines, np.float64)
  if along.shape != (6,) or not np.isfinite(along).all():
    raise ValueError(f'ImageOrientationPatient={list(cosines)}; six numbers')
  row, column = along[:3], along[3:]
  normal = np.cross(row, column)
  if np.linalg.norm(normal) < 0.5:
    raise ValueError(
      f'ImageOrientationPatient={list(cosines)} are not two directions'
    )
  right, down = np.array(_SHOWN[int(np.argmax(abs(normal)))], np.float64)
  straight = abs(row @ right) + abs(column @ down)
  crossed = abs(row @ down) + abs(column @ right)
  transposed = bool(crossed > straight)
  if transposed:
    row, column = column, row
  return Geometry(
    transposed, bool(column @ down < 0), bool(row @ right < 0), spacing
  )


def known(spacing: Any) -> tuple[float, float] | None:
  """Two distances as a header gives them; None for what cannot be one."""
  try:
    rows, columns = (float(x) for x in spacing)
  except (TypeError, ValueError):
    return None
  good = np.isfinite([rows, columns]).all() and min(rows, columns) > 0
  return (rows, columns) if good else None


def upright(
  pixels: np.ndarray, laid: Geometry
) -> tuple[np.ndarray, tuple[str, ...]]:
  """A slice (h, w) or (h, w, 3) uint8 turned and made square, and the rules.

  Raises ValueError for spacings too far apart to be true.
  """
  spacing, done = laid.spacing, []
  if laid.transposed:
    pixels = pixels.swapaxes(0, 1)
    spacing = spacing and spacing[::-1]
  if laid.flip_rows:
    pixels = pixels[::-1]
  if laid.flip_columns:
    pixels = pixels[:, ::-1]
  if laid[:3] != Geometry()[:3]:
    done.append('reoriented')
  if spacing and max(spacing) > (1 + _SQUARE) * min(spacing):
    pixels = _square(pixels, spacing)
    done.append('resampled_spacing')
  return np.ascontiguousarray(pixels), tuple(done)


def _square(pixels: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
  """Enlarges along the coarser spacing, so that nothing is lost."""
  fine = min(spacing)
  if max(spacing) > _LONGEST * fine:
    raise ValueError(
      f'spacings {spacing[0]:g} and {spacing[1]:g} of rows and columns differ '
      f'by more than {_LONGEST:g} times'
    )
  h, w = pixels.shape[:2]
  size = (max(1, round(w * spacing[1] / fine)), round(h * spacing[0] / fine))
  return cv2.resize(
    np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_LINEAR
  )

"""Pictures as users hold them, made what an encoder takes.

By the rules of data/decode.py, so that an array is to an encoder what the file
with the same pixels is to configs/predict.py.

Letters: n pictures, h w pixels of one, s the side of a square, c channels.
"""

from collections.abc import Sequence
import os
from typing import Any

import numpy as np

from micdiffrep_jax.bundle import inputs
from micdiffrep_jax.bundle.classifier import Meta
from micdiffrep_jax.data import decode

# An array (n, h, w) or (n, h, w, c), or a sequence of arrays (h, w) or
# (h, w, c) of any sizes, or a sequence of paths.
Pictures = np.ndarray | Sequence[Any]


def to_batch(images: Pictures, meta: Meta) -> np.ndarray:
  """Squares (n, s, s, c) uint8, as `meta` says that its encoder takes them.

  Paths are read as configs/predict.py reads them, one picture to a file.
  Raises ValueError for what holds no picture, and says which.
  """
  if isinstance(images, str | os.PathLike):
    raise ValueError(f'{images!r} is one path: give a list, [{images!r}].')
  if not isinstance(images, Sequence) and not hasattr(images, '__array__'):
    raise ValueError(
      f'Pictures as {type(images).__name__}: give an array (n, height, width) '
      'or (n, height, width, channels), or a list of pictures or of paths.'
    )
  if isinstance(images, np.ma.MaskedArray):
    raise ValueError(
      'Pictures with a mask, which would be read as if there were none: give '
      'images.filled(0).'
    )
  if isinstance(images, np.ndarray) and images.ndim not in (1, 3, 4):
    raise ValueError(
      f'Pictures of shape {images.shape}: give (n, height, width) or (n, '
      'height, width, channels), or a list of pictures. Reshape your data; one '
      'picture is images[None].'
    )
  if not len(images):
    raise ValueError('No pictures given: 0 sample(s), at least 1 is required.')
  if all(isinstance(x, str | os.PathLike) for x in images):
    return _read_files([os.fspath(x) for x in images], meta)
  squares = []
  for number, image in enumerate(images):
    try:
      pixels = decode.read_array(image).pixels
    except ValueError as e:
      raise ValueError(f'Picture {number}: {e}.') from None
    squares.append(decode.to_square(pixels, meta.size_px, meta.channels))
  return np.stack(squares)


def _read_files(paths: Sequence[str], meta: Meta) -> np.ndarray:
  """The pictures of files (n, s, s, c); ValueError unless each holds one."""
  with inputs.open_inputs(paths, meta, 'images') as source:
    items = [x for chunk in inputs.read(source, meta) for x in chunk]
  for item in items:
    if item.image is None:
      raise ValueError(f'{item.name}: {item.reason}.')
    if item.part:
      raise ValueError(
        f'{item.file} holds several pictures: give one to a file, or use '
        'configs/predict.py.'
      )
  return np.stack([item.image for item in items])  # type: ignore[misc]

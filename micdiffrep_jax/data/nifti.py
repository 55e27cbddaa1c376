"""NIfTI files as pictures; nibabel is optional.

Dimension letters: h w pixels of a slice, k slices of a volume.
"""

import gzip
import logging
import math
import os
from typing import Any
import zlib

import numpy as np

from micdiffrep_jax.data import decode, geometry, volumes

SUFFIXES = ('.nii', '.nii.gz')
_GZIP = b'\x1f\x8b'
_CHUNK_BYTES = 2**20
# From this ratio of voxel sizes, slices are cut across the longest one.
_THICK = 2.0
_COLOURS = ('R', 'G', 'B')
# Per axis (x right, y front, z up) across which slices are cut: the order that
# makes rows and columns of the other two. Both are then reversed.
_PLANES = {2: (2, 1, 0), 1: (1, 2, 0), 0: (0, 2, 1)}
_CUTS = {2: (), 1: ('cut_coronal',), 0: ('cut_sagittal',)}


def refusal(path: str) -> str:
  """Why a file cannot become pictures, from its header alone; '' if it can."""
  try:
    _check(_load(path), path)
  except Exception as e:  # a damaged header may say anything
    return str(e) or type(e).__name__
  return ''


def read(path: str, options: volumes.Options) -> list[decode.Picture]:
  """Slices of one volume in the orientation of geometry.py.

  They are axial, but cut across the longest side of the voxels where one is
  clearly longest, for slices of thick ones would be smeared. Values that are
  nan are background. Raises ValueError for a file that is damaged, holds more
  than one volume, nothing but nan, or infinite values.
  """
  from nibabel import affines, orientations

  image = _load(path)
  axes = _check(image, path)
  try:
    values = np.asarray(image.dataobj)  # scaled by its header
  except Exception as e:  # the readers below raise all kinds
    raise ValueError(f'damaged: {e}') from None
  values = values.reshape((*values.shape, 1, 1)[:3])
  values = orientations.apply_orientation(values, axes)
  sizes = np.empty(3)
  sizes[axes[:, 0].astype(int)] = affines.voxel_sizes(image.affine)
  across = _across(values.shape, sizes)
  order = _PLANES[across]
  frames = values.transpose(order)[:, ::-1, ::-1]
  pixels, rules = _grey_levels(frames, options)
  spacing = geometry.known(sizes[list(order[1:])])
  laid = [geometry.Geometry(spacing=spacing)] * len(pixels)
  codes = [int(image.header[f'{form}_code']) for form in ('sform', 'qform')]
  unknown = () if any(codes) else ('no_orientation',)
  rules = ('nifti', *unknown, *_CUTS[across], *rules)
  return volumes.pictures(pixels, laid, rules, '', options)


def _load(path: str) -> Any:
  """The image, its pixels not read yet, whatever its name says."""
  import nibabel

  # It says of each file what it mends in the header.
  nibabel.imageglobals.logger.setLevel(logging.CRITICAL)
  with open(path, 'rb') as f:
    start = f.read(2)
  try:
    name = path.lower()
    if name.endswith('.nii.gz' if start == _GZIP else '.nii'):
      return nibabel.load(path)
    with open(path, 'rb') as f:
      data = f.read()
    data = gzip.decompress(data) if start == _GZIP else data
    second = 540 in (
      int.from_bytes(data[:4], 'little'),
      int.from_bytes(data[:4], 'big'),
    )
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    return kind.from_bytes(data)
  except Exception as e:  # nibabel and zlib raise all kinds
    raise ValueError(f'damaged or no NIfTI: {e}') from None


def _check(image: Any, path: str) -> np.ndarray:
  """Orientations (3, 2) of the axes, as nibabel gives them.

  Raises ValueError for a header that promises no single volume, or more than
  the file holds.
  """
  from nibabel import orientations

  shape = image.shape
  if not shape or 0 in shape:
    raise ValueError(f'a volume of shape {shape}: it is empty')
  if max(shape[3:], default=1) > 1:
    raise ValueError(
      f'{math.prod(shape[3:])} volumes in one file (shape {shape}); split it '
      'into 3-D volumes first, as fslsplit does'
    )
  dtype, start = image.get_data_dtype(), image.dataobj.offset
  if dtype.kind == 'c':
    raise ValueError('complex values (datatype); save their magnitude')
  if start < int(image.header['sizeof_hdr']):
    raise ValueError(f'vox_offset={start}: the values begin in the header')
  _check_whole(path, start + math.prod(shape) * dtype.itemsize)
  try:
    axes = orientations.io_orientation(image.affine)
  except np.linalg.LinAlgError:
    axes = np.full((3, 2), np.nan)
  if not np.isfinite(axes).all():
    raise ValueError('sform and qform name no directions of the axes')
  return axes


def _check_whole(path: str, promised: int) -> None:
  """Raises ValueError for a file with fewer bytes than its header promises.

  A packed file ends with its size, which is believed where it is the promised
  one; else it is unpacked, as one of several parts must be.
  """
  size = os.path.getsize(path)
  with open(path, 'rb') as f:
    if f.read(2) == _GZIP:
      f.seek(-4, os.SEEK_END)
      if int.from_bytes(f.read(), 'little') == promised % 2**32:
        return
      size = _unpacked_bytes(path)
  if size < promised:
    raise ValueError(f'cut short: not all of its {promised:,} bytes are there')


def _unpacked_bytes(path: str) -> int:
  """How many bytes of a packed file can be unpacked, in whole chunks."""
  size = 0
  try:
    with gzip.open(path) as f:
      while chunk := f.read(_CHUNK_BYTES):
        size += len(chunk)
  except (EOFError, OSError, zlib.error):  # what is damaged counts no more
    pass
  return size


def _across(shape: tuple[int, ...], sizes: np.ndarray) -> int:
  """The axis across which slices are cut; shape and sizes of x, y, z."""
  flat = [axis for axis in range(3) if shape[axis] == 1]
  if len(flat) == 1:
    return flat[0]  # one slice, however it lies
  if not np.isfinite(sizes).all() or sizes.min() <= 0:
    return 2
  longest = int(np.argmax(sizes))
  return longest if sizes[longest] >= _THICK * np.sort(sizes)[1] else 2


def _grey_levels(
  frames: np.ndarray, options: volumes.Options
) -> tuple[np.ndarray, tuple[str, ...]]:
  """uint8 (k, h, w), or (k, h, w, 3) for colour, and the rules used."""
  if frames.dtype.names:
    if frames.dtype.names[:3] != _COLOURS:
      raise ValueError(f'values of the fields {frames.dtype.names} (datatype)')
    return np.stack([frames[c] for c in _COLOURS], -1), ('as_stored',)
  values = frames.astype(np.float32)
  if np.isinf(values).any():
    raise ValueError('pixels are not finite: some are infinite')
  empty = np.isnan(values)
  if empty.all():
    raise ValueError('pixels are not finite: all are nan')
  rules = ('nan_background',) if empty.any() else ()
  hounsfield = options.intensity == 'ct' or (
    options.intensity == 'auto' and volumes.looks_like_hounsfield(values)
  )
  if hounsfield:
    made = volumes.by_window(values, options.ct_window, empty)
    return made, (*rules, 'ct_window')
  return volumes.by_percentiles(values, empty), (*rules, 'percentiles')

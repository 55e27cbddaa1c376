"""DICOM and NIfTI files as pictures; pydicom and nibabel are optional.

Dimension letters: h w pixels of a slice, k slices of a volume.
"""

from collections.abc import Sequence
import contextlib
import functools
import hashlib
import importlib.util
import os
import secrets
import tempfile
from typing import Any, NamedTuple

import numpy as np

from micdiffrep_jax.data import decode, store

DICOM_SUFFIXES = ('.dcm',)
NIFTI_SUFFIXES = ('.nii', '.nii.gz')
_PERCENTILES = (0.5, 99.5)  # of what is not zero
_FOREGROUND = 0.5  # a slice's share of the largest one's tissue


class Options(NamedTuple):
  """How volumes become pictures; fields of config.data."""

  slices: str = 'foreground'  # foreground | all | central-N
  ct_window: Sequence[float] = (40.0, 80.0)  # centre and width, HU


def check_options(options: Options) -> None:
  """Raises ValueError for a choice of slices or a window that is none."""
  kind, _, number = options.slices.partition('-')
  central = kind == 'central' and number.isdigit() and int(number) > 0
  if options.slices not in ('foreground', 'all') and not central:
    raise ValueError(
      f'config.data.slices={options.slices!r}; foreground, all or central-N.'
    )
  if len(options.ct_window) != 2 or options.ct_window[1] <= 0:
    raise ValueError(
      f'config.data.ct_window={tuple(options.ct_window)}; (centre, width > 0).'
    )


def check_installed(module: str) -> None:
  """Raises ValueError that says what to install."""
  if importlib.util.find_spec(module) is None:
    raise ValueError(
      f'These files need {module}, which is not installed: pip install {module}'
    )


def is_dicom(path: str) -> bool:
  """Whether a file without an ending has DICOM's mark."""
  try:
    with open(path, 'rb') as f:
      return f.read(132)[128:] == b'DICM'
  except OSError:
    return False


def read_dicom(path: str, options: Options) -> list[decode.Picture]:
  """Slices of one DICOM file; the patient's salted hash is their group.

  Stored values are rescaled to units first; then CT is cut to a fixed window,
  anything else to its own percentiles; MONOCHROME1 is inverted last. Raises
  ValueError for a file without pixels.
  """
  import pydicom
  from pydicom.pixels import apply_modality_lut

  try:
    record = pydicom.dcmread(path)
    pixels = record.pixel_array
  except Exception as e:  # pydicom's plugins raise all kinds
    raise ValueError(f'damaged or no pixels: {e}') from None
  group = _patient(record)
  rules = ['dicom']
  if record.get('BurnedInAnnotation') == 'YES':
    rules.append('burned_in_annotation')
  kind = record.get('PhotometricInterpretation', 'MONOCHROME2')
  if record.get('SamplesPerPixel', 1) == 3:
    if kind.startswith('YBR'):
      from pydicom.pixels import convert_color_space

      pixels = convert_color_space(pixels, kind, 'RGB')
    frames = pixels if pixels.ndim == 4 else pixels[None]
    return _pictures(decode.scale_range(frames), rules, group, options)
  values = apply_modality_lut(pixels, record).astype(np.float32)
  frames = values if values.ndim == 3 else values[None]
  if record.get('Modality') == 'CT':
    centre, width = options.ct_window
    frames = _to_bytes(frames, centre - width / 2, centre + width / 2)
  else:
    frames = _by_percentiles(frames)
  if kind == 'MONOCHROME1':
    frames, rules = 255 - frames, [*rules, 'inverted']
  return _pictures(frames, rules, group, options)


def read_nifti(path: str, options: Options) -> list[decode.Picture]:
  """Axial slices of one volume, turned so that the front is up.

  Columns run from the patient's left to right, as RAS does. Raises
  ValueError for a file that is damaged or holds more than one volume.
  """
  import nibabel

  try:
    image = nibabel.as_closest_canonical(nibabel.load(path))
    values = np.asarray(image.dataobj, np.float32)  # scaled by its header
  except Exception as e:
    raise ValueError(f'damaged: {e}') from None
  if values.ndim == 4 and values.shape[3] == 1:
    values = values[..., 0]
  if values.ndim != 3:
    raise ValueError(
      f'a volume of shape {values.shape}; split it into 3-D volumes first'
    )
  # (x right, y front, z up) -> k slices of rows from front to back.
  frames = _by_percentiles(values.transpose(2, 1, 0)[:, ::-1])
  return _pictures(frames, ['nifti'], '', options)


def _pictures(
  frames: np.ndarray, rules: list[str], group: str, options: Options
) -> list[decode.Picture]:
  chosen = range(1) if len(frames) == 1 else _choose(frames, options.slices)
  return [
    decode.Picture(
      np.ascontiguousarray(frames[k]),
      tuple(rules),
      '' if len(frames) == 1 else f'{k:04d}',
      group,
    )
    for k in chosen
  ]


def _choose(frames: np.ndarray, slices: str) -> Sequence[int]:
  """Numbers of the slices to keep."""
  if slices == 'all':
    return range(len(frames))
  if slices.startswith('central-'):
    n = min(len(frames), int(slices.partition('-')[2]))
    start = (len(frames) - n) // 2
    return range(start, start + n)
  tissue = (frames > 25).reshape(len(frames), -1).mean(1)  # a tenth of white
  return np.flatnonzero(tissue >= _FOREGROUND * tissue.max()).tolist()


def _by_percentiles(values: np.ndarray) -> np.ndarray:
  if not np.isfinite(values).all():
    raise ValueError('pixels are not finite')
  seen = values[values != 0]
  if not seen.size:
    return np.zeros(values.shape, np.uint8)
  low, high = np.percentile(seen, _PERCENTILES)
  return _to_bytes(values, low, high)


def _to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
  scaled = (values - low) * (255 / max(high - low, 1e-6))
  return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _patient(record: Any) -> str:
  """A name for the patient that cannot be turned back; '' for none."""
  patient = str(record.get('PatientID') or '')
  if not patient:
    return ''
  salt = _salt(store.user_cache())
  return hashlib.sha256(salt + patient.encode()).hexdigest()[:16]


@functools.cache
def _salt(root: str) -> bytes:
  """A secret of this user: groups stay the same, ids cannot be guessed."""
  path = os.path.join(root, 'salt')
  if not os.path.exists(path):
    os.makedirs(root, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=root)  # readable by its owner only
    with os.fdopen(handle, 'wb') as f:
      f.write(secrets.token_bytes(16))
    with contextlib.suppress(FileExistsError):  # whoever comes first
      os.link(partial, path)
    os.remove(partial)
  with open(path, 'rb') as f:
    return f.read()

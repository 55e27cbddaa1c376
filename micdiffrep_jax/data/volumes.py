"""What DICOM and NIfTI share: options, slices, and grey levels of eight bits.

Dimension letters: h w pixels of a slice, k slices of a volume.
"""

from collections.abc import Mapping, Sequence
import importlib.util
from typing import NamedTuple

import numpy as np

from micdiffrep_jax.data import decode, geometry
from micdiffrep_jax.run import log

PLANES = ('coronal', 'sagittal')  # other than axial
INTENSITIES = ('auto', 'ct', 'percentiles')
_PERCENTILES = (0.5, 99.5)  # of what is not zero
_FOREGROUND = 0.5  # a slice's share of the largest one's tissue
_AIR = -900  # HU: what a scan of a body in air reaches
_AIR_SPREAD = 150  # HU around the median of the air
_AIR_SHARE = 0.01  # of the volume, at least


class Options(NamedTuple):
  """How volumes become pictures; fields of config.data."""

  slices: str = 'foreground'  # foreground | all | central-N
  ct_window: Sequence[float] = (40.0, 80.0)  # centre and width, HU
  intensity: str = 'auto'  # auto | ct | percentiles


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
  if options.intensity not in INTENSITIES:
    raise ValueError(
      f'config.data.intensity={options.intensity!r}; one of {INTENSITIES}.'
    )


def check_installed(module: str) -> None:
  """Raises ValueError that says what to install."""
  if importlib.util.find_spec(module) is None:
    raise ValueError(
      f'These files need {module}, which is not installed: pip install {module}'
    )


def report(options: Options, used: Mapping[str, int]) -> None:
  """Logs on how many files each option worked; `used` counts files by rule.

  Warns where an option was changed from its default and worked on none.
  """
  forced = {'ct': 'ct_window', 'percentiles': 'percentiles'}
  rules = {
    'slices': 'slice_of_volume',
    'ct_window': 'ct_window',
    'intensity': forced.get(options.intensity, ''),
  }
  for field, rule in rules.items():
    value = getattr(options, field)
    value = value if isinstance(value, str) else tuple(value)
    if used.get(rule, 0):
      log.get_logger().info(
        'config.data.%s=%r used on %d files.', field, value, used[rule]
      )
    elif value != Options._field_defaults[field]:
      log.get_logger().warning(
        'config.data.%s=%r used on 0 files: no file of these sources is of '
        'the kind that it is for.',
        field,
        value,
      )
  if used.get('first_frame', 0):
    log.get_logger().warning(
      '%d files hold several pictures (pages or frames): the first of each is '
      'read. Save the others as files of their own.',
      used['first_frame'],
    )
  if used.get('no_orientation', 0):
    log.get_logger().warning(
      '%d NIfTI files name no orientation (sform_code and qform_code are 0): '
      'which side is left is a guess.',
      used['no_orientation'],
    )
  cut = {plane: used.get(f'cut_{plane}', 0) for plane in PLANES}
  if sum(cut.values()) not in (0, used.get('nifti', 0)) or all(cut.values()):
    log.get_logger().warning(
      'NIfTI files are cut in different planes, each across its thick voxels: '
      '%s, and the others axial. A class that prevails in one plane can be '
      'told by it.',
      ', '.join(f'{n} {plane}' for plane, n in cut.items() if n),
    )


def pictures(
  frames: np.ndarray,
  laid: Sequence[geometry.Geometry],
  rules: Sequence[str],
  group: str,
  options: Options,
) -> list[decode.Picture]:
  """The chosen slices of a file, upright and with square pixels.

  frames (k, h, w) or (k, h, w, 3) uint8; laid says of each how it lies.
  """
  several = len(frames) > 1
  chosen = _choose(frames, options.slices) if several else range(1)
  found = []
  for k in chosen:
    pixels, done = geometry.upright(frames[k], laid[k])
    own = (*rules, *(['slice_of_volume'] if several else []), *done)
    found.append(
      decode.Picture(pixels, own, f'{k:04d}' if several else '', group)
    )
  return found


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


def by_window(
  values: np.ndarray, window: Sequence[float], empty: np.ndarray | None = None
) -> np.ndarray:
  """Cuts values to centre and width; uint8, 0 where `empty`."""
  centre, width = window
  return to_bytes(values, centre - width / 2, centre + width / 2, empty)


def by_percentiles(
  values: np.ndarray, empty: np.ndarray | None = None
) -> np.ndarray:
  """Cuts values to percentiles of what is neither zero nor `empty`.

  Raises ValueError for values that are infinite, or nan where not empty.
  """
  there = values != 0 if empty is None else (values != 0) & ~empty
  seen = values[there]
  if not np.isfinite(seen).all():
    raise ValueError('pixels are not finite')
  if not seen.size:
    return np.zeros(values.shape, np.uint8)
  low, high = np.percentile(seen, _PERCENTILES)
  if low == high:  # two levels: what is zero must stay apart
    low, high = min(low, 0), max(high, 0)
  return to_bytes(values, low, high, empty)


def to_bytes(
  values: np.ndarray, low: float, high: float, empty: np.ndarray | None = None
) -> np.ndarray:
  """Maps [low, high] to [0, 255] uint8 and what is `empty` to 0."""
  if empty is not None:
    values = np.where(empty, low, values)
  scaled = (values - low) * (255 / max(high - low, 1e-6))
  return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def looks_like_hounsfield(values: np.ndarray) -> bool:
  """Whether values (any shape) are a CT's: much of them near-constant air.

  Values that merely reach that low, as phase images do, are spread out there.
  """
  air = values[values <= _AIR]
  if air.size < _AIR_SHARE * values.size or not air.size:
    return False
  return bool((abs(air - np.median(air)) <= _AIR_SPREAD).mean() >= 0.5)

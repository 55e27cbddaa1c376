"""Cartoon brain MRI, drawn from a seed: the data set that is always there.

Each patient has an anatomy of its own (head, ventricles, folds, brightness)
and one of four classes, named as in brain tumour sets: normal, glioma (ragged,
inside a hemisphere, in a swelling), meningioma (round, at the border),
pituitary (small, low on the midline). One patient in twenty comes twice under
two names, as real collections have it. Nothing here is meant to be anatomy.

Coordinates x (right) and y (down) lie in [-1, 1]; g is the side of the grid.
"""

import functools
import hashlib
import os
from typing import NamedTuple

import numpy as np

from micdiffrep_jax.data import decode, store
from micdiffrep_jax.data.sources.base import DEFAULT, Request, Source
from micdiffrep_jax.run.checks import lookup

CLASSES = ('glioma', 'meningioma', 'normal', 'pituitary')
VERSION = 2  # raise it when a seed draws other pictures or columns change
_GRID_PX = 96
_LESION = 0.1  # of the range of grey levels: less is its swelling
_TWICE = 20  # one patient in so many comes twice


class Spec(NamedTuple):
  """Which phantom: patients are shared out evenly over the classes."""

  size_px: int = 32  # of the prepared images; the drawing is larger
  patients: int = 240
  slices: int = 6  # per patient
  seed: int = 0


def parse(arguments: str) -> Spec:
  """'size_px=32,patients=80' -> Spec; raises ValueError for other keys."""
  values = {}
  for pair in filter(None, arguments.split(',')):
    key, _, value = pair.partition('=')
    lookup(Spec._field_defaults, key.strip(), 'field of a phantom')
    try:
      values[key.strip()] = int(value)
    except ValueError:
      raise ValueError(
        f'phantom: {pair!r} needs a whole number, as in size_px=32.'
      ) from None
  spec = Spec(**values)
  least = 5 * len(CLASSES)
  if spec.patients < least or spec.slices < 1 or spec.seed < 0:
    raise ValueError(
      f'{spec} cannot be drawn: patients >= {least}, slices >= 1, seed >= 0.'
    )
  return spec


def mark(spec: Spec) -> str:
  """A name for folders: all fields and the version of the drawing."""
  fields = ','.join(f'{k}={v}' for k, v in spec._asdict().items())
  return f'{fields},v{VERSION}'


def arguments_of(path: str) -> str | None:
  """What follows 'phantom:' in a config.data.path; None where it is a folder.

  An existing folder called 'phantom' is a folder.
  """
  kind, _, arguments = path.partition(':')
  return arguments if kind == 'phantom' and not os.path.exists(path) else None


def folder(arguments: str) -> str:
  """Where a phantom lies when it is prepared; raises as `parse` does."""
  return os.path.join(store.user_cache(), f'phantom-{mark(parse(arguments))}')


def open_source(arguments: str, request: Request = DEFAULT) -> Source:
  """The phantom as a source of files that are drawn when they are read."""
  del request
  spec = parse(arguments)
  files, labels, groups = [], [], []
  for patient in range(spec.patients + spec.patients // _TWICE):
    label = CLASSES[_original(spec, patient) % len(CLASSES)]
    for k in range(spec.slices):
      files.append(f'{label}/patient_{patient:04d}_slice_{k:02d}')
      labels.append(label)
      groups.append(f'patient_{patient:04d}')
  return Source(
    origin='phantom',
    files=files,
    labels=labels,
    groups=groups,
    junk={},
    stamp=hashlib.sha256(mark(spec).encode()).hexdigest(),
    read=functools.partial(_read, spec),
  )


def _original(spec: Spec, patient: int) -> int:
  """The patient whom a name shows; the last names repeat earlier ones."""
  extra = patient - spec.patients
  return patient if extra < 0 else extra * _TWICE + extra % len(CLASSES)


def _read(spec: Spec, file: str, channels: int) -> list[decode.Picture]:
  del channels  # drawn in grey; preparation repeats it
  _, patient, _, k = file.rpartition('/')[2].split('_')
  return [decode.Picture(draw(spec, int(patient), int(k)))]


def draw(spec: Spec, patient: int, k: int) -> np.ndarray:
  """Slice k of a patient, (g, g) uint8; the same for the same seed."""
  original = _original(spec, patient)
  anatomy = np.random.default_rng([spec.seed, original])
  # Noise and lighting differ between slices, not between two names.
  scan = np.random.default_rng([spec.seed, original, k])
  depth = (k + 0.5) / spec.slices - 0.5  # of the slice, in [-0.5, 0.5]
  picture = _lit(
    _head(anatomy, depth, CLASSES[original % len(CLASSES)]), anatomy, scan
  )
  if original != patient:  # the second name was saved a little brighter
    picture = 1.08 * picture + 0.01
  return np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)


def lesion(spec: Spec, patient: int, k: int) -> np.ndarray:
  """Where the lesion of a slice is, (g, g) bool; nowhere in a normal one.

  What is drawn otherwise than in the same head without it.
  """
  original = _original(spec, patient)
  depth = (k + 0.5) / spec.slices - 0.5
  sick, well = (
    _head(np.random.default_rng([spec.seed, original]), depth, label)
    for label in (CLASSES[original % len(CLASSES)], 'normal')
  )
  return np.abs(sick - well) > _LESION


def _head(anatomy: np.random.Generator, depth: float, label: str) -> np.ndarray:
  """Skull, brain, ventricles and lesion, (g, g) in about [0, 1]."""
  u = anatomy.uniform
  size = 1 - 0.35 * depth**2
  x, y = _turned(u(-0.05, 0.05), u(-0.015, 0.015), u(-0.015, 0.015))
  a, b = size * u(0.72, 0.75), size * u(0.87, 0.9)
  skull, bone = u(0.65, 0.75), u(0.055, 0.075)
  tissue, fold = u(0.38, 0.44), u(0.02, 0.05)
  radius = np.hypot(x / a, y / b)
  brain = _inside(radius, 1 - bone - 0.04)
  picture = skull * (_inside(radius, 1.0) - _inside(radius, 1 - bone))
  folds = _smooth(anatomy, 14) + depth * _smooth(anatomy, 14)
  ribbon = np.cos(u(20, 28) * radius + 2.5 * folds)  # grey and white matter
  texture = fold * (ribbon * _inside(0.55 - radius, 0.0, 0.1) + folds)
  picture += brain * (tissue + texture)
  picture -= brain * 0.16 * np.exp(-((x / 0.02) ** 2)) * (radius > 0.35)
  for side in (-1, 1):  # ventricles: dark, bent outwards
    vx, vy = x - side * (u(0.08, 0.13) + 0.35 * (y + 0.02) ** 2), y + 0.02
    v = np.hypot(vx / u(0.04, 0.09), vy / (u(0.18, 0.3) * (1 + depth)))
    picture -= tissue * 0.75 * _inside(v, 1.0, 0.15)
  for _ in range(3):  # vessels: bright dots that are no lesion
    angle, where, r = u(0, 2 * np.pi), u(0.1, 0.85), u(0.02, 0.045)
    dot = np.hypot(x - where * a * np.cos(angle), y - where * b * np.sin(angle))
    picture += u(0.05, 0.3) * brain * _inside(dot / r, 1.0, 0.4)
  return _with_lesion(picture, brain, x, y, (a, b), anatomy, depth, label)


def _with_lesion(
  picture: np.ndarray,
  brain: np.ndarray,
  x: np.ndarray,
  y: np.ndarray,
  axes: tuple[float, float],
  anatomy: np.random.Generator,
  depth: float,
  label: str,
) -> np.ndarray:
  u, (a, b) = anatomy.uniform, axes
  # Over tissue or, as in some sequences, under it: no sum of pixels tells.
  glow = u(0.4, 0.6) * anatomy.choice((-1, 1), p=(0.25, 0.75))
  slim = 1 - 1.2 * depth**2  # a lesion is smaller in outer slices
  if label == 'glioma':
    side = anatomy.choice((-1, 1))
    lx, ly = x - side * u(0.26, 0.42), y - u(-0.4, 0.3)
    angle, r = np.arctan2(ly, lx), slim * u(0.16, 0.25)
    ragged = 1 + sum(
      u(0.05, 0.22) * np.cos(n * angle + u(0, 6.3)) for n in (2, 3, 5)
    )
    distance = np.hypot(lx, ly) / (r * ragged)
    picture = picture + 0.35 * glow * brain * np.exp(-((distance / 1.7) ** 2))
    picture += glow * brain * _inside(distance, 1.0, 0.3)
    return picture - u(0, 1.2) * glow * _inside(distance, 0.5, 0.2)
  if label == 'meningioma':
    angle = u(-np.pi, np.pi)
    r = slim * u(0.13, 0.22)
    lx = x - (0.86 * a - 0.7 * r) * np.cos(angle)
    ly = y - (0.86 * b - 0.7 * r) * np.sin(angle)
    lesion = _inside(np.hypot(lx, ly) / r, 1.0, 0.12)
    return picture + 1.1 * glow * lesion * np.maximum(brain, 0.4)
  if label == 'pituitary':
    r = slim * u(0.09, 0.14)
    lx, ly = x - u(-0.03, 0.03), y - u(0.34, 0.46)
    lesion = _inside(np.hypot(lx, ly / u(0.8, 1.1)) / r, 1.0, 0.15)
    return picture + 1.1 * glow * brain * lesion
  return picture


def _lit(
  picture: np.ndarray, anatomy: np.random.Generator, scan: np.random.Generator
) -> np.ndarray:
  """Uneven coil sensitivity, contrast, and noise that is never negative."""
  bias = 1 + 0.08 * np.clip(_smooth(anatomy, 3) + 0.3 * _smooth(scan, 3), -2, 2)
  picture = np.clip(picture, 0, None) * bias * anatomy.uniform(0.93, 1.05)
  noise = anatomy.uniform(0.06, 0.12)
  real, imaginary = noise * scan.standard_normal(
    (2, *picture.shape), np.float32
  )
  return np.hypot(picture + real, imaginary)


def _inside(radius: np.ndarray, limit: float, soft: float = 0.03) -> np.ndarray:
  """1 inside a limit, 0 outside, with a border of width `soft` between."""
  return np.clip(0.5 - (radius - limit) / soft, 0, 1)


@functools.cache
def _grid() -> tuple[np.ndarray, np.ndarray]:
  line = np.linspace(-1, 1, _GRID_PX, dtype=np.float32)
  x, y = np.meshgrid(line, line)
  return x, y


def _turned(
  angle: float, dx: float, dy: float
) -> tuple[np.ndarray, np.ndarray]:
  x, y = _grid()
  x, y = x - dx, y - dy
  c, s = np.cos(angle), np.sin(angle)
  return c * x + s * y, c * y - s * x


@functools.cache
def _hats(knots: int) -> np.ndarray:
  """Smooth interpolation from `knots` values to the grid, (g, knots)."""
  at = np.linspace(0, knots - 1, _GRID_PX)[:, None] - np.arange(knots)
  weight = np.exp(-((at / 0.7) ** 2))
  return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def _smooth(rng: np.random.Generator, knots: int) -> np.ndarray:
  """A smooth random field (g, g) of about unit deviation."""
  hats = _hats(knots)
  field = hats @ rng.standard_normal((knots, knots), np.float32) @ hats.T
  return field / max(float(field.std()), 1e-6)

"""The floor that anybody would take from a package: ImageNet's weights, frozen.

EfficientNet-Lite0, trained with ImageNet's labels, read as the encoders of a
study are and given their kernel classifier. It needs its package; without it
the row is left out, and the results say so. heads/floors.py has the floors
without learned features.

Letters: n rows, d features.
"""

from collections.abc import Iterable, Mapping, Sequence
import functools
import os
from typing import Any

import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders import convert
from micdiffrep_jax.encoders.encoder import Encoder
from micdiffrep_jax.heads.floors import FLOORS
from micdiffrep_jax.run import devices, log
from micdiffrep_jax.run.checks import one_of

NAME = 'imagenet'
HEAD = 'kernel'
# Where features are read, fixed for every data set: nothing here is searched.
LAYERS = ('block8', 'block10', 'block11')
TIMESTEP = 0
GRID = 4
_INPUT_PX = 128  # what images are resized to; block 8 then has 8 x 8 cells
_BATCH = 64


def check(names: Sequence[str]) -> None:
  """Raises ValueError for a floor that does not exist."""
  for name in names:
    one_of((*FLOORS, NAME), name, 'floor', '--config.floors')


def left_out(names: Sequence[str]) -> dict[str, str]:
  """Floors that cannot be computed here, and how they could."""
  if NAME not in names or convert.find_efficientnet():
    return {}
  return {NAME: f'its weights are not installed: {convert.HOW_TO_ADD}'}


def told(names: Sequence[str]) -> dict[str, dict[str, str]]:
  """What results say of floors that were left out; logs it too."""
  absent = left_out(names)
  for name, why in absent.items():
    log.get_logger().warning('Floor %r is left out: %s.', name, why)
  return {'floors_left_out': absent} if absent else {}


def also_left_out(
  records: Iterable[Mapping[str, Any]],
) -> dict[str, dict[str, str]]:
  """As `told`, of the results of several probes."""
  absent: dict[str, str] = {}
  for record in records:
    absent |= record.get('floors_left_out', {})
  return {'floors_left_out': absent} if absent else {}


@functools.lru_cache(maxsize=1)
def _encoder(size_px: int, channels: int) -> Encoder:
  return convert.from_package(size_px, channels, _INPUT_PX, LAYERS)


def features(ds: data.Dataset, rows: np.ndarray, folder: str) -> np.ndarray:
  """Features (n, d) float16 of rows (n,), read once for a data set.

  folder: the run's own, where they lie unless a pipeline shares them. Raises
  ValueError where the package is not installed.
  """
  devices_here = devices.make_mesh().size
  cache = feature_cache.fill(
    os.path.join(folder, NAME),
    _encoder(ds.info.size_px, ds.info.channels),
    ds,
    rows,
    LAYERS,
    (TIMESTEP,),
    GRID,
    1,  # no noise is drawn: neither draws nor a seed decide anything
    0,
    -(-_BATCH // devices_here) * devices_here,
  )
  return feature_cache.matrix(cache, TIMESTEP, LAYERS, GRID)

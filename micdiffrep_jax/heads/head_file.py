"""A fitted head with all that it needs, as two files without pickle.

head.npz holds the parameters and the statistics of the features; head.json
says which features they are. With the encoder's checkpoint that is a
classifier.
"""

import json
import os
from typing import NamedTuple

import numpy as np

from micdiffrep_jax.heads.base import HeadInfo
from micdiffrep_jax.heads.matrix import Features, layout, pool
from micdiffrep_jax.heads.table import HEADS
from micdiffrep_jax.run import files


class SavedHead(NamedTuple):
  """One head.

  params as its `predict` takes them, with a leading axis of one; shift and
  scale (d,) float32.
  """

  params: dict[str, np.ndarray]
  shift: np.ndarray
  scale: np.ndarray
  info: HeadInfo


def save(workdir: str, head: SavedHead) -> None:
  """Writes head.npz and head.json, each whole or not at all."""
  path = os.path.join(workdir, 'head.npz')
  params = {f'params.{k}': v for k, v in head.params.items()}
  arrays = {'shift': head.shift, 'scale': head.scale, **params}
  files.write_arrays(path, arrays)
  files.write_json(os.path.join(workdir, 'head.json'), head.info)


def load(workdir: str) -> SavedHead:
  """Reads a head; ValueError where the folder holds none."""
  try:
    with open(os.path.join(workdir, 'head.json')) as f:
      info = HeadInfo.from_json(json.load(f))
    with np.load(os.path.join(workdir, 'head.npz'), allow_pickle=False) as z:
      arrays = {name: z[name] for name in z.files}
  except OSError as e:
    raise ValueError(
      f'{workdir!r} holds no trained head (head.npz and head.json, which '
      f'configs/probe.py writes): {e}.'
    ) from e
  params = {
    name.removeprefix('params.'): value
    for name, value in arrays.items()
    if name.startswith('params.')
  }
  return SavedHead(params, arrays['shift'], arrays['scale'], info)


def flatten(info: HeadInfo, extracted: dict[str, np.ndarray]) -> np.ndarray:
  """What a head takes (n, d), of what features.extract gives."""
  deviation = bool(info.deviation)
  parts = [pool(extracted[name], info.grid, deviation) for name in info.layers]
  return np.concatenate(parts, axis=1)


def logits(head: SavedHead, extracted: dict[str, np.ndarray]) -> np.ndarray:
  """Logits (n, k) of what features.extract gives: {layer: (n, g, g, c)}."""
  shapes = [extracted[name].shape for name in head.info.layers]
  maps = layout(shapes, head.info.grid)
  x = flatten(head.info, extracted)
  features = Features(x, head.shift, head.scale, maps)
  return HEADS[head.info.kind].predict(head.params, features)

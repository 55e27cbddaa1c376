"""Arrays and a JSON text in one npz file, without pickle.

Encoder and head of a classifier travel in it, rounded to some precision.
"""

import json
import math
import os
import struct
import tokenize
from typing import Any
import zipfile
import zlib

import jax
import numpy as np

from micdiffrep_jax.run import files, paths
from micdiffrep_jax.run.checks import one_of

VERSION = 1
PRECISIONS = ('float32', 'float16', 'int8')
# What zipfile, zlib, numpy and json stumble over in a damaged file.
DAMAGE = (
  OSError,
  EOFError,
  ValueError,
  LookupError,
  TypeError,
  AttributeError,
  RuntimeError,  # encrypted, or of another method of compression
  SyntaxError,  # in the header of an array
  MemoryError,
  OverflowError,
  struct.error,
  tokenize.TokenError,
  zipfile.BadZipFile,
  zlib.error,
)
_UNPACKED = 2**30  # bytes that a file may hold whatever its own size
_RATIO = 100  # by which arrays are compressed at most
_SMALL = 1024  # arrays below this size are never rounded to int8


def leaf_names(tree: Any) -> list[str]:
  """'down0_0/res/conv1/kernel', one for each leaf in flattening order."""
  return [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(tree)
  ]


def check_precision(precision: str) -> None:
  """Raises ValueError for a precision that arrays are not stored in."""
  one_of(PRECISIONS, precision, 'precision', '--config.precision')


def pack(name: str, x: np.ndarray, precision: str) -> dict[str, np.ndarray]:
  """Rounds a float array; int8 has one scale per output (last axis)."""
  check_precision(precision)
  x = np.asarray(x, np.float32)
  if precision == 'float32':
    return {name: x}
  if precision == 'int8' and x.size >= _SMALL:
    axes = tuple(range(x.ndim - 1))
    scale = np.maximum(np.abs(x).max(axes, keepdims=True), 1e-12) / 127
    return {
      f'{name}.int8': np.rint(x / scale).astype(np.int8),
      f'{name}.scale': scale.astype(np.float32),
    }
  with np.errstate(over='ignore'):
    half = x.astype(np.float16)
  if not np.isfinite(half).all():
    raise ValueError(
      f'{name!r} does not fit into float16. Set --config.precision=float32.'
    )
  return {name: half}


def unpack(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
  """The float32 arrays of what pack made, under names without `prefix`."""
  found = {}
  for name, x in arrays.items():
    if not name.startswith(prefix) or name.endswith('.scale'):
      continue
    if name.endswith('.int8'):
      name = name.removesuffix('.int8')
      x = x.astype(np.float32) * arrays[f'{name}.scale']
    found[name.removeprefix(prefix)] = x.astype(np.float32)
  return found


def write(
  path: str, arrays: dict[str, np.ndarray], text: dict[str, Any]
) -> None:
  """Writes the file, whole or not at all."""
  raw = json.dumps(files.plain({'version': VERSION, **text})).encode()
  arrays = {**arrays, 'json': np.frombuffer(raw, np.uint8)}
  files.write_arrays(path, arrays, compressed=True)


def _check_sizes(path: str) -> None:
  """Raises ValueError before memory is taken for what headers claim."""
  with zipfile.ZipFile(path) as archive:
    members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(_UNPACKED, _RATIO * os.path.getsize(path)):
      raise ValueError(f'its arrays would take {unpacked >> 20} MiB')
    for member in members:
      with archive.open(member) as f:
        version = np.lib.format.read_magic(f)
        read_header = {
          (1, 0): np.lib.format.read_array_header_1_0,
          (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
          raise ValueError(f'an array of version {version}')
        shape, _, dtype = read_header(f)
        if math.prod(shape) * dtype.itemsize > member.file_size:
          raise ValueError(f'{member.filename} is cut short')


def read(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """The arrays and the text; ValueError for a file that is none or damaged."""
  try:
    _check_sizes(paths.expand(path))
    with np.load(paths.expand(path), allow_pickle=False) as z:
      arrays = {name: z[name] for name in z.files}
    text = json.loads(arrays['json'].tobytes())
    version = text['version']
  except FileNotFoundError:
    raise ValueError(
      f'No bundle at {path!r}. configs/bundle.py makes one from a probe; give '
      'it with --config.bundle=FILE.'
    ) from None
  except DAMAGE as e:
    raise ValueError(
      f'{path!r} is no bundle, or is damaged ({e}). Copy it again, or make it '
      'anew with configs/bundle.py.'
    ) from e
  if version != VERSION:
    raise ValueError(
      f'{path!r} has version {version} of the format, this program '
      f'reads {VERSION}. Make the bundle anew with configs/bundle.py.'
    )
  return arrays, text

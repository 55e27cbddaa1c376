"""Arrays and a JSON text in one npz file, or in a folder as hubs have it.

Encoder and head of a classifier travel in it, rounded to some precision and
without pickle. The folder holds model.safetensors, config.json and, for what is
done to pictures before, preprocessor_config.json.
"""

import hashlib
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

Text = dict[str, Any]  # what a file says in JSON of its arrays
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
WEIGHTS = 'model.safetensors'
CONFIG = 'config.json'
PREPROCESSING = 'preprocessor_config.json'
_OF_PICTURES = ('size_px', 'channels', 'preparation')  # of text['meta']


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


def trim(x: np.ndarray) -> np.ndarray:
  """float32 to 2**-17 of each value: a quarter smaller once compressed."""
  bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
  return ((bits + np.uint32(0x80)) & np.uint32(0xFFFFFF00)).view(np.float32)


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


def write(path: str, arrays: dict[str, np.ndarray], text: Text) -> None:
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


def is_folder(path: str) -> bool:
  """Whether a path is of a folder that write_folder made, or a part of one."""
  folder = paths.expand(path)
  return any(
    os.path.isfile(os.path.join(folder, name))
    for name in (WEIGHTS, PREPROCESSING)
  )


def weights_file(path: str) -> str:
  """The file that holds the weights: the archive itself, or in its folder."""
  name = paths.expand(path)
  return os.path.join(name, WEIGHTS) if os.path.isdir(name) else name


def write_folder(
  folder: str, arrays: dict[str, np.ndarray], text: Text
) -> None:
  """Writes what `write` does as a folder; config.json last: it makes it one.

  config.json tells the sha256 of the weights, as safetensors has no checksum,
  and that of both texts: one number changed by hand, such as the timestep,
  would give other predictions without a word.
  Raises ValueError where the package safetensors is not installed.
  """
  safetensors = check_safetensors(folder)
  raw = safetensors.save(
    # It stores memory as it lies, whatever the strides say.
    {name: np.ascontiguousarray(x) for name, x in arrays.items()},
    metadata={'format': 'np'},
  )
  meta = dict(text['meta'])
  pictures = {k: meta.pop(k) for k in _OF_PICTURES if k in meta}
  whole = {
    'library_name': 'micdiffrep_jax',
    'version': VERSION,
    **text,
    'meta': meta,
    'weights_sha256': hashlib.sha256(raw).hexdigest(),
  }
  whole['texts_sha256'] = _digest(whole, pictures)
  files.write_whole(os.path.join(folder, WEIGHTS), raw)
  files.write_json(os.path.join(folder, PREPROCESSING), pictures)
  files.write_json(os.path.join(folder, CONFIG), whole)


def _digest(config: Text, pictures: Text) -> str:
  """sha256 of the two texts of a folder, whatever the order of their keys."""
  raw = json.dumps(files.plain([config, pictures]), sort_keys=True)
  return hashlib.sha256(raw.encode()).hexdigest()


def check_safetensors(path: str) -> Any:
  """The package; ValueError, of the path that needs it, where it is not."""
  try:
    from safetensors import numpy as safetensors
  except ImportError as e:
    raise ValueError(
      f'{path!r} needs the package safetensors: pip install '
      "'micdiffrep_jax[hub]'."
    ) from e
  return safetensors


def _read_file(path: str) -> tuple[dict[str, np.ndarray], Text]:
  _check_sizes(path)
  with np.load(path, allow_pickle=False) as z:
    arrays = {name: z[name] for name in z.files}
  return arrays, json.loads(arrays['json'].tobytes())


def _read_folder(folder: str) -> tuple[dict[str, np.ndarray], Text]:
  """Raises ValueError also where weights and config.json are of two models."""
  safetensors = check_safetensors(folder)
  with open(os.path.join(folder, CONFIG)) as f:
    text = json.load(f)
  with open(os.path.join(folder, PREPROCESSING)) as f:
    pictures = json.load(f)
  if text.pop('texts_sha256') != _digest(text, pictures):
    raise ValueError(f'{CONFIG} or {PREPROCESSING} was changed')
  text['meta'] |= pictures
  with open(os.path.join(folder, WEIGHTS), 'rb') as f:
    raw = f.read()
  if hashlib.sha256(raw).hexdigest() != text['weights_sha256']:
    raise ValueError(f'{WEIGHTS} has not the sha256 that {CONFIG} tells')
  try:
    return safetensors.load(raw), text
  except Exception as e:  # its own error is no ValueError
    raise ValueError(f'{WEIGHTS}: {e}') from e


def read(path: str) -> tuple[dict[str, np.ndarray], Text]:
  """The arrays and the text of a file or a folder.

  Raises ValueError for what is none, or damaged.
  """
  name, whole = paths.expand(path), is_folder(path)
  if whole:
    check_safetensors(path)  # not damage, if it is missing
  try:
    arrays, text = _read_folder(name) if whole else _read_file(name)
    version = text['version']
  except FileNotFoundError as e:
    if whole:
      raise ValueError(
        f'The model folder {path!r} lacks {os.path.basename(e.filename)}; it '
        f'has {WEIGHTS}, {CONFIG} and {PREPROCESSING}. Copy all of them.'
      ) from None
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

"""Reads PyTorch's weight files without PyTorch, and nothing but weights.

A .pt or .pth file is a pickle, and a pickle may run any code. This reader knows
the few names that tensors need and refuses every other. It reads zip files of
torch.save, TorchScript archives (the form of OpenAI's CLIP) and the format from
before 2020.
"""

from collections import OrderedDict
import os
import pickle
from typing import Any, BinaryIO
import zipfile

import ml_dtypes
import numpy as np

_DTYPES = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the old format
_LISTS = ('build_intlist', 'build_tensorlist', 'build_doublelist')


class _Module:
  """Stands for a TorchScript object: its attributes, none of its code."""


def _rebuild_tensor(
  storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any
) -> np.ndarray:
  """A view of a storage; raises ValueError where it would leave it."""
  last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
  if min((offset, *size, *stride)) < 0 or (
    0 not in size and last >= storage.size
  ):
    raise ValueError('A tensor lies outside its storage.')
  if 0 in size:
    return np.empty(size, storage.dtype)
  return np.lib.stride_tricks.as_strided(
    storage[offset:],
    size,
    [s * storage.itemsize for s in stride],
    writeable=False,
  )


class _Unpickler(pickle.Unpickler):
  """Builds dicts, lists and tensors; any other name is an error."""

  def __init__(self, file: BinaryIO, path: str, storages: '_Storages'):
    super().__init__(file, encoding='utf-8')
    self._path, self._storages = path, storages

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ('collections', 'OrderedDict'):
      return OrderedDict
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return _rebuild_tensor
    if (module, name) == ('torch._utils', '_rebuild_parameter'):
      return lambda data, *_: data
    if module == 'torch' and name in _DTYPES:
      return np.dtype(_DTYPES[name])
    if module == 'torch.jit._pickle' and name in _LISTS:
      return list
    if module == '__torch__' or module.startswith('__torch__.'):
      return _Module
    raise ValueError(
      f'{self._path} asks for {module}.{name}, which no weights need: it is '
      'not read. Save the state_dict alone, or give a .safetensors file with '
      '--config.source.'
    )

  def persistent_load(self, pid: Any) -> np.ndarray:
    kind, dtype, key, _, count = pid[:5]
    if kind != 'storage' or not isinstance(dtype, np.dtype):
      raise ValueError(f'{self._path} holds {kind!r}, not only tensors.')
    return self._storages.get(key, dtype, count)


class _Storages:
  """Arrays by key; those of the old format are filled after they are named."""

  def __init__(self, path: str, archive: zipfile.ZipFile | None, prefix: str):
    self._path, self._archive, self._prefix = path, archive, prefix
    self._limit = os.path.getsize(path)
    self.found: dict[str, np.ndarray] = {}

  def get(self, key: str, dtype: np.dtype, count: int) -> np.ndarray:
    if key in self.found:
      return self.found[key]
    if not 0 <= count * dtype.itemsize <= self._limit:
      raise ValueError(f'{self._path} names more data than it can hold.')
    if self._archive is None:
      self.found[key] = np.zeros(count, dtype)
    else:
      content = _member(self._archive, f'{self._prefix}data/{key}', self._path)
      # The last storage may be padded.
      self.found[key] = np.frombuffer(content, dtype, count)
    return self.found[key]


def _member(archive: zipfile.ZipFile, name: str, path: str) -> bytes:
  if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
    raise ValueError(f'{path} is compressed, as no weight file is.')
  return archive.read(name)


def read(path: str) -> dict[str, np.ndarray]:
  """All tensors of a file, by dotted name, in the dtypes they are stored in.

  Raises ValueError for a file that is damaged, of another format, or holds
  anything but tensors, numbers, strings and their containers.
  """
  try:
    with open(path, 'rb') as f:
      tree = _read_zip(path) if zipfile.is_zipfile(f) else _read_old(path)
  except OSError as e:
    raise ValueError(f'{path!r}: {e.strerror}. Set --config.source.') from e
  except (pickle.UnpicklingError, zipfile.BadZipFile, LookupError) as e:
    raise ValueError(f'{path!r} is no PyTorch file: {e}.') from e
  except (EOFError, TypeError, AttributeError, UnicodeDecodeError) as e:
    raise ValueError(f'{path!r} is damaged: {e}.') from e
  found = dict(_tensors(tree, ''))
  if not found:
    raise ValueError(f'{path!r} holds no tensors.')
  return found


def _read_zip(path: str) -> Any:
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    inner = [n for n in names if n.count('/') == 1 and n.endswith('/data.pkl')]
    if len(inner) != 1:
      raise ValueError(f'{path!r} is a zip file, but no PyTorch one.')
    prefix = inner[0].removesuffix('data.pkl')
    order = f'{prefix}byteorder'
    if order in names and _member(archive, order, path) != b'little':
      raise ValueError(f'{path!r} was written on a big-endian machine.')
    storages = _Storages(path, archive, prefix)
    with archive.open(inner[0]) as f:
      return _Unpickler(f, path, storages).load()  # type: ignore[arg-type]


def _read_old(path: str) -> Any:
  storages = _Storages(path, None, '')
  with open(path, 'rb') as f:

    def load():
      return _Unpickler(f, path, storages).load()

    if load() != _MAGIC:
      raise ValueError(f'{path!r} is no PyTorch file.')
    _, system = load(), load()
    if not system['little_endian']:
      raise ValueError(f'{path!r} was written on a big-endian machine.')
    tree, keys = load(), load()
    for key in keys:
      count, storage = int.from_bytes(f.read(8), 'little'), storages.found[key]
      content = f.read(storage.nbytes)
      if count != storage.size or len(content) != storage.nbytes:
        raise ValueError(f'{path!r} is cut short.')
      storage[:] = np.frombuffer(content, storage.dtype)
  return tree


def _tensors(tree: Any, name: str):
  """Yields (dotted name, array) of all tensors below."""
  if isinstance(tree, np.ndarray):
    yield name, tree
    return
  if isinstance(tree, _Module):
    tree = vars(tree)
  if isinstance(tree, list | tuple):
    tree = dict(enumerate(tree))
  if isinstance(tree, dict):
    for key, value in tree.items():
      yield from _tensors(value, f'{name}.{key}' if name else str(key))

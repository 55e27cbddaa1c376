"""Reads PyTorch's weight files without PyTorch, and nothing but weights.

A .pt or .pth file is a pickle, and a pickle may run any code. This reader knows
the few names that tensors need and refuses every other. It reads zip files of
torch.save, TorchScript archives (the form of OpenAI's CLIP) and the format from
before 2020.
"""

from collections import OrderedDict
from collections.abc import Iterator
import os
import pickle
from typing import Any, BinaryIO, ClassVar, NamedTuple
import zipfile

import ml_dtypes
import numpy as np

from micdiffrep_jax.run.archive import DAMAGE

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


class _Storage(NamedTuple):
  """Numbers that a file names: where they are, their type, how many."""

  key: str
  kind: str
  length: int


class _Tensor(NamedTuple):
  """A view of a storage; no array yet, as a pickle may set an array's state."""

  storage: _Storage
  offset: int
  size: tuple[int, ...]
  stride: tuple[int, ...]


def _rebuild_tensor(*args: Any) -> _Tensor:
  return _Tensor(*args[:4])


def _rebuild_parameter(data: _Tensor, *_: Any) -> _Tensor:
  return data


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
  """Builds dicts, lists and the two records above; other names are errors.

  The one in Python: that in C takes as much memory as a damaged number says.
  """

  # No weights need these, which take memory before they are read.
  dispatch: ClassVar[dict] = {
    k: v
    for k, v in pickle._Unpickler.dispatch.items()  # type: ignore[attr-defined]
    if k != pickle.BYTEARRAY8[0]
  }

  def __init__(self, file: BinaryIO, path: str):
    super().__init__(file, encoding='utf-8')
    self._path = path

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ('collections', 'OrderedDict'):
      return OrderedDict
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return _rebuild_tensor
    if (module, name) == ('torch._utils', '_rebuild_parameter'):
      return _rebuild_parameter
    if module == 'torch' and name in _DTYPES:
      return name
    if module == 'torch.jit._pickle' and name in _LISTS:
      return list
    if module == '__torch__' or module.startswith('__torch__.'):
      return _Module
    raise ValueError(
      f'{self._path} asks for {module}.{name}, which no weights need: it is '
      'not read. Save the state_dict alone, or give a .safetensors file with '
      '--config.source.'
    )

  def persistent_load(self, pid: Any) -> _Storage:
    what, kind, key, _, count = pid[:5]
    if what != 'storage' or kind not in _DTYPES or not isinstance(count, int):
      raise ValueError(f'{self._path} holds {what!r}, not only tensors.')
    return _Storage(str(key), kind, count)


def _array(tensor: _Tensor, flat: np.ndarray) -> np.ndarray:
  """A view of a storage; raises ValueError where it would leave it."""
  _, offset, size, stride = tensor
  if 0 in size:
    return np.empty(size, flat.dtype)
  last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
  if min((offset, *size, *stride)) < 0 or last >= flat.size:
    raise ValueError('A tensor lies outside its storage.')
  return np.lib.stride_tricks.as_strided(
    flat[offset:], size, [s * flat.itemsize for s in stride], writeable=False
  )


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
      zipped = zipfile.is_zipfile(f)
    named = (_read_zip if zipped else _read_old)(path)
  except OSError as e:
    raise ValueError(f'{path!r}: {e.strerror}. Set --config.source.') from e
  except (pickle.UnpicklingError, zipfile.BadZipFile, LookupError) as e:
    raise ValueError(f'{path!r} is no PyTorch file: {e}.') from e
  except (UnicodeDecodeError, AssertionError) as e:
    raise ValueError(f'{path!r} is damaged: {e}.') from e
  except ValueError:
    raise
  except DAMAGE as e:
    said = str(e) or type(e).__name__
    raise ValueError(f'{path!r} is damaged: {said}.') from e
  if not named:
    raise ValueError(f'{path!r} holds no tensors.')
  return named


def _read_zip(path: str) -> dict[str, np.ndarray]:
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    inner = [n for n in names if n.count('/') == 1 and n.endswith('/data.pkl')]
    if len(inner) != 1:
      raise ValueError(f'{path!r} is a zip file, but no PyTorch one.')
    prefix = inner[0].removesuffix('data.pkl')
    order = f'{prefix}byteorder'
    if order in names and _member(archive, order, path) != b'little':
      raise ValueError(f'{path!r} was written on a big-endian machine.')
    with archive.open(inner[0]) as f:
      tree = _Unpickler(f, path).load()  # type: ignore[arg-type]
    found: dict[_Storage, np.ndarray] = {}
    named = {}
    for name, tensor in _tensors(tree, ''):
      storage = tensor.storage
      if storage not in found:
        content = _member(archive, f'{prefix}data/{storage.key}', path)
        dtype = np.dtype(_DTYPES[storage.kind])
        if not 0 <= storage.length * dtype.itemsize <= len(content):
          raise ValueError(f'{path!r} is cut short.')
        found[storage] = np.frombuffer(
          content[: storage.length * dtype.itemsize], dtype
        )
      named[name] = _array(tensor, found[storage])
    return named


def _read_old(path: str) -> dict[str, np.ndarray]:
  with open(path, 'rb') as f:

    def load() -> Any:
      return _Unpickler(f, path).load()

    if load() != _MAGIC:
      raise ValueError(f'{path!r} is no PyTorch file.')
    _, system = load(), load()
    if not system['little_endian']:
      raise ValueError(f'{path!r} was written on a big-endian machine.')
    tensors = dict(_tensors(load(), ''))
    storages = {t.storage.key: t.storage for t in tensors.values()}
    found = {}
    for key in load():
      storage = storages[key]
      dtype = np.dtype(_DTYPES[storage.kind])
      count = int.from_bytes(f.read(8), 'little')
      # Before memory is taken for what a damaged file claims.
      left = os.fstat(f.fileno()).st_size - f.tell()
      if count != storage.length or count * dtype.itemsize > left:
        raise ValueError(f'{path!r} is cut short.')
      content = f.read(count * dtype.itemsize)
      found[key] = np.frombuffer(content, dtype)
    return {k: _array(t, found[t.storage.key]) for k, t in tensors.items()}


def _tensors(tree: Any, name: str) -> Iterator[tuple[str, _Tensor]]:
  """Yields (dotted name, tensor) of all tensors below."""
  if isinstance(tree, _Tensor):
    if not isinstance(tree.storage, _Storage):
      raise ValueError(f'Tensor {name!r} has no storage.')
    yield name, tree
    return
  if isinstance(tree, _Module):
    tree = vars(tree)
  if isinstance(tree, list | tuple):
    tree = dict(enumerate(tree))
  if isinstance(tree, dict):
    for key, value in tree.items():
      yield from _tensors(value, f'{name}.{key}' if name else str(key))

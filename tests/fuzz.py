"""Damaged files, and a process that reads them within limits.

`python tests/fuzz.py READER FIRST COUNT` reads the mutants FIRST to
FIRST + COUNT of a good file and prints what went wrong, one JSON line each.
Letters: s the seed of a mutant.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import io
import json
import os
import pathlib
import pickle
import random
import resource
import signal
import struct
import sys
import tempfile
import time
from typing import ClassVar
import warnings
import zipfile

import numpy as np

HANG_S = 10
MEMORY = 2**30  # bytes beyond what the program takes anyhow
_HUGE = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def mutate(data: bytes, seed: int) -> bytes:
  """One to a few of: bits flipped, cut, zeros put in, a number made huge.

  Half of all hits fall in the first 512 bytes, where headers are.
  """
  rng = random.Random(seed)
  found = bytearray(data or b'\0')
  for _ in range(rng.choice((1, 1, 2, 4))):
    if not found:
      break
    end = len(found) if rng.random() < 0.5 else min(512, len(found))
    at = rng.randrange(max(1, end))
    how = rng.randrange(5)
    if how == 0:
      for _ in range(rng.choice((1, 8, 64))):
        found[rng.randrange(max(1, end)) % len(found)] ^= 1 << rng.randrange(8)
    elif how == 1:
      del found[max(1, at) :]
    elif how == 2:
      found[at:at] = bytes(rng.choice((1, 4, 512, 70_000)))
    elif how == 3:
      width, sign = rng.choice(((2, '<H'), (2, '>H'), (4, '<I'), (4, '>I')))
      number = rng.choice(_HUGE) & (256**width - 1)
      found[at : at + width] = struct.pack(sign, number)
    else:
      del found[at : at + rng.choice((1, 4, 64))]
  return bytes(found) or b'\0'


def picture(side: int = 40) -> np.ndarray:
  """Grey levels (side, side) uint8 with structure."""
  y, x = np.mgrid[:side, :side]
  return ((x * 5 + y * 3) % 251).astype(np.uint8)


def encoded(kind: str) -> list[bytes]:
  """Good files of a kind of picture: grey, colour, and what else it has."""
  from PIL import Image

  grey = Image.fromarray(picture())
  colour = Image.merge('RGB', [grey, grey.rotate(90), grey.rotate(180)])
  made = [(grey, {}), (colour, {})]
  if kind == 'png':
    made += [(grey.convert('P'), {}), (grey.convert('I;16'), {})]
  if kind == 'tiff':
    made += [(colour, {'compression': 'tiff_lzw'}), (grey.convert('F'), {})]
  found = []
  for image, options in made:
    out = io.BytesIO()
    image.save(out, kind.upper(), **options)
    found.append(out.getvalue())
  return found


def dicom() -> list[bytes]:
  """A slice and a file of several frames."""
  from pydicom.dataset import Dataset, FileMetaDataset
  from pydicom.uid import ExplicitVRLittleEndian, generate_uid

  found = []
  for frames in (1, 3):
    record = Dataset()
    record.file_meta = FileMetaDataset()
    record.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    record.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.4'
    record.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    record.SOPClassUID = record.file_meta.MediaStorageSOPClassUID
    record.SOPInstanceUID = record.file_meta.MediaStorageSOPInstanceUID
    record.PatientID, record.Modality = 'A1', 'MR'
    record.Rows, record.Columns = 40, 40
    record.SamplesPerPixel = 1
    record.PhotometricInterpretation = 'MONOCHROME2'
    record.BitsAllocated = record.BitsStored = 16
    record.HighBit, record.PixelRepresentation = 15, 0
    record.RescaleSlope, record.RescaleIntercept = '2', '-7'
    if frames > 1:
      record.NumberOfFrames = frames
    stored = np.stack([picture().astype('<u2') * 9] * frames)
    record.PixelData = stored.tobytes()
    out = io.BytesIO()
    record.save_as(out, enforce_file_format=True)
    found.append(out.getvalue())
  return found


def nifti() -> list[bytes]:
  """A volume of integers with a scale, and one of floats."""
  import nibabel

  values = np.stack([picture(24)] * 6, axis=-1)
  found = []
  for kind in (np.int16, np.float32):
    image = nibabel.Nifti1Image(values.astype(kind), np.eye(4))
    found.append(image.to_bytes())
  return found


def table() -> list[bytes]:
  """Groups of files, as two programs export them."""
  rows = [f'well/p{i:03d}.png,patient {i // 3}' for i in range(60)]
  text = '\n'.join(['file,group', *rows])
  return [text.encode(), text.replace(',', ';').encode('utf-8-sig')]


def bundle() -> list[bytes]:
  """A small classifier."""
  import tiny_bundle

  from micdiffrep_jax.bundle import classifier

  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'bundle.npz'
    classifier.write(str(path), tiny_bundle.model(), 'int8')
    return [path.read_bytes()]


def weights() -> list[bytes]:
  """A state dict as torch.save wrote it, written without torch."""

  class Storage:
    def __init__(self, key, count):
      self.key, self.count = key, count

  class Tensor:
    def __init__(self, key, shape):
      self.key, self.shape = key, shape

    def __reduce__(self):
      count = int(np.prod(self.shape))
      strides = tuple(
        int(np.prod(self.shape[i + 1 :])) for i in range(len(self.shape))
      )
      storage = Storage(self.key, count)
      return _rebuild_tensor_v2, (storage, 0, self.shape, strides)

  class Pickler(pickle._Pickler):
    def persistent_id(self, x):
      if isinstance(x, Storage):
        return ('storage', FloatStorage, x.key, 'cpu', x.count)
      return None

    def save_global(self, x, name=None):
      module = 'torch._utils' if x is _rebuild_tensor_v2 else 'torch'
      self.write(b'c' + f'{module}\n{x.__name__}\n'.encode())
      self.memoize(x)

    dispatch: ClassVar[dict] = {
      **pickle._Pickler.dispatch,
      type(picture): save_global,
      type: save_global,
    }

  text = io.BytesIO()
  state = {'a.weight': Tensor('0', (8, 6)), 'a.bias': Tensor('1', (8,))}
  Pickler(text, 2).dump(state)
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    archive.writestr('x/data.pkl', text.getvalue())
    for key, count in (('0', 48), ('1', 8)):
      archive.writestr(f'x/data/{key}', bytes(4 * count))
  return [out.getvalue()]


def _rebuild_tensor_v2():
  """Only its name is written."""


class FloatStorage:
  """Only its name is written."""


def rezip(data: bytes, seed: int) -> bytes:
  """A zip file with one member mutated and all sums right again."""
  rng = random.Random(seed)
  out = io.BytesIO()
  with (
    zipfile.ZipFile(io.BytesIO(data)) as old,
    zipfile.ZipFile(out, 'w') as new,
  ):
    members = old.infolist()
    hit = rng.randrange(len(members))
    for i, member in enumerate(members):
      content = old.read(member)
      new.writestr(
        member.filename,
        mutate(content, seed) if i == hit else content,
        member.compress_type,
      )
  return out.getvalue()


def read_source(ending: str, folder: pathlib.Path, data: bytes) -> None:
  """Reads a file as preparation does, to square pictures."""
  from micdiffrep_jax.data import decode, sources

  path = folder / f'x{ending}'
  path.write_bytes(data)
  source = sources.open_source(str(folder))
  for file in source.files:
    for found in source.read(file, 1):
      assert found.pixels.dtype == np.uint8
      square = decode.to_square(found.pixels, 16, 1)
      assert square.shape == (16, 16, 1)


def read_table(folder: pathlib.Path, data: bytes) -> None:
  from micdiffrep_jax.data import identity

  path = folder / 'x.csv'
  path.write_bytes(data)
  identity._read_table(str(path))


def read_bundle(folder: pathlib.Path, data: bytes) -> None:
  from micdiffrep_jax.bundle import classifier

  path = folder / 'x.npz'
  path.write_bytes(data)
  classifier.load_bundle(str(path))


def read_weights(folder: pathlib.Path, data: bytes) -> None:
  from micdiffrep_jax.encoders import torch_file

  path = folder / 'x.pt'
  path.write_bytes(data)
  for x in torch_file.read(str(path)).values():
    assert x.size < 1000


Reader = Callable[[pathlib.Path, bytes], None]
_ZIPPED = ('npz', 'pt')
READERS: dict[str, tuple[Callable[[], list[bytes]], Reader]] = {
  'jpeg': (
    functools.partial(encoded, 'jpeg'),
    functools.partial(read_source, '.jpg'),
  ),
  'png': (
    functools.partial(encoded, 'png'),
    functools.partial(read_source, '.png'),
  ),
  'tiff': (
    functools.partial(encoded, 'tiff'),
    functools.partial(read_source, '.tif'),
  ),
  'dicom': (dicom, functools.partial(read_source, '.dcm')),
  'nifti': (nifti, functools.partial(read_source, '.nii')),
  'csv': (table, read_table),
  'npz': (bundle, read_bundle),
  'pt': (weights, read_weights),
}


def mutants(
  name: str, good: list[bytes], first: int, count: int
) -> Iterator[tuple[int, bytes]]:
  """(seed, damaged file); of zip files half have their sums mended."""
  for seed in range(first, first + count):
    data = good[seed % len(good)]
    whole = name in _ZIPPED and seed % 2
    yield seed, (rezip if whole else mutate)(data, seed)


def complaint(read: Reader, folder: pathlib.Path, data: bytes) -> str:
  """What is wrong with how a damaged file ends; '' for a line or a picture."""
  start = time.process_time()  # whatever else the machine does
  said = ''
  try:
    read(folder, data)
  except ValueError as e:
    said = str(e)
    if not said or len(said.splitlines()) > 3:
      return f'no clear line: {said!r}'
    if 'MemoryError' in said or 'Unable to allocate' in said:
      return f'memory ran out: {said}'
  except BaseException as e:
    return f'{type(e).__name__}: {e}'
  took_s = time.process_time() - start
  return f'took {took_s:.0f} s: {said}' if took_s > HANG_S else ''


def main(name: str, first: int, count: int) -> None:
  make, read = READERS[name]
  good = make()
  warnings.simplefilter('ignore')
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    for data in good:  # loads all that is needed, and must work
      read(folder, data)
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, signal.default_int_handler)
    for seed, data in mutants(name, good, first, count):
      print(json.dumps({'begins': seed}), flush=True)
      signal.setitimer(signal.ITIMER_PROF, 2 * HANG_S)
      wrong = complaint(read, folder, data)
      signal.setitimer(signal.ITIMER_PROF, 0)
      if wrong:
        print(json.dumps({'seed': seed, 'wrong': wrong}), flush=True)
  print(json.dumps({'done': count}), flush=True)


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  with contextlib.redirect_stderr(io.StringIO()):
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

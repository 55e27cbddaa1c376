"""A damaged file ends in a picture or in one clear line, whoever reads it.

Not in another exception, a crash, ten seconds or a gigabyte. Files are
mutated by seed, so each fault can be had again: python tests/fuzz.py READER
SEED 1.
"""

import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import zipfile
import zlib

import cv2
import fuzz
import numpy as np
import pytest

from micdiffrep_jax.data import decode
from micdiffrep_jax.run import archive

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = {'dicom': ['pydicom'], 'nifti': ['nibabel']}
# A bundle takes longest to open.
FEW = {'npz': 10}
MANY = {'npz': 300, 'csv': 1000}
READERS = [
  pytest.param(name, marks=pytest.mark.needs(*PACKAGES.get(name, ())))
  for name in fuzz.READERS
]


def faults(name, first, count, timeout_s):
  """{seed: what is wrong} of some mutants."""
  done = subprocess.run(
    [sys.executable, 'tests/fuzz.py', name, str(first), str(count)],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=timeout_s,
  )
  lines = [json.loads(x) for x in done.stdout.splitlines() if x[:1] == '{']
  found = {x['seed']: x['wrong'] for x in lines if 'seed' in x}
  if {'done': count} not in lines:
    at = [x['begins'] for x in lines if 'begins' in x][-1:]
    found[at[0] if at else -1] = f'ended with {done.returncode}: {done.stderr}'
  return found


@pytest.mark.parametrize('name', READERS)
def test_some_damaged_files_are_told_in_a_line(name):
  assert not faults(name, 0, FEW.get(name, 25), 120)


@pytest.mark.slow
@pytest.mark.parametrize('name', READERS)
def test_many_damaged_files_are_told_in_a_line(name):
  assert not faults(name, 1000, MANY.get(name, 500), 600)


@pytest.mark.parametrize('seed', range(20))
def test_mutants_are_damaged_and_the_same_each_time(seed):
  data = fuzz.encoded('png')[0]
  assert fuzz.mutate(data, seed) == fuzz.mutate(data, seed)
  assert fuzz.mutate(data, seed) != data


def test_a_reader_that_takes_too_much_is_found_out(tmp_path):
  def greedy(folder, data):
    raise MemoryError

  def rude(folder, data):
    raise KeyError(3)

  def clear(folder, data):
    raise ValueError('cut short')

  assert 'MemoryError' in fuzz.complaint(greedy, tmp_path, b'')
  assert 'KeyError' in fuzz.complaint(rude, tmp_path, b'')
  assert fuzz.complaint(clear, tmp_path, b'') == ''


def test_a_jpeg_that_claims_to_be_huge_takes_no_memory():
  data = bytearray(fuzz.encoded('jpeg')[0])
  at = data.index(b'\xff\xc0') + 5  # height and width
  data[at : at + 4] = struct.pack('>HH', 65_500, 65_500)
  with pytest.raises(ValueError, match='too many pixels: 65500 x 65500'):
    decode.read_image(bytes(data), 1)


def test_a_png_that_claims_to_be_huge_takes_no_memory():
  data = bytearray(fuzz.encoded('png')[0])
  data[16:24] = struct.pack('>II', 12_000, 13_000)
  data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
  with pytest.raises(ValueError, match='too many pixels: 12000 x 13000'):
    decode.read_image(bytes(data), 1)


def test_a_long_strip_is_padded_to_no_more_than_is_needed(monkeypatch):
  """Oracle: rows 19,000 to 21,000 of 40,000 are bright, a cell has 2,500."""
  sides = []
  pad = cv2.copyMakeBorder

  def seen(*args, **kwargs):
    found = pad(*args, **kwargs)
    sides.append(found.shape)
    return found

  monkeypatch.setattr(cv2, 'copyMakeBorder', seen)
  strip = np.full((2000, 40_000), 200, np.uint8)
  square = decode.to_square(strip, 16, 1)[..., 0].astype(int)
  assert max(sides[0]) <= 8192
  assert np.abs(square[7:9] - 200 * 1000 / 2500).max() <= 1
  assert not square[:7].any()
  assert not square[9:].any()


def test_a_bundle_that_claims_to_be_huge_takes_no_memory(tmp_path):
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header, {'descr': '<f4', 'fortran_order': False, 'shape': (10**12,)}
  )
  with zipfile.ZipFile(tmp_path / 'x.npz', 'w') as f:
    f.writestr('json.npy', header.getvalue() + bytes(64))
  with pytest.raises(ValueError, match=r'json\.npy is cut short'):
    archive.read(str(tmp_path / 'x.npz'))


def test_a_bundle_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(archive, '_UNPACKED', 2**20)
  with (
    zipfile.ZipFile(tmp_path / 'x.npz', 'w', zipfile.ZIP_DEFLATED) as f,
    f.open('a.npy', 'w') as member,
  ):
    member.write(bytes(3 * 2**20))
  with pytest.raises(ValueError, match='would take 3 MiB'):
    archive.read(str(tmp_path / 'x.npz'))

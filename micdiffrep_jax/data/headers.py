"""What the headers of DICOM and NIfTI files say when a folder is listed."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import os
from typing import NamedTuple

from micdiffrep_jax.data import dicom, nifti, store, volumes
from micdiffrep_jax.run import log

_CHUNK = 64  # headers that a thread reads at once


class Told(NamedTuple):
  """The files that are pictures, or should be; groups[i] belongs to files[i].

  no_pictures names the others, by kind; refused names the files that cannot be
  read, and why.
  """

  files: list[str]
  groups: list[str]
  no_pictures: dict[str, list[str]]
  refused: list[tuple[str, str]]


def examine(root: str, files: Sequence[str], kinds: Sequence[str]) -> Told:
  """Reads the header of each file below a root that is DICOM or NIfTI.

  kinds: 'dicom', something with 'nifti', or what has no such header. Raises
  ValueError for files whose reader is not installed, and where patients' ids
  cannot be hidden.
  """
  if 'dicom' in kinds:
    volumes.check_installed('pydicom')
    store.check_salt()
  if any('nifti' in kind for kind in kinds):
    volumes.check_installed('nibabel')
  asked = [
    (file, kind)
    for file, kind in zip(files, kinds, strict=True)
    if kind == 'dicom' or 'nifti' in kind
  ]
  headers = dict(
    zip([file for file, _ in asked], _read(root, asked), strict=True)
  )
  told = Told([], [], defaultdict(list), [])
  for file in files:
    header = headers.get(file, dicom.Header())
    if header.no_picture:
      told.no_pictures[f'dicom: {header.no_picture}'].append(file)
      continue
    if header.refused:
      told.refused.append((file, header.refused))
    told.files.append(file)
    told.groups.append(header.patient)
  return told


def _read(root: str, asked: list[tuple[str, str]]) -> list[dicom.Header]:
  """The header of each file, read by threads."""

  def work(chunk: list[tuple[str, str]]) -> list[dicom.Header]:
    return [_header(os.path.join(root, file), kind) for file, kind in chunk]

  if not asked:
    return []
  found: list[dicom.Header] = []
  chunks = [asked[i : i + _CHUNK] for i in range(0, len(asked), _CHUNK)]
  with (
    ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    log.progress(total=len(asked), desc='headers', unit='file') as bar,
  ):
    for some in pool.map(work, chunks):
      found += some
      bar.update(len(some))
  return found


def _header(path: str, kind: str) -> dicom.Header:
  if kind == 'dicom':
    return dicom.examine(path)
  return dicom.Header(refused=nifti.refusal(path))

"""What the headers of DICOM and NIfTI files say when a folder is listed."""

from collections import Counter
from collections.abc import Sequence
import os
from typing import NamedTuple

from micdiffrep_jax.data import dicom, nifti, volumes


class Told(NamedTuple):
  """The files that are pictures, or should be; groups[i] belongs to files[i].

  junk counts objects that are known to be no pictures, by kind; refused names
  the files that cannot be read, and why.
  """

  files: list[str]
  groups: list[str]
  junk: Counter
  refused: list[tuple[str, str]]


def examine(root: str, files: Sequence[str], kinds: Sequence[str]) -> Told:
  """Reads the header of each file of kind dicom or nifti below a root.

  Raises ValueError for files whose reader is not installed.
  """
  if 'dicom' in kinds:
    volumes.check_installed('pydicom')
  if 'nifti' in kinds:
    volumes.check_installed('nibabel')
  paths = {
    file: os.path.join(root, file)
    for file, kind in zip(files, kinds, strict=True)
    if kind == 'dicom'
  }
  headers = dict(zip(paths, dicom.examine(list(paths.values())), strict=True))
  told = Told([], [], Counter(), [])
  for file, kind in zip(files, kinds, strict=True):
    header = headers.get(file, dicom.Header())
    if header.no_picture:
      told.junk[f'dicom: {header.no_picture}'] += 1
      continue
    refused = header.refused
    if kind == 'nifti':
      refused = nifti.refusal(os.path.join(root, file))
    if refused:
      told.refused.append((file, refused))
    told.files.append(file)
    told.groups.append(header.patient)
  return told

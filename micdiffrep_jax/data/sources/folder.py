"""A folder of pictures, DICOM and NIfTI files, as a source."""

from collections import Counter
from collections.abc import Sequence
import functools
import hashlib
import os
import re

from micdiffrep_jax.data import decode, dicom, headers, nifti, store, volumes
from micdiffrep_jax.data.sources.base import (
  DEFAULT,
  Source,
  with_printable_names,
)

_JUNK_FOLDERS = ('__macosx', '$recycle.bin', 'system volume information')


def open_folder(
  root: str, options: volumes.Options = DEFAULT.options
) -> Source:
  """Lists the pictures below a folder in natural order, links followed.

  Raises ValueError for no folder, a folder without pictures, and for files
  whose reader is not installed.
  """
  root = os.path.expanduser(root)
  if not os.path.isdir(root):
    raise ValueError(
      f'{root!r} is not a folder. Give a folder, "tfds:NAME[:SPLIT]" or '
      '"phantom:" as config.data.source.'
    )
  files, junk = _walk(root)
  if not files:
    raise ValueError(
      f'{root!r} holds no {"/".join(s[1:] for s in decode.SUFFIXES)} file'
      + (f' (ignored: {dict(junk)}).' if junk else '.')
    )
  told = headers.examine(root, files, [_kind(file) for file in files])
  junk.update({kind: len(x) for kind, x in told.no_pictures.items()})
  if not told.files:
    raise ValueError(f'{root!r} holds no picture, but {dict(junk)}.')
  source = Source(
    origin=os.path.basename(os.path.abspath(root)),
    files=told.files,
    labels=None,
    groups=told.groups,
    junk=dict(junk),
    stamp=_stamp(root, told.files),
    read=functools.partial(_read_file, root, options),
    refused=told.refused,
  )
  return with_printable_names(source)


def natural_key(name: str) -> tuple[list, str]:
  """Sorts 'G_2' before 'G_10'."""
  parts = re.split(r'(\d+)', name)
  return [int(p) if i % 2 else p for i, p in enumerate(parts)], name


def _walk(root: str) -> tuple[list[str], Counter]:
  """Paths of the pictures below a folder, and what was ignored, by kind."""
  files: list[str] = []
  junk: Counter = Counter()
  seen = set()
  for folder, folders, names in os.walk(root, followlinks=True):
    real = os.path.realpath(folder)
    if real in seen:  # a link that leads back
      folders.clear()
      continue
    seen.add(real)
    for name in [n for n in folders if _is_junk_folder(n)]:
      junk['folders'] += 1
      folders.remove(name)
    for name in names:
      path = os.path.join(folder, name)
      kind = _junk_kind(name, path)
      if kind:
        junk[kind] += 1
      else:
        files.append(os.path.relpath(path, root).replace(os.sep, '/'))
  return sorted(files, key=natural_key), junk


def _stamp(root: str, files: Sequence[str]) -> str:
  digest = hashlib.sha256()
  for file in files:
    path = os.path.join(root, file)
    # A link that leads nowhere is stamped as a link; reading it fails later.
    stat = os.stat(path) if os.path.exists(path) else os.lstat(path)
    marks = f'\0{stat.st_size}\0{stat.st_mtime_ns}\0'
    digest.update(os.fsencode(file) + marks.encode())
  return digest.hexdigest()


def _read_file(
  root: str, options: volumes.Options, file: str, channels: int
) -> list[decode.Picture]:
  path, kind = os.path.join(root, file), _kind(file)
  if kind == 'dicom':
    return dicom.read(path, options)
  if kind == 'nifti':
    return nifti.read(path, options)
  with open(path, 'rb') as f:
    return [decode.read_image(f.read(), channels)]


def _kind(name: str) -> str:
  """What reads a listed file; one without a picture's ending is DICOM."""
  if name.lower().endswith(decode.SUFFIXES):
    return 'picture'
  return 'nifti' if name.lower().endswith(nifti.SUFFIXES) else 'dicom'


def _is_junk_folder(name: str) -> bool:
  return name.startswith('.') or name.lower() in _JUNK_FOLDERS


def _junk_kind(name: str, path: str) -> str:
  """Says what kind of junk a file is, '' for a picture."""
  if name.startswith('.'):
    return 'hidden'
  known = decode.SUFFIXES + dicom.SUFFIXES + nifti.SUFFIXES
  if name.lower().endswith(known):
    return ''
  # Scanners and archives write DICOM without an ending, or with a number's.
  return '' if dicom.is_marked(path) else 'other'

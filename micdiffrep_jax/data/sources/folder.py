"""Where pictures come from: a folder, a TFDS dataset, the phantom.

A source is a list of files with what is known of each, and a function that
reads one. Preparation treats all sources alike.
"""

from collections import Counter
from collections.abc import Callable
import functools
import hashlib
import os
import re
from typing import NamedTuple

from micdiffrep_jax.data import decode, volumes

_OPTIONS = volumes.Options()
_JUNK_FOLDERS = ('__macosx', '$recycle.bin', 'system volume information')


class Source(NamedTuple):
  """Files of one origin; labels and groups are '' where nothing is known."""

  origin: str
  files: list[str]  # unique within the origin
  labels: list[str] | None  # None: the folders of the files tell
  groups: list[str]  # what the source itself says; else ''
  junk: dict[str, int]  # what was ignored, by kind
  stamp: str  # changes when a file is added, removed or rewritten
  read: Callable[[str, int], list[decode.Picture]]  # file, channels
  groups_on_read: bool = False  # a picture may name its group when read


def open_source(
  spec: str,
  data_dir: str = '',
  group_field: str = '',
  options: volumes.Options = _OPTIONS,
) -> Source:
  """Lists 'DIR', 'tfds:NAME[:SPLIT]' or 'phantom:key=value,...'.

  Raises ValueError for a source that does not exist or holds no picture.
  """
  kind, sign, rest = spec.partition(':')
  if sign and kind == 'tfds':
    # Imported on use: a folder needs no tensorflow_datasets reader.
    from micdiffrep_jax.data import tfds_source

    return tfds_source.open_tfds(rest, data_dir, group_field)
  if sign and kind == 'phantom':
    from micdiffrep_jax.data import phantom

    return phantom.open_phantom(rest)
  return open_folder(spec, options)


def open_folder(root: str, options: volumes.Options = _OPTIONS) -> Source:
  """Lists the pictures below a folder in natural order, links followed."""
  root = os.path.expanduser(root)
  if not os.path.isdir(root):
    raise ValueError(
      f'{root!r} is not a folder. Give a folder, "tfds:NAME[:SPLIT]" or '
      '"phantom:" as config.data.source.'
    )
  files: list[str] = []
  junk: Counter = Counter()
  stamp = hashlib.sha256()
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
        continue
      files.append(os.path.relpath(path, root).replace(os.sep, '/'))
  if not files:
    raise ValueError(
      f'{root!r} holds no {"/".join(s[1:] for s in decode.SUFFIXES)} file'
      + (f' (ignored: {dict(junk)}).' if junk else '.')
    )
  files.sort(key=natural_key)
  for file in files:
    stat = os.lstat(os.path.join(root, file))
    if os.path.exists(os.path.join(root, file)):  # no link that leads nowhere
      stat = os.stat(os.path.join(root, file))
    stamp.update(f'{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0'.encode())
  kinds = {_kind(file) for file in files}
  if 'dicom' in kinds:
    volumes.check_installed('pydicom')
  if 'nifti' in kinds:
    volumes.check_installed('nibabel')
  return Source(
    origin=os.path.basename(os.path.abspath(root)),
    files=files,
    labels=None,
    groups=[''] * len(files),
    junk=dict(junk),
    stamp=stamp.hexdigest(),
    read=functools.partial(_read_file, root, options),
    groups_on_read=bool(kinds - {'picture'}),
  )


def natural_key(name: str) -> tuple[list, str]:
  """Sorts 'G_2' before 'G_10'."""
  parts = re.split(r'(\d+)', name)
  return [int(p) if i % 2 else p for i, p in enumerate(parts)], name


def _read_file(
  root: str, options: volumes.Options, file: str, channels: int
) -> list[decode.Picture]:
  path, kind = os.path.join(root, file), _kind(file)
  if kind == 'dicom':
    return volumes.read_dicom(path, options)
  if kind == 'nifti':
    return volumes.read_nifti(path, options)
  with open(path, 'rb') as f:
    return [decode.read_image(f.read(), channels)]


def _kind(name: str) -> str:
  """What reads a listed file; one without a picture's ending is DICOM."""
  if name.lower().endswith(decode.SUFFIXES):
    return 'picture'
  return 'nifti' if name.lower().endswith(volumes.NIFTI_SUFFIXES) else 'dicom'


def _is_junk_folder(name: str) -> bool:
  return name.startswith('.') or name.lower() in _JUNK_FOLDERS


def _junk_kind(name: str, path: str) -> str:
  """Says what kind of junk a file is, '' for a picture."""
  if name.startswith('.'):
    return 'hidden'
  known = decode.SUFFIXES + volumes.DICOM_SUFFIXES + volumes.NIFTI_SUFFIXES
  if name.lower().endswith(known):
    return ''
  # Scanners and archives write DICOM without an ending, or with a number's.
  return '' if volumes.is_dicom(path) else 'other'

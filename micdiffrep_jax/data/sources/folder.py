"""A folder of pictures, DICOM and NIfTI files, as a source."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
import functools
import gzip
import hashlib
import logging
import os
import zlib

from micdiffrep_jax.data import (
  decode,
  dicom,
  headers,
  listing,
  masks,
  nifti,
  volumes,
)
from micdiffrep_jax.data.sources.base import (
  DEFAULT,
  Source,
  with_printable_names,
)
from micdiffrep_jax.run import log, paths

_NIFTI_MARKS = (b'n+1\0', b'n+2\0')  # header and volume in one file
_HEADER_BYTES = 352  # of NIfTI, marks included


def open_folder(
  root: str,
  options: volumes.Options = DEFAULT.options,
  skip_masks: bool = DEFAULT.skip_masks,
) -> Source:
  """Lists the pictures below a folder in natural order, links followed.

  What a file is its content says where its name does not. What is left out is
  told by kind. Raises ValueError for no folder, a folder without pictures, and
  for files whose reader is not installed.
  """
  root = paths.expand(root)
  if not os.path.isdir(root):
    raise ValueError(
      f'{root!r} is not a folder. Give a folder, "tfds:NAME[:SPLIT]" or '
      '"phantom:" as config.data.source.'
    )
  files, odd, left_out = _list(root, skip_masks)
  lines = listing.describe(left_out)
  if not files:
    raise ValueError(
      f'{root!r} holds no file that can be read '
      f'({"/".join(s[1:] for s in decode.SUFFIXES[:8])}/..., DICOM, NIfTI)'
      + (f'. Ignored: {"; ".join(lines)}.' if lines else '.')
    )
  _tell(root, files, odd, left_out, skip_masks)
  told = headers.examine(
    root, files, [odd.get(file) or _kind(file) for file in files]
  )
  left_out |= told.no_pictures
  if not told.files:
    lines = listing.describe(left_out)
    raise ValueError(f'{root!r} holds no picture: {"; ".join(lines)}.')
  source = Source(
    origin=os.path.basename(os.path.abspath(root)),
    files=told.files,
    labels=None,
    groups=told.groups,
    junk={kind: len(paths) for kind, paths in left_out.items()},
    stamp=_stamp(root, told.files),
    read=functools.partial(_read, root, options, odd),
    refused=told.refused,
    left_out=left_out,
    place=os.path.abspath(root),
  )
  return with_printable_names(source)


def _list(
  root: str, skip_masks: bool
) -> tuple[list[str], dict[str, str], dict[str, list[str]]]:
  """Files to read, the readers of those with a wrong name, what is left out."""
  found = listing.walk(root)
  files: list[str] = []
  odd: dict[str, str] = {}
  left_out = defaultdict(list, found.left_out)
  for file in found.files:
    kind = _kind_of_content(os.path.join(root, file))
    if not kind:
      left_out[listing.ending(file)].append(file)
      continue
    files.append(file)
    if kind != _kind(file):
      odd[file] = kind
  if skip_masks:
    aside = dict.fromkeys(masks.derivatives(files), masks.DERIVATIVES)
    aside |= dict.fromkeys(masks.find(files), masks.MASKS)
    for file in files:
      if file in aside:
        left_out[aside[file]].append(file)
    files = [file for file in files if file not in aside]
  return files, odd, dict(left_out)


def _tell(
  root: str,
  files: Sequence[str],
  odd: Mapping[str, str],
  left_out: Mapping[str, Sequence[str]],
  skip_masks: bool,
) -> None:
  """Says what is left out and what is odd about names."""
  logger = log.get_logger()
  lines = listing.describe(left_out)
  if lines:
    level = (
      logging.INFO
      if listing.HARMLESS.issuperset(left_out)
      else (logging.WARNING)
    )
    logger.log(level, 'Left out of %s: %s.', root, '; '.join(lines))
  if odd:
    file, kind = next(iter(odd.items()))
    logger.warning(
      '%d files of %s are not what their names say, e.g. %s is %s: they are '
      'read by their content.',
      len(odd),
      root,
      file,
      _SAID[kind],
    )
  folded = Counter(file.casefold() for file in files)
  alike = sorted(
    (f for f in files if folded[f.casefold()] > 1), key=str.casefold
  )
  if alike:
    logger.warning(
      '%d files of %s differ in upper and lower case only, e.g. %s and %s: a '
      'copy on another system would lose some.',
      len(alike),
      root,
      *alike[:2],
    )
  alone = masks.named_so(files) if skip_masks else []
  if alone:
    logger.warning(
      '%d files of %s are called like masks, e.g. %s, but no picture that they '
      'belong to is found: they are taken for pictures.',
      len(alone),
      root,
      alone[0],
    )


def _stamp(root: str, files: Sequence[str]) -> str:
  digest = hashlib.sha256()
  for file in files:
    path = os.path.join(root, file)
    # A link that leads nowhere is stamped as a link; reading it fails later.
    stat = os.stat(path) if os.path.exists(path) else os.lstat(path)
    digest.update(os.fsencode(file))  # which need not be UTF-8
    digest.update(f'\0{stat.st_size}\0{stat.st_mtime_ns}\0'.encode())
  return digest.hexdigest()


def _kind(name: str) -> str:
  """What reads a listed file; one without a picture's ending is DICOM."""
  if name.lower().endswith(decode.SUFFIXES):
    return 'picture'
  return 'nifti' if name.lower().endswith(nifti.SUFFIXES) else 'dicom'


# What is told of a file that is called otherwise, and the name it is read by.
_SAID = {
  'picture': 'a picture',
  'dicom': 'DICOM',
  'nifti': 'NIfTI',
  'plain nifti': 'NIfTI without compression',
  'packed nifti': 'compressed NIfTI',
}


def _kind_of_content(path: str) -> str:
  """What reads a file, '' for nothing: `_kind` where the content agrees."""
  name = path.lower()
  known = decode.SUFFIXES + dicom.SUFFIXES + nifti.SUFFIXES
  said = _kind(path) if name.endswith(known) else ''
  # Scanners and archives write DICOM without an ending, or with a number's.
  if dicom.is_marked(path):
    return 'dicom'
  found = _nifti_of_content(path)
  if said == 'nifti':
    named = 'packed nifti' if name.endswith('.gz') else 'plain nifti'
    return found if found and found != named else said
  if found:
    return found
  if said == 'picture':
    return said
  return 'picture' if decode.is_picture(path) else said


def _nifti_of_content(path: str) -> str:
  """Whether a file has NIfTI's mark, packed or not; '' for neither."""
  try:
    with open(path, 'rb') as f:
      head = f.read(_HEADER_BYTES)
    packed = head[:2] == b'\x1f\x8b'
    if packed:
      with gzip.open(path) as f:
        head = f.read(_HEADER_BYTES)
  except (OSError, EOFError, zlib.error):
    return ''
  if head[344:348] not in _NIFTI_MARKS and head[4:8] not in _NIFTI_MARKS:
    return ''
  return 'packed nifti' if packed else 'plain nifti'


def _read(
  root: str,
  options: volumes.Options,
  odd: Mapping[str, str],
  file: str,
  channels: int,
) -> list[decode.Picture]:
  """Reads a file by its name, or by its content where the name is wrong."""
  path, kind = os.path.join(root, file), odd.get(file) or _kind(file)
  if kind == 'dicom':
    pictures = dicom.read(path, options)
  elif 'nifti' in kind:
    pictures = nifti.read(path, options)
  else:
    with open(path, 'rb') as f:
      pictures = [decode.read_image(f.read(), channels)]
  if file not in odd:
    return pictures
  return [p._replace(rules=(*p.rules, 'misnamed')) for p in pictures]

"""Masks: files that are named like a picture which lies beside them.

A name alone proves nothing. It counts where the picture is there that the mask
belongs to: of the same name without the word, or in another folder.
"""

import bisect
from collections import defaultdict
from collections.abc import Mapping, Sequence
import functools
import re
from typing import NamedTuple

from micdiffrep_jax.data import identity

MASKS = 'masks'
DERIVATIVES = 'derivatives'
_WORD = (
  r'(?:masks?|segm?|segmentations?|segmented|labels?|labelmap|gt|'
  r'ground[ _-]?truths?|manual|rois?|contours?|annotations?|annot|superpixels|'
  r'[dp]seg|probseg)'
)
_SIGN = r'[ _.\-]+'
# x_mask, x_mask_1, x-seg, x_groundtruth; mask_x, segmentation-12.
_AFTER = re.compile(
  rf'^(?P<base>.+?){_SIGN}{_WORD}(?:(?:{_SIGN})?\(?\d{{1,3}}\)?)?$',
  re.IGNORECASE,
)
_BEFORE = re.compile(rf'^{_WORD}{_SIGN}(?P<base>.+)$', re.IGNORECASE)
# masks, GroundTruth, labelsTr, annotations, ISIC_Task1_Training_GroundTruth
_FOLDER = re.compile(
  rf'^(?:.*{_SIGN})?{_WORD}(?:(?:{_SIGN})?(?:tr|ts|train|val|test|png|images?))?$',
  re.IGNORECASE,
)
# A class folder `mask` beside one `nomask` holds no masks of its neighbour.
_PICTURES = re.compile(
  rf'^(?:.*{_SIGN})?(?:images?|imgs?|pictures?|photos?|scans?|slices?|raw|'
  r'originals?|inputs?|data|volumes?|frames?|jpe?gs?|pngs?)'
  rf'(?:(?:{_SIGN})?(?:tr|ts|train|val|test))?$',
  re.IGNORECASE,
)
_BIDS = re.compile(r'^(sub-[A-Za-z0-9]+)(?=[_.]|$)')


class _Names(NamedTuple):
  """Stems of the pictures of a folder, sorted, and of their mirrored ones."""

  file: dict[str, str]  # by stem
  stems: list[str]
  mirrored: list[str]


def find(files: Sequence[str]) -> dict[str, str]:
  """{mask: a picture that it belongs to} among paths with '/'."""
  by_folder: dict[str, dict[str, str]] = defaultdict(dict)
  by_subject: dict[str, str] = {}
  masks = []
  for file in files:
    folder, stem = _split(file)
    if _base(stem) or _mask_levels(folder):
      masks.append((file, folder, stem))
      continue
    by_folder[folder].setdefault(stem, file)
    subject = _BIDS.match(stem)
    if subject:
      by_subject.setdefault(subject.group(1), file)
  names = {
    folder: _Names(table, sorted(table), sorted(stem[::-1] for stem in table))
    for folder, table in by_folder.items()
  }
  near = {
    folder: [names[f] for f in _neighbours(folder, names)]
    for folder in {folder for _, folder, _ in masks}
  }
  found = {}
  for file, folder, stem in masks:
    base, subject = _base(stem), _BIDS.match(stem)
    if subject and (base or _mask_levels(folder)):
      partner = by_subject.get(subject.group(1), '')
    else:
      partner = next(
        filter(None, (_of(n, stem, base) for n in near[folder])), ''
      )
      partner = partner or _only_above(folder, names)
    if partner:
      found[file] = partner
  return found


def _neighbours(folder: str, names: Mapping[str, _Names]) -> list[str]:
  """Folders in which the pictures of a folder's masks may lie."""
  if not _mask_levels(folder):
    return [folder] if folder in names else []
  parts = folder.split('/')
  found = []
  for level in _mask_levels(folder)[::-1]:
    rest = parts[:level] + parts[level + 1 :]
    if '/'.join(rest) in names:
      found.append('/'.join(rest))
    for other in names:
      at = other.split('/')
      if (
        len(at) == len(parts)
        and at[:level] + at[level + 1 :] == rest
        and _PICTURES.match(at[level])
      ):
        found.append(other)
  return found


def _only_above(folder: str, names: Mapping[str, _Names]) -> str:
  """The one picture in the folder of a folder of masks; '' for none or more.

  So are the organs of one volume kept: ct.nii.gz, segmentations/liver.nii.gz.
  """
  parts = folder.split('/')
  for level in _mask_levels(folder)[::-1]:
    above = names.get('/'.join(parts[:level]))
    if above and len(above.file) == 1:
      return above.file[above.stems[0]]
  return ''


def _of(names: _Names, stem: str, base: str) -> str:
  """The picture of a mask: x or x_t1 for x_seg, volume-12 for mask-12."""
  for name in filter(None, (base, stem)):
    if name in names.file:
      return names.file[name]
  after = bool(_AFTER.match(stem)) or not base
  base = base or stem
  stems = names.stems if after else names.mirrored
  for sign in ' _.-':
    start = (base if after else base[::-1]) + sign
    at = bisect.bisect_left(stems, start)
    if at < len(stems) and stems[at].startswith(start):
      return names.file[stems[at] if after else stems[at][::-1]]
  return ''


def beside(suspects: Sequence[str], files: Sequence[str]) -> dict[str, str]:
  """{suspect: picture of its name}, whatever word tells the two apart.

  suspects are files of two grey levels among `files`. A picture has the name
  where it begins the suspect's in the same folder, or is the same elsewhere.
  """
  aside = set(suspects)
  plain: dict[str, dict[str, str]] = defaultdict(dict)
  anywhere: dict[str, str] = {}
  for file in files:
    if file not in aside:
      folder, stem = _split(file)
      plain[folder][stem] = file
      anywhere.setdefault(stem, file)
  found = {}
  for file in dict.fromkeys(suspects):
    folder, stem = _split(file)
    here = plain[folder]
    ends = [i for i, sign in enumerate(stem) if i and sign in ' _.-']
    partner = next((here[stem[:i]] for i in ends if stem[:i] in here), '')
    partner = partner or (
      anywhere.get(stem, '') if _mask_levels(folder) else ''
    )
    if partner:
      found[file] = partner
  return found


def named_so(files: Sequence[str]) -> list[str]:
  """Files called like masks, or in a folder that is, whatever lies near."""
  split = {f: _split(f) for f in files}
  return [f for f, (at, x) in split.items() if _base(x) or _mask_levels(at)]


def derivatives(files: Sequence[str]) -> list[str]:
  """Files below a folder `derivatives` of a BIDS tree with raw files."""
  below = [f for f in files if 'derivatives' in f.lower().split('/')[:-1]]
  aside = set(below)
  raw = any(_BIDS.match(_split(f)[1]) for f in files if f not in aside)
  return below if raw else []


def _split(file: str) -> tuple[str, str]:
  """Folder and stem of a path; '.nii.gz' is one ending."""
  folder, _, name = file.rpartition('/')
  return folder, identity.stem(name)


def _base(stem: str) -> str:
  """The picture's name in that of a mask; '' for no mask."""
  match = _AFTER.match(stem) or _BEFORE.match(stem)
  return match.group('base') if match else ''


@functools.lru_cache(1 << 16)  # of few folders with many files
def _mask_levels(folder: str) -> tuple[int, ...]:
  """Levels of a path at which a folder is called for masks."""
  return tuple(i for i, x in enumerate(folder.split('/')) if _FOLDER.match(x))

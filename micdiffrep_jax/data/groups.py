"""What files say of their pictures: the class, and what must stay together.

A class is a folder's name; here are the slips found that would make one class
too many. What stays together in a split is a source with its variants, or a
patient.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import csv
import difflib
import os
import re
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

# G_12.jpg is a picture as published, G_12_BR_.jpg one of its variants.
CRYSTAL_CLEAN = r'^(?P<group>[A-Za-z]+_\d+)(?P<variant>.*)$'
PRESETS = {'crystal_clean': CRYSTAL_CLEAN}
CHOICES = ('', 'file', 'parent')
_LETTERS = re.compile(r'[\W_]+')


class Units(NamedTuple):
  """Per file: unit (before near-duplicates are joined), source, variant."""

  unit: list[str]
  source: list[str]
  variant: list[str]  # '' = the untouched source


def assign(
  files: Sequence[str],
  known: Sequence[str],
  group_csv: str = '',
  group_regex: str = '',
  group_by: str = '',
) -> Units:
  """Groups files by a table, the source itself, a pattern or their folder.

  The first that is given wins: `group_csv` (columns file, group), groups that
  the source knows, `group_regex` (a preset's name or a pattern with a group
  called `group`, and optionally `source` and `variant`; it sees the name
  without its ending, or the path where it contains '/'), `group_by` ('parent'
  or 'file'). Raises ValueError where none is given or a file has no group.
  """
  if group_by not in CHOICES:
    raise ValueError(
      f'config.data.group_by={group_by!r}; one of {CHOICES}. A pattern goes '
      'into config.data.group_regex.'
    )
  stems = [os.path.splitext(f)[0] for f in files]
  alone = Units(list(known), list(files), [''] * len(files))
  if group_csv:
    return alone._replace(unit=_from_csv(group_csv, files))
  if files and all(known):
    return alone
  if group_regex:
    return _from_regex(PRESETS.get(group_regex, group_regex), stems, files)
  if group_by == 'parent':
    return alone._replace(unit=[os.path.dirname(f) for f in files])
  if group_by == 'file':
    return alone._replace(unit=list(files))
  raise ValueError(
    'Nothing says which pictures belong together (one patient, one source '
    'picture), and a split by single files would leak. Set one of '
    "--config.data.group_csv=TABLE, --config.data.group_regex='^(patient"
    f"\\d+)' (presets: {sorted(PRESETS)}), --config.data.group_by=parent; or "
    'accept single files with --config.data.group_by=file.'
  )


def _from_csv(path: str, files: Sequence[str]) -> list[str]:
  with open(os.path.expanduser(path), newline='') as f:
    table = list(csv.DictReader(f))
  if not table or not {'file', 'group'} <= set(table[0]):
    raise ValueError(
      f'config.data.group_csv={path!r} needs the columns file and group.'
    )
  group_of = {row['file']: row['group'] for row in table}
  missing = [f for f in files if not group_of.get(f)]
  if missing:
    raise ValueError(
      f'config.data.group_csv={path!r} has no group for {len(missing)} files: '
      f'{missing[:5]}. Files are named by their path below the source.'
    )
  return [group_of[f] for f in files]


def _from_regex(
  pattern: str, stems: Sequence[str], files: Sequence[str]
) -> Units:
  try:
    regex = re.compile(pattern)
  except re.error as e:
    raise ValueError(
      f'config.data.group_regex={pattern!r} is no pattern: {e}'
    ) from None
  if not regex.groups:
    regex = re.compile(f'({pattern})')
  names = regex.groupindex
  units = Units([], [], [])
  missed = []
  for stem, file in zip(stems, files, strict=True):
    match = regex.search(stem if '/' in pattern else os.path.basename(stem))
    group = match.group('group' if 'group' in names else 1) if match else None
    if match is None or not group:
      missed.append(file)
      continue
    units.unit.append(group)
    if 'variant' not in names:
      units.source.append(file)
      units.variant.append('')
      continue
    units.source.append(match.group('source') if 'source' in names else group)
    units.variant.append((match.group('variant') or '').strip('_'))
  twice = [
    k for k, n in Counter(zip(units.source, units.variant)).items() if n > 1
  ]
  if twice and not missed:
    raise ValueError(
      f'config.data.group_regex={pattern!r} makes one picture of several '
      f'files: {twice[:5]}. A pattern that contains "/" sees the folders too.'
    )
  if missed:
    raise ValueError(
      f'config.data.group_regex={pattern!r} does not match {len(missed)} of '
      f'{len(files)} files: {missed[:5]}.'
    )
  return units


def join(units: np.ndarray | Sequence[str], pairs: np.ndarray) -> np.ndarray:
  """Joins units that share a pair of rows.

  units (n,) names; pairs (m, 2) row numbers -> (n,) int32 group numbers, in
  order of first appearance.
  """
  names, unit = np.unique(np.asarray(units, dtype=str), return_inverse=True)
  number = components(len(names), unit[np.asarray(pairs, int).reshape(-1, 2)])
  return _by_appearance(number[unit])


def components(n: int, pairs: np.ndarray) -> np.ndarray:
  """Connected components of n nodes: (m, 2) edges -> (n,) int32."""
  pairs = np.asarray(pairs, int).reshape(-1, 2)
  graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (n, n))
  return connected_components(graph, directed=False)[1].astype(np.int32)


def _by_appearance(number: np.ndarray) -> np.ndarray:
  _, first, inverse = np.unique(number, return_index=True, return_inverse=True)
  return np.argsort(np.argsort(first)).astype(np.int32)[inverse]


def parse_class_map(pairs: Sequence[str]) -> dict[str, str]:
  """('old=new', ...) -> {'old': 'new'}; raises ValueError for another form."""
  table = {}
  for pair in pairs:
    old, sign, new = pair.partition('=')
    if not sign or not old or not new:
      raise ValueError(
        f'config.data.class_map has {pair!r}; each entry is "old=new".'
      )
    table[old] = new
  return table


def label_files(
  files: Sequence[str],
  classes: Sequence[str] = (),
  class_map: Mapping[str, str] | None = None,
  parent_is_group: bool = False,
) -> list[str]:
  """The class of each relative path 'a/b/file.png'.

  Without `classes` it is the last folder, or the one before it where the last
  folder is a patient's. With `classes` it is the deepest folder that is one of
  them. `class_map` renames a folder first. Raises ValueError for a file outside
  any class and for a folder that is nearly another class.
  """
  class_map = class_map or {}
  labels: dict[str, str] = {}
  for file in files:
    folder = file.rpartition('/')[0]
    if folder not in labels:
      parts = [class_map.get(p, p) for p in folder.split('/')] if folder else []
      labels[folder] = _class_of(folder, parts, classes, parent_is_group)
  if classes:
    absent = sorted(set(classes) - set(labels.values()))
    if absent:
      raise ValueError(
        f'No file belongs to {absent} of config.data.classes='
        f'{tuple(classes)}; the folders hold {sorted(set(labels.values()))}.'
      )
  else:
    _check_names(set(labels.values()))
  return [labels[file.rpartition('/')[0]] for file in files]


def _class_of(
  folder: str,
  parts: Sequence[str],
  classes: Sequence[str],
  parent_is_group: bool,
) -> str:
  if classes:
    for part in reversed(parts):
      if part in classes:
        return part
    raise unknown_class(parts[-1] if parts else '', classes)
  if parent_is_group:
    parts = parts[:-1]
  if not parts:
    raise ValueError(
      f'Files in {folder or "the top folder"!r} have no class folder'
      + (' above their group folder' if parent_is_group else '')
      + '. Move them into one, or give an unlabelled folder as '
      'config.data.unlabelled.'
    )
  return parts[-1]


def unknown_class(name: str, classes: Sequence[str]) -> ValueError:
  """The error for a class that config.data.classes does not have."""
  folded = {_fold(n): n for n in classes}
  near = difflib.get_close_matches(_fold(name), list(folded), n=1, cutoff=0.5)
  return ValueError(
    f'Unknown class {name!r}; config.data.classes has {tuple(classes)}.'
    + (f' Did you mean {folded[near[0]]!r}?' if near else '')
    + ' Rename the folder, map it with '
    f'--config.data.class_map="(\'{name}=CLASS\',)", or add it to the classes.'
  )


def _check_names(names: set[str]) -> None:
  """Raises ValueError where two class names look like one misspelt name.

  Names count as one when they agree in letters and digits but for case and
  signs, or differ by one edit (two in long names) that touches no digit.
  """
  ordered = sorted(names)
  for i, a in enumerate(ordered):
    for b in ordered[i + 1 :]:
      if _looks_alike(_fold(a), _fold(b)):
        raise ValueError(
          f'Classes {a!r} and {b!r} look like one class misspelt. Rename a '
          f'folder, map it with --config.data.class_map="(\'{b}={a}\',)", or, '
          'if they are two, name all classes in config.data.classes.'
        )


def _fold(name: str) -> str:
  return _LETTERS.sub('', name).lower()


def _looks_alike(a: str, b: str) -> bool:
  if a == b:
    return True
  if re.sub(r'\d', '', a) == re.sub(r'\d', '', b):
    return False  # grade1 and grade2
  shorter = min(len(a), len(b))
  allowed = 2 if shorter >= 8 else 1 if shorter >= 4 else 0
  return abs(len(a) - len(b)) <= allowed and _edits(a, b) <= allowed


def _edits(a: str, b: str) -> int:
  """Edit distance with swaps of neighbours (optimal string alignment)."""
  rows = [list(range(len(b) + 1))]
  for i, x in enumerate(a, 1):
    row = [i]
    for j, y in enumerate(b, 1):
      cost = min(row[j - 1] + 1, rows[-1][j] + 1, rows[-1][j - 1] + (x != y))
      if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
        cost = min(cost, rows[-2][j - 2] + 1)
      row.append(cost)
    rows.append(row)
  return rows[-1][-1]

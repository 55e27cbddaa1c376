"""What must stay together in a split: sources, their variants, groups."""

from collections import Counter
from collections.abc import Sequence
import csv
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

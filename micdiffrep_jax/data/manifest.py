"""The table of a dataset: what each prepared image is."""

from collections.abc import Mapping, Sequence
import hashlib
import json
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import groups, splits
from micdiffrep_jax.data.gather import Gathered
from micdiffrep_jax.data.sources import Source

# Settings that the ids and pixels themselves show.
_SHOWN_BY_IMAGES = ('slices', 'ct_window', 'group_field')


def build(
  found: Gathered,
  listed: Sequence[Source],
  labels: Sequence[Sequence[str]],
  data: ConfigDict,
) -> dict[str, np.ndarray]:
  """Columns (n,) for all rows, but for group and splits.

  Ids are paths below the labelled source; those of an unlabelled source begin
  with its name. Unlabelled pictures stand alone.
  """
  n = len(found.rows)
  table: dict[str, list] = {
    name: []
    for name in ('id', 'file', 'origin', 'class', 'width', 'height', 'sha256')
  }
  for row in found.rows:
    source = listed[row.origin]
    file = source.files[row.file]
    label = labels[row.origin][row.file]
    name = file + (f'#{row.part}' if row.part else '')
    table['id'].append(name if label else f'{source.origin}:{name}')
    table['file'].append(file)
    table['origin'].append(source.origin)
    table['class'].append(label)
    table['width'].append(row.width)
    table['height'].append(row.height)
    table['sha256'].append(row.sha256)
  columns = {name: np.array(column) for name, column in table.items()}
  columns['index'] = np.arange(n)
  _add_units(columns, found, listed, data)
  if len(np.unique(columns['id'])) != n:
    raise ValueError('Two sources have one name; rename a folder.')
  return columns


def _add_units(
  columns: dict[str, np.ndarray],
  found: Gathered,
  listed: Sequence[Source],
  data: ConfigDict,
) -> None:
  """Adds unit, source and variant; slices of one file go with their file."""
  unit, source = columns['id'].astype(object), columns['id'].astype(object)
  variant = np.full(len(unit), '', object)
  rows = np.flatnonzero(columns['class'] != '')
  files, first, back = np.unique(
    columns['file'][rows], return_index=True, return_inverse=True
  )
  if len(rows):
    any_rule = data.group_csv or data.group_regex or data.group_by
    known = []
    for i in rows[first]:
      row = found.rows[i]
      group = row.group or listed[row.origin].groups[row.file]
      # A volume is a group of its own where nothing better is said.
      volume = columns['file'][i] if row.part and not any_rule else ''
      known.append(group or volume)
    made = groups.assign(
      files.tolist(), known, data.group_csv, data.group_regex, data.group_by
    )
    parts = [f'#{r.part}' if r.part else '' for r in found.rows]
    for at, i in zip(back, rows, strict=True):
      unit[i] = made.unit[at]
      source[i] = made.source[at] + parts[i]
      variant[i] = made.variant[at]
  columns['unit'] = unit.astype(str)
  columns['source'] = source.astype(str)
  columns['variant'] = variant.astype(str)


def counts(
  table: Mapping[str, np.ndarray], classes: Sequence[str]
) -> dict[str, dict[str, dict[str, int]]]:
  """{split: {part: {class: images}}}; unlabelled images count as ''."""
  names = (*classes, '') if (table['class'] == '').any() else tuple(classes)
  return {
    split: {
      part: {
        name: int(((table[split] == part) & (table['class'] == name)).sum())
        for name in names
      }
      for part in (*splits.PARTS, splits.EXCLUDED)
    }
    for split in splits.NAMES
  }


def fingerprint(
  table: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> str:
  """sha256 of ids, labels, pixel hashes and settings, wherever they lie."""
  kept = {k: v for k, v in settings.items() if k not in _SHOWN_BY_IMAGES}
  digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
  for row in zip(table['id'], table['class'], table['sha256'], strict=True):
    digest.update('\0'.join((*row, '')).encode())
  return digest.hexdigest()

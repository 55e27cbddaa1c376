"""What a run's dataset holds, as blocks of a page."""

from typing import Any

import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import manifest as tables
from micdiffrep_jax.data import splits, store
from micdiffrep_jax.data.sources import phantom
from micdiffrep_jax.draw.page import Block, Facts, Table, Text
from micdiffrep_jax.draw.result import Run


def fingerprint(run: Run) -> str:
  """The fingerprint of the data that a run used, '' where it names none."""
  record = run.record or {}
  for name in ('data', 'dataset'):
    if isinstance(record.get(name), dict) and record[name].get('fingerprint'):
      return record[name]['fingerprint']
  return record.get('fingerprint') or ''


def _path(record: dict[str, Any]) -> str:
  """Where a run says its data lie; a phantom's folder is looked up."""
  config = record.get('config') or {}
  spec = (
    (record.get('data') or {}).get('path')
    or record.get('path')
    or (config.get('data') or {}).get('path')
    or ''
  )
  return spec if phantom.arguments_of(spec) is None else data.locate(spec)


def counts(run: Run) -> list[Block]:
  """Images per class and part of each split, groups, duplicates, refusals."""
  assert run.record is not None
  path = _path(run.record)
  try:
    info = store.read_info(path)
    manifest = store.read_manifest(path)
  except (OSError, ValueError) as e:
    return [Text(f'The data of {run.name} cannot be looked up: {e}', 'warning')]
  if info.fingerprint != fingerprint(run):
    text = f'The data in {path} are no longer those of {run.name}.'
    return [Text(text, 'warning')]
  used = run.record.get('data') or run.record.get('dataset') or {}
  split = used.get('split', '')
  near = info.near_duplicates
  pairs: list[tuple[str, Any]] = [
    ('dataset', path),
    (
      'images',
      f'{info.images}, {info.size_px} px, {info.channels} channel(s)',
    ),
    ('classes', ', '.join(info.classes)),
    ('fingerprint', info.fingerprint),
    ('split used', split),
    ('files refused', info.rejected),
    ('near-duplicate pairs', near.get('pairs')),
    ('sources with a partner', near.get('sources_with_a_partner')),
    ('largest near-duplicate group', near.get('largest_group')),
    ('images left out, two labels', near.get('dropped')),
  ]
  blocks: list[Block] = [
    Facts([(k, v) for k, v in pairs if v not in (None, '')])
  ]
  table = tables.counts(manifest, info.classes)
  for name in dict.fromkeys(filter(None, (split, *splits.NAMES))):
    blocks.append(_parts(name, table[name], manifest))
  return blocks


def _parts(
  name: str, parts: dict[str, dict[str, int]], manifest: dict[str, np.ndarray]
) -> Table:
  labels = list(next(iter(parts.values())))
  return Table(
    [
      'part',
      *(x or '(unlabelled)' for x in labels),
      'images',
      'groups',
      'sources',
    ],
    [
      [
        part,
        *n.values(),
        sum(n.values()),
        len(np.unique(manifest['group'][manifest[name] == part])),
        int(((manifest[name] == part) & (manifest['variant'] == '')).sum()),
      ]
      for part, n in parts.items()
      if sum(n.values())
    ],
    f'Split {name!r}.',
  )

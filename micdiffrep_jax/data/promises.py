"""What a dataset's manifest says of its splits: leaks, conflicts, balance.

Letters: N images of the dataset.
"""

from typing import Any

import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import splits
from micdiffrep_jax.run.checks import lookup

# What a split promises not to have on both sides. `leaky` promises nothing.
PROMISES: dict[str, tuple[str, ...]] = {
  'patient': ('unit', 'patient_id', 'near', 'group', 'sha256'),
  'grouped': ('unit', 'near', 'sha256'),
  'paper': ('unit',),
  'leaky': (),
  'given': ('unit', 'patient_id', 'near', 'sha256'),
}
WORDS = {
  'unit': 'sources',
  'patient_id': 'patients',
  'near': 'near-duplicate groups',
  'group': 'groups of patients and near-duplicates',
  'sha256': 'pictures of equal pixels',
}
_SHOWN = 5


def check(dataset: data.Dataset, split: str) -> list[str]:
  """Reasons why a split cannot be trusted; empty where it keeps its promise.

  Reads the manifest, not the images, so it is cheap enough for every run.
  Raises ValueError for an unknown split.
  """
  promised = lookup(PROMISES, split, 'split', '--config.data.split')
  data.rows(dataset, split, 'train')  # raises where it has no such split
  reasons = []
  for column in promised:
    found = crossings(dataset, split, column)
    if found:
      examples = ', '.join(
        ' / '.join(ids[:3]) for ids in list(found.values())[:_SHOWN]
      )
      reasons.append(
        f'{len(found)} {WORDS[column]} lie in several parts of split '
        f'{split!r}: {examples}'
      )
  reasons += _conflicts(dataset, split) + _absent(dataset, split)
  if 'near' in promised and _labelled(dataset).any():
    search = dataset.info.settings.get('near_duplicates', {})
    if not search.get('enabled', True):
      reasons.append(
        'near-duplicates were never searched '
        '(config.data.near_duplicates.enabled=False), so groups may repeat'
      )
  return reasons


def refuse(dataset: data.Dataset, split: str, accepted: bool = False) -> list:
  """Returns the reasons of `check`; raises ValueError unless accepted."""
  reasons = check(dataset, split)
  if reasons and not accepted:
    raise ValueError(
      f'The audit of {dataset.path} fails:\n  '
      + '\n  '.join(reasons)
      + '\nPrepare it again, or go on with --config.allow_failed_audit=True.'
    )
  return reasons


def crossings(
  dataset: data.Dataset, split: str, column: str
) -> dict[str, list[str]]:
  """Values of a manifest column that lie in several parts, with their ids.

  Pictures of one colour are equal to each other without being the same, so
  they do not count for `sha256`. Unlabelled images count for `sha256` only:
  they stand alone.
  """
  manifest = dataset.manifest
  rows = np.flatnonzero(manifest[split] != splits.EXCLUDED)
  if column != 'sha256':
    rows = rows[_labelled(dataset)[rows]]
    rows = rows[manifest[column][rows] != '']  # a patient that nobody knows
  if not len(rows):
    return {}
  values, number = np.unique(manifest[column][rows], return_inverse=True)
  seen = np.zeros((len(values), len(splits.PARTS)), bool)
  for p, part in enumerate(splits.PARTS):
    seen[number[manifest[split][rows] == part], p] = True
  torn = np.flatnonzero(seen.sum(1) > 1)
  if not len(torn):
    return {}
  order = np.argsort(number, kind='stable')
  starts = np.searchsorted(number[order], np.arange(len(values) + 1))
  found = {}
  for value in torn:
    members = rows[order[starts[value] : starts[value + 1]]]
    if column == 'sha256' and _flat(dataset, members[0]):
      continue
    # One of each part first, so that a short list shows the crossing.
    _, first = np.unique(manifest[split][members], return_index=True)
    rest = np.setdiff1d(np.arange(len(members)), first)
    ids = manifest['id'][members[np.concatenate([first, rest])]]
    found[str(values[value])] = ids.tolist()
  return found


def held_out_twins(dataset: data.Dataset, split: str) -> dict[str, int]:
  """Untouched test sources, and how many share something with train or val."""
  manifest = dataset.manifest
  labelled = _labelled(dataset)
  test = (manifest[split] == 'test') & labelled & (manifest['variant'] == '')
  seen = np.isin(manifest[split], ('train', 'val'))
  counts = {'test_sources': int(test.sum())}
  for column in WORDS:
    values = manifest[column][seen]
    known = np.isin(manifest[column][test], values[values != ''])
    counts[f'{column}_seen'] = int(known.sum())
  return counts


def label_conflicts(dataset: data.Dataset) -> list[list[str]]:
  """Ids of pictures with equal pixels and several labels, used or not."""
  manifest = dataset.manifest
  rows = np.flatnonzero(_labelled(dataset))
  values, number = np.unique(manifest['sha256'][rows], return_inverse=True)
  label = data.labels(dataset)[rows]
  low = np.full(len(values), len(dataset.classes))
  high = np.full(len(values), -1)
  np.minimum.at(low, number, label)
  np.maximum.at(high, number, label)
  return [
    manifest['id'][rows[number == value]].tolist()
    for value in np.flatnonzero(low < high)
    if not _flat(dataset, rows[number == value][0])
  ]


def sizes(dataset: data.Dataset) -> dict[str, dict[str, Any]]:
  """Original width and height of the untouched sources of each class."""
  manifest = dataset.manifest
  found: dict[str, dict[str, Any]] = {}
  for name in dict.fromkeys((*dataset.classes, '')):
    rows = (manifest['class'] == name) & (manifest['variant'] == '')
    if not rows.any():
      continue
    w, h = manifest['width'][rows], manifest['height'][rows]
    pairs, count = np.unique(np.stack([w, h]), axis=1, return_counts=True)
    common = pairs[:, count.argmax()]
    found[name or '(unlabelled)'] = {
      'images': int(rows.sum()),
      'different sizes': len(count),
      'most common': f'{common[0]} x {common[1]}',
      'share of it': float(count.max() / count.sum()),
      'smallest side': int(np.minimum(w, h).min()),
      'largest side': int(np.maximum(w, h).max()),
      'not square': int((w != h).sum()),
    }
  return found


def _labelled(dataset: data.Dataset) -> np.ndarray:
  return dataset.manifest['class'] != ''


def _flat(dataset: data.Dataset, row: int) -> bool:
  image = dataset.images[np.array([row])]
  return bool(image.min() == image.max())


def _conflicts(dataset: data.Dataset, split: str) -> list[str]:
  part = dict(zip(dataset.manifest['id'], dataset.manifest[split]))
  torn = [
    ids
    for ids in label_conflicts(dataset)
    if any(part[x] != splits.EXCLUDED for x in ids)
  ]
  if not torn:
    return []
  examples = '; '.join(' / '.join(ids[:3]) for ids in torn[:_SHOWN])
  return [f'{len(torn)} pictures carry several labels: {examples}']


def _absent(dataset: data.Dataset, split: str) -> list[str]:
  manifest = dataset.manifest
  return [
    f'class {name!r} has no {part} image in split {split!r}'
    for name in dataset.classes
    for part in splits.PARTS
    if not ((manifest['class'] == name) & (manifest[split] == part)).any()
  ]

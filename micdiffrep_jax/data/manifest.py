"""The table of a dataset: what each prepared image is, and its splits.

n: prepared images, the rows of the table.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import hashlib
import json
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import groups, identity, splits
from micdiffrep_jax.run import log

# Settings that the ids and pixels themselves show.
_SHOWN_BY_IMAGES = (
  'slices',
  'ct_window',
  'intensity',
  'group_field',
  'skip_masks',
)
# Settings that count where they are set: they are younger than fingerprints.
_IF_SET = ('layout', 'given_split', 'class_field')


class Row(NamedTuple):
  """What is known of one prepared image, besides its pixels."""

  file: str  # below its source
  origin: str  # name of the source
  label: str  # class, '' for none
  group: str  # what the file itself or its source says, '' for nothing
  part: str  # tells the pictures of one file apart
  width: int  # of the picture in the file, px
  height: int
  constant: bool  # all pixels are equal
  sha256: str  # of the prepared pixels

  @property
  def suffix(self) -> str:
    """What follows the file's name in the names of its pictures."""
    return f'#{self.part}' if self.part else ''


def build(
  rows: Sequence[Row], data: ConfigDict
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
  """Columns (n,) for all rows but near, group and splits; who named patients.

  Ids are paths below the labelled source; those of an unlabelled source begin
  with its name. Unlabelled pictures stand alone. The second result counts
  labelled images by what named their patient. Raises ValueError where patients
  are missing and where two pictures have one id.
  """
  table = {
    name: np.array([getattr(row, name) for row in rows])
    for name in ('file', 'origin', 'width', 'height', 'sha256')
  }
  table['index'] = np.arange(len(rows))
  table['class'] = np.array([row.label for row in rows])
  table['id'] = np.array(
    [('' if r.label else f'{r.origin}:') + r.file + r.suffix for r in rows]
  )
  columns, named_by = _identities(table, rows, data)
  table.update(columns)
  if len(np.unique(table['id'])) != len(rows):
    raise ValueError('Two sources have one name; rename a folder.')
  return table, named_by


def _identities(
  table: Mapping[str, np.ndarray], rows: Sequence[Row], data: ConfigDict
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
  """Columns unit, source, variant, patient_id; images by what named a patient.

  A unit is a source with its variants, or a volume with its slices.
  """
  unit, source = table['id'].astype(object), table['id'].astype(object)
  variant, patient = (np.full(len(rows), '', object) for _ in range(2))
  named_by: Counter = Counter()
  labelled = np.flatnonzero(table['class'] != '')
  files, first, back = np.unique(
    table['file'][labelled], return_index=True, return_inverse=True
  )
  if len(labelled):
    known = [rows[i].group for i in labelled[first].tolist()]
    made = identity.assign(files.tolist(), known, identity.Rules.of(data))
    for at, i in zip(back.tolist(), labelled.tolist(), strict=True):
      unit[i] = made.source[at]
      source[i] = made.source[at] + rows[i].suffix
      variant[i] = made.variant[at]
      patient[i] = made.patient[at]
      named_by[made.named_by[at]] += 1
  columns = {
    'unit': unit,
    'source': source,
    'variant': variant,
    'patient_id': patient,
  }
  return {k: v.astype(str) for k, v in columns.items()}, dict(named_by)


def join_patients(table: Mapping[str, np.ndarray]) -> np.ndarray:
  """Groups (n,) int32: near-duplicate groups joined where a patient is one."""
  pairs = groups.same_name(table['patient_id'])
  return groups.join(table['near'], pairs)


def count_patients(
  table: Mapping[str, np.ndarray], named_by: Mapping[str, int]
) -> dict[str, Any]:
  """What dataset.json says of patients; counts are of labelled images."""
  labelled = table['class'] != ''
  return {
    **identity.count_patients(table['patient_id'][labelled].tolist()),
    'groups': len(np.unique(table['group'][labelled])),
    'named_by': dict(named_by),
  }


def split_rows(
  table: Mapping[str, np.ndarray],
  usable: np.ndarray,
  seen: np.ndarray,
  data: ConfigDict,
  seed: int,
  given: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """Columns (n,) of all named splits, with `given` that of the folders too.

  usable (n,) bool; given (n,) parts, '' at unlabelled rows; seen (m, 2) pairs
  of an unlabelled row and a labelled one that it repeats: unlabelled rows train
  unless they repeat a held-out picture. Raises ValueError for classes that a
  split cannot serve.
  """
  labelled = table['class'] != ''
  rows = np.flatnonzero(labelled)
  parts = {name: np.full(len(labelled), '', '<U8') for name in splits.NAMES}
  if len(rows):
    made = splits.make_splits(
      table['class'][rows],
      splits.Units(
        table['unit'][rows], table['near'][rows], table['group'][rows]
      ),
      usable[rows],
      data.test_share,
      data.val_share,
      seed,
    )
    if given is not None:
      parts[splits.GIVEN] = np.full(len(labelled), '', '<U8')
      made[splits.GIVEN] = splits.keep_given(
        table['class'][rows],
        given[rows],
        table['group'][rows],
        usable[rows],
        {'test': data.test_share, 'val': data.val_share},
        seed,
      )
    for name, part in made.items():
      parts[name][rows] = part
  return {
    name: splits.exclude_seen(part, ~labelled, seen, table['group'])
    for name, part in parts.items()
  }


def exclude_patients(
  table: dict[str, np.ndarray], rows: Sequence[Row], data: ConfigDict
) -> None:
  """Takes unlabelled rows of held-out patients out of the splits by patient.

  A name that both bear is enough, whatever sources they come from.
  """
  labelled = table['class'] != ''
  if labelled.all():
    return
  known = [row.group for row in rows]
  names = identity.claims(
    table['file'].tolist(), known, identity.Rules.of(data)
  )
  for split in {'patient', splits.GIVEN} & set(table):
    held_out = labelled & np.isin(table[split], ('val', 'test'))
    theirs = set(table['patient_id'][held_out].tolist()) - {''}
    theirs.update(*(names[i] for i in np.flatnonzero(held_out)))
    shared = [i for i in np.flatnonzero(~labelled) if names[i] & theirs]
    if shared:
      table[split][shared] = splits.EXCLUDED
      log.get_logger().warning(
        '%d unlabelled images bear the name of a patient in val or test, e.g. '
        '%s: they are left out of split %r.',
        len(shared),
        table['id'][shared[0]],
        split,
      )


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
    for split in splits.ALL
    if split in table
  }


def fingerprint(
  table: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> str:
  """sha256 of ids, labels, pixel hashes and settings, wherever they lie."""
  kept = {
    k: v
    for k, v in settings.items()
    if k not in _SHOWN_BY_IMAGES and (v or k not in _IF_SET)
  }
  digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
  for row in zip(table['id'], table['class'], table['sha256'], strict=True):
    digest.update('\0'.join((*row, '')).encode())
  return digest.hexdigest()

"""Classes of the subjects of a BIDS tree, from its participants.tsv."""

from collections.abc import Sequence
import csv
import io
import os

from micdiffrep_jax.data import identity

TABLE = 'participants.tsv'
_NOT_KNOWN = ('', 'n/a', 'na', 'nan')
_SHOWN = 3


def classes(root: str, files: Sequence[str], field: str) -> list[str]:
  """The class of each file: the cell of its subject in the column `field`.

  '' where the table says n/a: such pictures count as unlabelled. Raises
  ValueError for a table or a column that is not there, and for files without a
  subject of the table.
  """
  path = os.path.join(root, TABLE)
  flag = f'config.data.class_field={field!r}'
  if not os.path.isfile(path):
    raise ValueError(
      f'{flag} needs {TABLE} at the top of the source; {path!r} is not there.'
    )
  table = _read(path, field, flag)
  names = [identity.subject(file) for file in files]
  odd = [f for f, n in zip(files, names, strict=True) if n not in table]
  if odd:
    raise ValueError(
      f'{flag}: {len(odd)} of {len(files)} files belong to no subject of '
      f'{path!r}, e.g. {odd[:_SHOWN]}; it has {list(table)[:_SHOWN]}.'
    )
  return [table[name] for name in names]


def _read(path: str, field: str, flag: str) -> dict[str, str]:
  """{sub-XX: class} of a table; raises ValueError for one without `field`."""
  with open(path, 'rb') as f:
    text = f.read().decode('utf-8-sig', 'replace')
  rows = csv.DictReader(io.StringIO(text, newline=''), delimiter='\t')
  columns = list(rows.fieldnames or [])
  if 'participant_id' not in columns or field not in columns:
    raise ValueError(f'{flag}: {path!r} has the columns {columns}.')
  table: dict[str, str] = {}
  for row in rows:
    subject = (row['participant_id'] or '').strip()
    subject = subject if subject.startswith('sub-') else f'sub-{subject}'
    value = (row[field] or '').strip()
    value = '' if value.lower() in _NOT_KNOWN else value
    if table.setdefault(subject, value) != value:
      raise ValueError(
        f'{flag}: {path!r} gives {subject} both {table[subject]!r} and '
        f'{value!r}.'
      )
  return table

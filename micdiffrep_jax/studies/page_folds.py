"""A cross-validation as blocks of a page."""

from collections.abc import Mapping
from typing import Any

from micdiffrep_jax.draw.page import Block, Table, difference, interval
from micdiffrep_jax.draw.result import (
  SUBSETS,
  Run,
  floors_left_out,
  patients_in_words,
  pictures,
  record_of,
  title,
)


def blocks(run: Run) -> list[Block]:
  """Encoders and heads on held-out folds, and the first against the rest."""
  record = record_of(run)
  rows, told = record['rows'], record['data']
  subsets = [name for name in SUBSETS if name in rows[0]]
  scores = Table(
    ['row', *(SUBSETS[name] for name in subsets), 'unlabelled drawn'],
    [
      [
        row_title(row),
        *(interval(row[name]['accuracy']) for name in subsets),
        _share(row.get('drawn_in_pretraining'), told['predicted']),
      ]
      for row in rows
    ],
    f'Accuracy in percent on {told["predicted"]} images of {told["groups"]} '
    'groups of train and validation, each predicted by a head that saw none of '
    'its group; 95 % interval over groups; '
    f'{patients_in_words(told.get("predicted_patients") or {})}. The test part '
    'was not read.',
  )
  differences = Table(
    ['row', 'minus ...', 'points'],
    [
      [row_title(c['a']), row_title(c['b']), difference(c['accuracy'], 'value')]
      for c in record['comparisons']
      if c['images'] == 'all'
    ],
    'Points of accuracy, paired over groups.',
    text=True,
  )
  absent = floors_left_out(record)
  tables = [scores, differences] if differences.rows else [scores]
  return [*tables, *absent, *pictures(run)]


def row_title(row: Mapping[str, Any]) -> str:
  """Encoder and head of a row of a cross-validation, and a share below 1."""
  share = row.get('share', 1.0)
  few = f'{100 * share:g} % of the labels' if share < 1 else ''
  return ', '.join(x for x in (row['encoder'], title(row['head']), few) if x)


def _share(part: int | None, whole: int) -> str:
  return '-' if part is None else f'{100 * part / whole:.0f} %'

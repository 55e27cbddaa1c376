"""Studies of few labels, of splits and of folds as blocks of a page."""

from collections.abc import Mapping
from typing import Any

from micdiffrep_jax.draw.page import (
  Block,
  Table,
  Text,
  difference,
  interval,
  pivot,
)
from micdiffrep_jax.draw.result import Run, pictures
from micdiffrep_jax.studies.report_probe import SUBSETS, record_of, title


def labels(run: Run) -> list[Block]:
  """Balanced accuracy by share of the labels, and heads beside the floors."""
  record = record_of(run)
  curves, pairs = record['curves'], record.get('comparisons', ())
  # Few labels are few patients, so variants of a picture say little more.
  subset = 'sources' if any(c['images'] == 'sources' for c in curves) else 'all'
  shares = sorted({c['share'] for c in curves})
  columns = [f'{100 * s:g} %' for s in shares]
  scores = pivot(
    (
      ((title(c['method']),), c['share'], interval(c['balanced_accuracy']))
      for c in curves
      if c['images'] == subset
    ),
    shares,
  )
  found: list[Block] = [
    Table(
      ['method', *columns],
      scores,
      f'Balanced accuracy in percent by share of the training groups, '
      f'{SUBSETS[subset]}: mean over draws of labels, 95 % interval over draws '
      'and groups.',
    )
  ]
  differences = pivot(
    (
      (
        (title(c['method']), title(c['floor'])),
        c['share'],
        _points(c['balanced_accuracy']),
      )
      for c in pairs
      if c['images'] == subset and '/' not in c['method']
    ),
    shares,
  )
  if differences:
    found.append(
      Table(
        ['method', 'minus ...', *columns],
        differences,
        'Points of balanced accuracy, paired over draws and groups.',
        text=True,
      )
    )
  return [*found, *pictures(run)]


def splits(run: Run) -> list[Block]:
  """Accuracy under each split, and what pretraining has seen of its test."""
  record = record_of(run)
  seen = record['test_images_in_pretraining']
  scores = pivot(
    (
      ((title(r['method']),), r['split'], interval(r))
      for r in record['table']
      if (r['images'], r['metric']) == ('all', 'accuracy')
    ),
    list(seen),
  )
  return [
    Table(
      ['method', *seen],
      scores,
      'Test accuracy in percent, all variants, 95 % interval over groups.',
    ),
    *(
      Text(
        f'Test images of {name!r} in pretraining: {drawn_in_words(found)}.',
        '' if found['relatives'] == 0 else 'warning',
      )
      for name, found in seen.items()
    ),
    *pictures(run),
  ]


def cross_validation(run: Run) -> list[Block]:
  """Encoders and heads on held-out folds, and the first against the rest."""
  record = record_of(run)
  rows = record['rows']
  subsets = [name for name in SUBSETS if name in rows[0]]
  told = record['data']
  differences = [
    [row_title(c['a']), row_title(c['b']), _points(c['accuracy'])]
    for c in record['comparisons']
    if c['images'] == 'all'
  ]
  return [
    Table(
      ['row', *(SUBSETS[name] for name in subsets), 'unlabelled drawn'],
      [
        [
          row_title(row),
          *(interval(row[name]['accuracy']) for name in subsets),
          _share(row.get('drawn_in_pretraining'), told['predicted']),
        ]
        for row in rows
      ],
      f'Accuracy in percent on {told["predicted"]} images of '
      f'{told["groups"]} groups of train and validation, each predicted by a '
      'head that saw none of its group; 95 % interval over groups. The test '
      'part was not read.',
    ),
    Table(
      ['row', 'minus ...', 'points'],
      differences,
      'Points of accuracy, paired over groups.',
      text=True,
    ),
    *pictures(run),
  ]


def row_title(row: Mapping[str, Any]) -> str:
  """Encoder and head of a row of a cross-validation."""
  return ', '.join(x for x in (row['encoder'], title(row['head'])) if x)


def _share(part: int | None, whole: int) -> str:
  return '-' if part is None else f'{100 * part / whole:.0f} %'


def drawn_in_words(seen: Mapping[str, Any]) -> str:
  """What an encoder has seen of a split's test part."""
  if seen['seen'] is None:
    return 'unknown: pretrained on other data'
  if not seen['relatives']:
    return 'none'
  return (
    f'{seen["seen"]} of {seen["images"]} drawn, {seen["relatives"]} with a '
    f'relative drawn (pretrained on {seen["pretrained_on"]!r})'
  )


def _points(paired: Mapping[str, float]) -> str:
  return difference({**paired, 'difference': paired['value']})

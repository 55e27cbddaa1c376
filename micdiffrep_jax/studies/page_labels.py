"""A study of few labels as blocks of a page."""

from micdiffrep_jax.draw.page import Block, difference, interval, pivot
from micdiffrep_jax.draw.result import (
  SUBSETS,
  Run,
  floors_left_out,
  pictures,
  record_of,
  title,
)


def blocks(run: Run) -> list[Block]:
  """Balanced accuracy by share of the labels, and heads beside the floors."""
  record = record_of(run)
  curves = record['curves']
  # Few labels are few patients, so variants of a picture say little more.
  subset = 'sources' if any(c['images'] == 'sources' for c in curves) else 'all'
  columns = {s: f'{100 * s:g} %' for s in sorted({c['share'] for c in curves})}
  scores = pivot(
    (
      (title(c['method']), c['share'], interval(c['balanced_accuracy']))
      for c in curves
      if c['images'] == subset
    ),
    ['method'],
    columns,
    'Balanced accuracy in percent by share of the training groups, '
    f'{SUBSETS[subset]}: mean over draws of labels, 95 % interval over draws '
    'and groups.',
  )
  differences = pivot(
    (
      (
        title(c['method']),
        title(c['floor']),
        c['share'],
        difference(c['balanced_accuracy'], 'value'),
      )
      for c in record.get('comparisons', ())
      if c['images'] == subset and '/' not in c['method']
    ),
    ['method', 'minus ...'],
    columns,
    'Points of balanced accuracy, paired over draws and groups.',
    text=True,
  )
  tables = [scores, differences] if differences.rows else [scores]
  return [*tables, *floors_left_out(record), *pictures(run)]

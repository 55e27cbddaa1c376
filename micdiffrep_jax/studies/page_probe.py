"""Probe and evaluation results as blocks of a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from micdiffrep_jax.draw import plots
from micdiffrep_jax.draw.page import (
  Block,
  Facts,
  Heading,
  Table,
  Text,
  brackets,
  difference,
  interval,
)
from micdiffrep_jax.draw.result import (
  FLOOR,
  NAMES,
  ORIGINS,
  SUBSETS,
  Run,
  count,
  drawn,
  floors_left_out,
  layer_title,
  main_row,
  patients_in_words,
  pictures,
  record_of,
  title,
)
from micdiffrep_jax.run import records
from micdiffrep_jax.scores.bootstrap import SETS, Score
from micdiffrep_jax.scores.metrics import CRITERIA, HEADLINE, METRICS, PER_CLASS
from micdiffrep_jax.scores.summary import (
  ClassSummary,
  RowSummary,
  Spread,
  Summary,
)

Record = Mapping[str, Any]
Rows = Mapping[str, RowSummary]
OF_CLASSES = ('confusion', 'reliability', 'decision')  # pictures of its section
_HEADS = {'mlp': 'MLP'}


def rows_of(record: Record) -> Rows:
  """The rows of a probe, or of what is shown as one."""
  return records.read(Rows, record['rows'])


def results(run: Run) -> list[Block]:
  """Who scored what: the headline table and what compares its rows."""
  record = record_of(run)
  main = main_row(record)
  figure = plots.intervals(
    [
      (title(name), row.test['all'].scores.get('balanced_accuracy'), name)
      for name, row in rows_of(record).items()
    ],
    main,
    'balanced accuracy, all images, %',
  )
  return [
    *_about(record),
    _headline(record),
    drawn(
      figure,
      'Balanced accuracy on all images with 95 % intervals; the dotted line '
      f'is {title(main)}.',
    ),
    *_two_by_two(record.get('two_by_two') or {}),
    *_comparisons(record),
    *floors_left_out(record),
  ]


def headline(run: Run) -> Text:
  """One sentence: the result, its interval, of whom, and the best floor."""
  record = record_of(run)
  main, rows = main_row(record), rows_of(record)
  test = rows[main].test
  subset = 'patients' if 'patients' in test else 'all'
  scored = test[subset]
  floors = [
    (row.test[subset].scores['balanced_accuracy'], name)
    for name, row in rows.items()
    if name.startswith(FLOOR) and subset in row.test
  ]
  k = len(test['all'].classes)
  whom = count(scored.n, subset.removesuffix('s').replace('all', 'image'))
  where = 'the test part' if record['data'].get('split') else 'other places'
  score = brackets(scored.scores['balanced_accuracy'])
  said = (
    f'{title(main)} has a balanced accuracy of {score} % on {whom} of {where} '
    f'({k} classes, {100 / k:.0f} % by chance)'
  )
  if floors:
    best, name = max(floors, key=lambda floor: floor[0].value)
    floor = NAMES.get(name.removeprefix(FLOOR), name)
    said += f'; the best floor, {floor}, has {brackets(best)} %'
  return Text(f'{said[0].upper()}{said[1:]}. In brackets the 95 % interval.')


def _about(record: Record) -> list[Text]:
  """What the scores are of, and what is to be known before them."""
  test = rows_of(record)[main_row(record)].test
  where, sources = record['data'], test.get('sources')
  part = (
    f'Test part of split {where["split"]!r}'
    if where.get('split')
    else f'External images of {where.get("path", "")}'
  )
  found = [
    Text(
      f'{part}: {test["all"].n} images in {test["all"].groups} groups'
      + (f', {sources.n} of them untouched pictures' if sources else '')
      + f'; {patients_in_words(where.get("patients") or {})}'
      + '. Percent, with 95 % intervals that resample groups. Everything that '
      f'is chosen was chosen on {record.get("chosen_on", "validation images")}.'
    )
  ]
  seen = record.get('pretraining_saw_test_images', 'no')
  if seen != 'no':
    text = f'Whether pretraining saw test images: {seen}.'
    found.append(Text(text, 'warning'))
  # Reasons why an audit that failed was accepted are told with the numbers.
  reasons = record.get('audit_reasons') or ()
  return found + [Text(f'Audit: {x}.', 'warning') for x in reasons]


def _headline(record: Record) -> Table:
  rows, main = rows_of(record), main_row(record)
  shown = [
    (subset, metric)
    for subset in (*SETS, 'all_without_normal')
    for metric in HEADLINE
    if any(subset in row.test for row in rows.values())
    and not (subset == 'sources' and rows[main].no_variants)
  ]
  normal = record.get('normal_class', '')
  heads = [f'{METRICS[m].title}, {SUBSETS[s].format(normal)}' for s, m in shown]
  cells = [
    [
      title(name),
      *(
        interval(row.test[s].scores.get(m) if s in row.test else None)
        for s, m in shown
      ),
      _over_seeds(row.seeds.get('accuracy')),
      _chosen(row.chosen),
    ]
    for name, row in rows.items()
  ]
  return Table(
    ['method', *heads, 'accuracy over seeds', 'chosen'],
    cells,
    strong=[list(rows).index(main)],
  )


def _over_seeds(spread: Spread | None) -> str:
  if spread is None or spread.std is None:
    return ''
  return f'{100 * spread.mean:.1f} ± {100 * spread.std:.1f}'


def _chosen(chosen: Record) -> str:
  members = chosen.get('members') or ()  # of a committee
  if members:
    return 'mean of: ' + '; '.join(map(_chosen, members))
  layers, t = chosen.get('layers'), chosen.get('timestep')
  if not layers:
    return ''
  what = layer_title(layers[0]) if len(layers) == 1 else f'{len(layers)} layers'
  t = ' + '.join(map(str, t)) if isinstance(t, list) else t
  side = chosen.get('grid')
  cells = '' if side is None else f', {side} x {side} cells'
  return f'{what}, t = {t}{cells}'


def _two_by_two(tables: Mapping[str, Record]) -> list[Table]:
  return [
    Table(
      ['head', 'best single layer', 'all layers'],
      [
        [
          _HEADS.get(kind, kind),
          *(interval(parts.get(p)) for p in ('single', 'concat')),
        ]
        for kind, parts in table.items()
      ],
      'Head and layers told apart: accuracy of '
      f'{ORIGINS.get(encoder, "the pretrained encoder")}, all images, %.',
    )
    for encoder, table in tables.items()
  ]


def _comparisons(record: Record) -> list[Table]:
  of = rows_of(record)
  rows = [
    [
      title(c['row_a']),
      title(c['row_b']),
      SUBSETS.get(c['images'], c['images']),
      difference(Score(c['difference'], c['low'], c['high'])),
      f'{c["p_value"]:.3g}',
    ]
    for c in record.get('comparisons') or ()
    if c['metric'] == 'accuracy'
    and not (c['images'] == 'sources' and of[c['row_a']].no_variants)
  ]
  table = Table(
    ['is ... better', 'than ...', 'images', 'difference, points', 'p'],
    rows,
    'Paired comparisons of accuracy on the same resampled groups.',
    text=True,
  )
  return [table] if rows else []


def classes(run: Run) -> list[Block]:
  """Per-class metrics, all metrics by subset, and pictures of OF_CLASSES."""
  record = record_of(run)
  main = main_row(record)
  row = rows_of(record)[main]
  subsets = {
    name: scored
    for name, scored in row.test.items()
    if name in SUBSETS and not (name.startswith('sources') and row.no_variants)
  }
  return [
    Heading(f'{title(main)}: all metrics'),
    _every_metric(subsets, record.get('normal_class', '')),
    *(
      _per_class(SUBSETS[name], subsets[name].per_class)
      for name in SETS
      if name in subsets
    ),
    *_calibration(row),
    *pictures(run, OF_CLASSES),
  ]


def _every_metric(subsets: Mapping[str, Summary], normal: str) -> Table:
  heads = [m.title if m.loss else f'{m.title}, %' for m in CRITERIA.values()]
  return Table(
    ['images', 'n', 'groups', *heads],
    [
      [
        SUBSETS[name].format(normal),
        scored.n,
        scored.groups,
        *(
          interval(scored.scores.get(name), *((1, 3) if m.loss else (100, 1)))
          for name, m in CRITERIA.items()
        ),
      ]
      for name, scored in subsets.items()
    ],
    f'Bins of the ECE: {subsets["all"].ece_bins}.',
  )


def _per_class(images: str, scored: Mapping[str, ClassSummary]) -> Table:
  return Table(
    ['class', 'n', *(m.title for m in PER_CLASS.values())],
    [
      [label, one.n, *(interval(one.scores.get(name)) for name in PER_CLASS)]
      for label, one in scored.items()
    ],
    f'Per class, {images}, %.',
  )


def _calibration(row: RowSummary) -> Sequence[Facts]:
  before, after = row.uncalibrated, row.test['all'].scores
  if not before:
    return ()
  pairs = [('temperature, fitted on validation', f'{row.temperature:.3f}')]
  for name in ('ece', 'nll'):
    value = f'{before[name]:.3f} and {after[name].value:.3f}'
    pairs.append((f'{METRICS[name].title} before and after it', value))
  return [Facts(pairs)]


def trials(run: Run) -> list[Block]:
  """Validation score by layer and timestep, for each encoder and head.

  Pictures that the run drew itself are shown in place of the report's own.
  """
  own = [p for p in pictures(run) if p.stem not in OF_CLASSES]
  if own:
    return [*own]
  return [
    drawn(
      plots.layers_by_timestep(
        [
          {**t, 'layers': [layer_title(x) for x in t['layers']]}
          for t in found
          if t['kind'] == kind
        ]
      ),
      f'Validation score, {_HEADS.get(kind, kind)} head, '
      f'{ORIGINS.get(encoder, "pretrained")}: best over pooling and rates.',
    )
    for encoder, found in (record_of(run).get('trials') or {}).items()
    for kind in dict.fromkeys(t['kind'] for t in found)
  ]

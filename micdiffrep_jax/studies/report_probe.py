"""Probe and evaluation results as blocks of a page."""

from typing import Any

from micdiffrep_jax.draw import report_plots
from micdiffrep_jax.draw.page import Block, Table, Text, difference, interval
from micdiffrep_jax.draw.result import Run, drawn

NAMES = {
  'linear_single': 'linear, best single layer',
  'linear_concat': 'linear, all layers',
  'mlp_single': 'MLP, best single layer',
  'mlp_concat': 'MSFA (MLP, all layers)',
  'logistic': 'logistic regression, all layers',
  'knn': 'nearest neighbours, all layers',
  'kernel': 'kernel classifier, all layers',
  'majority': 'majority class',
  'nearest_pixels': '1-NN on pixels',
  'nearest_hog': '1-NN on HOG',
  'logistic_hog': 'logistic regression on HOG',
  'kernel_pixels': 'kernel classifier on pixels',
  'kernel_hog': 'kernel classifier on HOG',
  'forest_brightness': 'forest on 10 brightness numbers',
}
ORIGINS = {'random': 'random weights', 'floor': 'floor'}
SUBSETS = {
  'all': 'all variants',
  'sources': 'unaugmented sources',
  'all_without_normal': 'all variants, without {}',
  'sources_without_normal': 'sources, without {}',
}


def title(row: str) -> str:
  """'random/mlp_concat' -> 'random weights: MSFA (MLP, all layers)'."""
  origin, _, name = row.rpartition('/')
  fused = name.startswith('fused_')
  name = name.removeprefix('fused_')
  text = NAMES.get(name, name.replace('_', ' '))
  if fused:
    text += ', timesteps fused'
  return f'{ORIGINS.get(origin, origin)}: {text}' if origin else text


def record_of(run: Run) -> dict[str, Any]:
  """The results of a run that has some."""
  assert run.record is not None
  return run.record


def main_row(record: dict[str, Any]) -> str:
  """The row that is shown in detail: the bundled head, or the first."""
  name = str(record.get('bundle'))
  return name if name in record['rows'] else next(iter(record['rows']))


def results(run: Run) -> list[Block]:
  """Who scored what: the headline table and what compares its rows."""
  record = record_of(run)
  rows, main = record['rows'], main_row(record)
  test, where = rows[main]['test'], record['data']
  normal = record.get('normal_class', '')
  part = (
    f'Test part of split {where["split"]!r}'
    if where.get('split')
    else (f'External images of {where.get("path", "")}')
  )
  sources = test.get('sources', {})
  blocks: list[Block] = [
    Text(
      f'{part}: {test["all"]["n"]} images in {test["all"]["groups"]} groups'
      + (f', {sources["n"]} of them unaugmented sources' if sources else '')
      + '. Percent, with 95 % intervals that resample groups. Everything that '
      'is chosen was chosen on validation images.'
    )
  ]
  seen = record.get('pretraining_saw_test_images', 'no')
  if seen != 'no':
    text = f'Whether pretraining saw test images: {seen}.'
    blocks.append(Text(text, 'warning'))
  # Reasons why an audit that failed was accepted are told with the numbers.
  blocks += [
    Text(f'Audit: {reason}.', 'warning')
    for reason in record.get('audit_reasons') or ()
  ]
  blocks.append(_headline(rows, main, normal))
  blocks.append(
    drawn(
      report_plots.intervals,
      [
        (title(name), row['test']['all'].get('balanced_accuracy'), name)
        for name, row in rows.items()
      ],
      main,
      'balanced accuracy, all variants, %',
      caption='Balanced accuracy on all variants with 95 % intervals; the '
      f'dotted line is {title(main)}.',
    )
  )
  return blocks + _two_by_two(record) + _comparisons(record)


def _headline(rows: dict[str, Any], main: str, normal: str) -> Table:
  metrics = ('accuracy', 'balanced_accuracy')
  subsets = [
    s
    for s in ('all', 'sources', 'all_without_normal')
    if any(s in row['test'] for row in rows.values())
    and not (s == 'sources' and no_variants(rows[main]))
  ]
  cells = [
    [
      title(name),
      *(
        interval(row['test'].get(subset, {}).get(metric))
        for subset in subsets
        for metric in metrics
      ),
      _seeds(row),
      _chosen(row.get('chosen') or {}),
    ]
    for name, row in rows.items()
  ]
  return Table(
    [
      'method',
      *(
        f'{metric.replace("_", " ")}, {SUBSETS[subset].format(normal)}'
        for subset in subsets
        for metric in metrics
      ),
      'accuracy over seeds',
      'chosen on validation',
    ],
    cells,
    strong=[list(rows).index(main)],
  )


def no_variants(row: dict[str, Any]) -> bool:
  """Whether every image is an untouched source, so that nothing differs."""
  test = row['test']
  return 'sources' not in test or test['sources']['n'] == test['all']['n']


def _seeds(row: dict[str, Any]) -> str:
  spread = (row.get('seeds') or {}).get('accuracy') or {}
  if spread.get('std') is None:
    return ''
  return f'{100 * spread["mean"]:.1f} ± {100 * spread["std"]:.1f}'


def _chosen(chosen: dict[str, Any]) -> str:
  layers = chosen.get('layers')
  if not layers:
    return ''
  what = layers[0] if len(layers) == 1 else f'{len(layers)} layers'
  t = chosen.get('timestep')
  t = ' + '.join(map(str, t)) if isinstance(t, list) else t
  return f'{what} (t = {t}, grid {chosen.get("grid")})'


def _two_by_two(record: dict[str, Any]) -> list[Block]:
  blocks: list[Block] = []
  for encoder, table in (record.get('two_by_two') or {}).items():
    who = ORIGINS.get(encoder, 'the pretrained encoder')
    blocks.append(
      Table(
        ['head', 'best single layer', 'all layers'],
        [
          [kind, *(interval(table[kind].get(p)) for p in ('single', 'concat'))]
          for kind in table
        ],
        f'Head and layers told apart: accuracy of {who}, all variants, %.',
      )
    )
  return blocks


def _comparisons(record: dict[str, Any]) -> list[Block]:
  found = [
    c
    for c in record.get('comparisons') or ()
    if c['metric'] == 'accuracy'
    and not (
      c['images'] == 'sources' and no_variants(record['rows'][c['row_a']])
    )
  ]
  if not found:
    return []
  return [
    Table(
      ['is ... better', 'than ...', 'images', 'difference, points', 'p'],
      [
        [
          title(c['row_a']),
          title(c['row_b']),
          SUBSETS.get(c['images'], c['images']),
          difference(c),
          f'{c["p_value"]:.3g}',
        ]
        for c in found
      ],
      'Paired comparisons of accuracy on the same resampled groups.',
      text=True,
    )
  ]

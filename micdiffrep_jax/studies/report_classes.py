"""One row of a probe in detail: every metric, every class, every trial."""

from typing import Any

from micdiffrep_jax.draw import report_plots
from micdiffrep_jax.draw.page import Block, Facts, Heading, Table, interval
from micdiffrep_jax.draw.result import Run, drawn, pictures
from micdiffrep_jax.studies.report_probe import (
  ORIGINS,
  SUBSETS,
  main_row,
  no_variants,
  record_of,
  title,
)

_METRICS = {
  'accuracy': 'accuracy, %',
  'balanced_accuracy': 'balanced accuracy, %',
  'macro_f1': 'macro F1, %',
  'macro_auroc': 'macro AUROC, %',
  'macro_auprc': 'macro AUPRC, %',
}
_UNSCALED = {'brier': 'Brier', 'nll': 'NLL', 'ece': 'ECE'}
_PER_CLASS = {
  'sensitivity': 'sensitivity',
  'specificity': 'specificity',
  'ppv': 'PPV',
  'npv': 'NPV',
  'auroc': 'AUROC',
  'auprc': 'AUPRC',
}


def classes(run: Run) -> list[Block]:
  """Per-class metrics, all metrics by subset, confusion, reliability."""
  record = record_of(run)
  main = main_row(record)
  row = record['rows'][main]
  subsets = {
    k: v
    for k, v in row['test'].items()
    if k in SUBSETS and not (k.startswith('sources') and no_variants(row))
  }
  normal = record.get('normal_class', '')
  blocks: list[Block] = [Heading(f'{title(main)}: all metrics')]
  blocks.append(
    Table(
      ['images', 'n', 'groups', *_METRICS.values(), *_UNSCALED.values()],
      [
        [
          SUBSETS[name].format(normal),
          scored['n'],
          scored['groups'],
          *(interval(scored.get(m)) for m in _METRICS),
          *(interval(scored.get(m), 1, 3) for m in _UNSCALED),
        ]
        for name, scored in subsets.items()
      ],
      f'Bins of the ECE: {subsets["all"].get("ece_bins", "")}.',
    )
  )
  for name in ('all', 'sources'):
    if name in subsets:
      per_class = subsets[name]['per_class']
      blocks.append(
        Table(
          ['class', 'n', *_PER_CLASS.values()],
          [
            [label, x['n'], *(interval(x.get(m)) for m in _PER_CLASS)]
            for label, x in per_class.items()
          ],
          f'Per class, {SUBSETS[name]}, %.',
        )
      )
  calibrated = _calibration(row)
  blocks += [*calibrated, *pictures(run, ('confusion', 'reliability'))]
  return blocks


def _calibration(row: dict[str, Any]) -> list[Block]:
  before = row.get('uncalibrated')
  if not before:
    return []
  after = row['test']['all']
  return [
    Facts(
      [
        ('temperature, fitted on validation', f'{row["temperature"]:.3f}'),
        (
          'ECE before and after it',
          f'{before["ece"]:.3f} and {after["ece"]["value"]:.3f}',
        ),
        (
          'NLL before and after it',
          f'{before["nll"]:.3f} and {after["nll"]["value"]:.3f}',
        ),
      ]
    )
  ]


def trials(run: Run) -> list[Block]:
  """Validation score by layer and timestep, for each encoder and head.

  Pictures that the run drew itself are shown in place of the report's own.
  """
  own = [p for p in pictures(run) if p.stem not in ('confusion', 'reliability')]
  if own:
    return [*own]
  blocks: list[Block] = []
  for encoder, found in (record_of(run).get('trials') or {}).items():
    kinds = dict.fromkeys(t['kind'] for t in found)
    for kind in kinds:
      mine = [t for t in found if t['kind'] == kind]
      who = ORIGINS.get(encoder, 'pretrained')
      blocks.append(
        drawn(
          report_plots.layers_by_timestep,
          mine,
          caption=f'Validation score, {kind} head, {who}: best over pooling '
          'and learning rates.',
        )
      )
  return blocks

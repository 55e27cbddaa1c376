"""The paper's Table 1 as blocks of a page: accuracy, cost, comparisons."""

from collections.abc import Mapping
from typing import Any

from micdiffrep_jax.draw.page import Block, Table, difference, interval, pivot
from micdiffrep_jax.draw.result import Run, pictures
from micdiffrep_jax.studies.report_probe import record_of, title

FLOOR = 'floor'  # the method of rows without an encoder


def blocks(run: Run) -> list[Block]:
  """The table, its plot, what each method cost, and ours beside the others."""
  record = record_of(run)
  found = [*_accuracy(record), *pictures(run), _costs(record)]
  return found + ([_comparisons(record)] if record['comparisons'] else [])


def flagged(line: Mapping[str, Any]) -> str:
  """A method's name with what it had that the others had not."""
  method = line['method']
  told = ', '.join(f for f in line['flags'].split() if f != method)
  return f'{method} ({told})' if told else method


def _scored(line: Mapping[str, Any] | None) -> str:
  return interval({**line, 'value': line['accuracy']}) if line else '-'


def _accuracy(record: Mapping[str, Any]) -> list[Table]:
  """A table per split: a row per encoder, a column per probe; then floors."""
  lines, splits = record['table'], record['splits']
  probes = list(dict.fromkeys(x['row'] for x in lines if _trained(x)))
  tables = []
  for split in splits:
    rows: dict[str, dict[str, Any]] = {}
    for line in (x for x in lines if x['split'] == split):
      origin, _, probe = line['row'].rpartition('/')
      if line['method'] != FLOOR:
        name = f'{line["method"]}, random weights' if origin else flagged(line)
        rows.setdefault(name, {})[probe] = line
    tables.append(
      Table(
        ['encoder', 'the paper', *(title(p) for p in probes)],
        [
          [name, _in_paper(found), *(_scored(found.get(p)) for p in probes)]
          for name, found in rows.items()
        ],
        f'Split {split!r}: accuracy in percent, 95 % interval over groups of '
        'the test part.',
      )
    )
  floors = pivot(
    (
      ((title(x['row']),), x['split'], _scored(x))
      for x in lines
      if x['method'] == FLOOR
    ),
    splits,
  )
  if floors:
    tables.append(Table(['without features', *splits], floors))
  return tables


def _trained(line: Mapping[str, Any]) -> bool:
  return line['method'] != FLOOR and '/' not in line['row']


def _in_paper(by_probe: Mapping[str, Mapping[str, Any]]) -> str:
  found = [x['paper'] for x in by_probe.values() if _trained(x) and x['paper']]
  return ', '.join(f'{x:.0f}' for x in found) or '-'


def _costs(record: Mapping[str, Any]) -> Table:
  rows = []
  for name, cost in record['costs'].items():
    seconds, flops = cost['training_s'], cost['flops_per_image']
    rows.append(
      [
        name,
        ', '.join(cost['flags']) or '-',
        f'{cost["images_drawn"]:,}',
        '-' if seconds is None else f'{seconds:,.0f}',
        '-' if flops is None else f'{flops / 1e9:.2f}',
        f'{cost["parameters"] / 1e6:.2f}',
      ]
    )
  return Table(
    [
      'method',
      'flags',
      'images drawn',
      'training, s',
      'GFLOP per image drawn',
      'encoder, M parameters',
    ],
    rows,
    'Training without compilation and evaluation; encoder without what '
    'training alone needs. supervised: read labels; supervised_text: captions '
    'made of labels; external: trained by others, on other images.',
  )


def _comparisons(record: Mapping[str, Any]) -> Table:
  return Table(
    ['ddpm minus ...', 'probe', 'split', 'difference, points'],
    [
      [
        c['other'],
        title(c['row']),
        c['split'],
        difference(c),
      ]
      for c in record['comparisons']
    ],
    'Paired on the same test groups.',
  )

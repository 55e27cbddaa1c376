"""The paper's Table 1 as blocks of a page: accuracy, cost, comparisons."""

from collections.abc import Mapping
from typing import Any

from micdiffrep_jax.reporting.page import Block, Table
from micdiffrep_jax.reporting.report_probe import title
from micdiffrep_jax.reporting.report_run import Run, pictures


def blocks(run: Run) -> list[Block]:
  """The table, its plot, what each method cost, and ours beside the others."""
  assert run.record is not None
  record = run.record
  found: list[Block] = [_accuracy(record), *pictures(run), _costs(record)]
  return found + ([_comparisons(record)] if record['comparisons'] else [])


def flagged(line: Mapping[str, Any]) -> str:
  """A method's name with what it had that the others had not."""
  flags = line['flags']
  return f'{line["method"]} ({flags})' if flags else line['method']


def _interval(line: Mapping[str, Any]) -> str:
  value, low, high = (100 * line[k] for k in ('accuracy', 'low', 'high'))
  return f'{value:.1f} ({low:.1f} to {high:.1f})'


def _accuracy(record: Mapping[str, Any]) -> Table:
  lines: dict[tuple[str, str], dict[str, Any]] = {}
  for line in record['table']:
    key = (flagged(line), line['row'])
    lines.setdefault(key, {})[line['split']] = line
  rows = []
  for (method, row), by_split in lines.items():
    paper = next(iter(by_split.values()))['paper']
    found = [
      _interval(by_split[s]) if s in by_split else '-' for s in record['splits']
    ]
    named = '-' if paper is None else f'{paper:.0f}'
    floor = method == 'floor'
    probe = title(f'floor/{row}' if floor else row)
    rows.append([method, probe, named, *found])
  return Table(
    ['method', 'probe', 'paper', *record['splits']],
    rows,
    'Accuracy in percent, 95 % interval over groups of the test part.',
  )


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
        f'{100 * c["difference"]:+.1f} '
        f'({100 * c["low"]:+.1f} to {100 * c["high"]:+.1f})',
      ]
      for c in record['comparisons']
    ],
    'Paired on the same test groups.',
  )

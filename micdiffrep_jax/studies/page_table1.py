"""The paper's Table 1 as blocks of a page: accuracy, cost, comparisons."""

from collections.abc import Mapping, Sequence
import dataclasses

from micdiffrep_jax.draw.page import (
  Block,
  Line,
  Table,
  difference,
  interval,
  pivot,
)
from micdiffrep_jax.draw.result import (
  Run,
  floors_left_out,
  pictures,
  record_of,
  title,
)
from micdiffrep_jax.run.records import Record
from micdiffrep_jax.scores.bootstrap import Score

FLOOR = 'floor'  # the method of rows without an encoder


@dataclasses.dataclass(frozen=True)
class Cost(Record):
  """What stands in the table beside a method's accuracy; None is not known.

  Attributes:
    images_drawn: in pretraining, repeats counted.
    training_s: seconds, where the folder of a run tells them.
    flops_per_image: of a training step, forward and backward.
    parameters: of what the layers read are made of; a table has none.
    flags: what it had that others had not.
    checkpoint: where it lies.
  """

  images_drawn: int | None
  training_s: float | None
  flops_per_image: float | None
  parameters: int | None
  flags: tuple[str, ...] = ()
  checkpoint: str | None = None


def blocks(run: Run) -> list[Block]:
  """The table, its plot, what each method cost, and ours beside the others."""
  record = record_of(run)
  lines, splits = record['table'], record['splits']
  floors = pivot(
    (
      (title(x['row']), x['split'], _scored(x))
      for x in lines
      if x['method'] == FLOOR
    ),
    ['without features'],
    {split: split for split in splits},
  )
  differences = Table(
    [
      f'{record.get("ours", "ddpm")} minus ...',
      'probe',
      'split',
      'difference, points',
    ],
    [
      [
        c['other'],
        title(c['row']),
        c['split'],
        difference(Score(c['difference'], c['low'], c['high'])),
      ]
      for c in record['comparisons']
    ],
    'Paired on the same test groups.',
  )
  return [
    *(_accuracy(lines, split) for split in splits),
    *([floors] if floors.rows else []),
    *floors_left_out(record),
    *pictures(run),
    _costs({k: Cost.from_json(x) for k, x in record['costs'].items()}),
    *([differences] if differences.rows else []),
  ]


def flagged(line: Line) -> str:
  """A method's name with what it had that the others had not."""
  method = line['method']
  told = ', '.join(f for f in line['flags'].split() if f != method)
  return f'{method} ({told})' if told else method


def _scored(line: Line) -> str:
  return interval({**line, 'value': line['accuracy']})


def _trained(line: Line) -> bool:
  return line['method'] != FLOOR and '/' not in line['row']


def _accuracy(lines: Sequence[Line], split: str) -> Table:
  """A row per encoder, a column per probe, and what the paper has."""
  cells: list[tuple[str, str, str]] = []
  papers: dict[str, list[str]] = {}
  for line in lines:
    if line['split'] == split and line['method'] != FLOOR:
      origin, _, probe = line['row'].rpartition('/')
      name = f'{line["method"]}, random weights' if origin else flagged(line)
      cells.append((name, probe, _scored(line)))
      if _trained(line) and line['paper']:
        papers.setdefault(name, []).append(f'{line["paper"]:.0f}')
  probes = dict.fromkeys(x['row'] for x in lines if _trained(x))
  return pivot(
    ((name, ', '.join(papers.get(name, ['-'])), *x) for name, *x in cells),
    ['encoder', 'the paper'],
    {probe: title(probe) for probe in probes},
    f'Split {split!r}: accuracy in percent, 95 % interval over groups of the '
    'test part.',
  )


def _costs(costs: Mapping[str, Cost]) -> Table:
  rows = []
  for name, cost in costs.items():
    seconds, flops = cost.training_s, cost.flops_per_image
    weights = cost.parameters
    rows.append(
      [
        name,
        ', '.join(cost.flags) or '-',
        f'{cost.images_drawn:,}',
        '-' if seconds is None else f'{seconds:,.0f}',
        '-' if flops is None else f'{flops / 1e9:.2f}',
        '-' if weights is None else f'{weights / 1e6:.2f}',  # of a table
      ]
    )
  return Table(
    [
      'method',
      'flags',
      'images drawn',
      'training, s',
      'GFLOP per image drawn',
      'M parameters',
    ],
    rows,
    'Training without compilation and evaluation; parameters: of what the '
    'layers read are made of. supervised: read labels; supervised_text: '
    'captions made of labels; external: trained by others, on other images; '
    'teacher: learnt from the features of this encoder, and flagged with '
    'what that had; '
    'contrast: learnt from two views too, contrast_alone from nothing else; '
    'aligned_alone: from its teacher alone.',
  )

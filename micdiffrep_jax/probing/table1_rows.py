"""Lines, comparisons and pictures of Table 1, from the probes of its cells."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.reporting import report_plots
from micdiffrep_jax.stats import bootstrap

OURS = 'ddpm'  # what the others are compared with
MSFA = 'mlp_concat'
# Accuracy in percent, Zhu and Zhao 2024, table 1; its split is not stated.
PAPER = {'mae': 69.0, 'moco': 73.0, 'byol': 77.0, 'clip': 82.0}
PAPER_OURS = {'linear_single': 83.0, MSFA: 88.0}
FLOOR, RANDOM = 'floor/', 'random/'
COSTS = ('images_drawn', 'training_s', 'flops_per_image', 'parameters')


def trials(found: Mapping[str, Any]) -> int:
  """How many candidates validation chose from: layers times settings."""
  return len(found['trials']['encoder'])


def in_paper(method: str, row: str, headline: str) -> float | None:
  """The paper's number; it gives others one, stood beside our headline row."""
  if method == OURS:
    return PAPER_OURS.get(row)
  return PAPER.get(method) if row == headline else None


def rows_of(
  cells: Mapping[str, Mapping[str, Any]],
  costs: Mapping[str, Mapping[str, Any]],
  headline: str,
) -> list[dict[str, Any]]:
  """One line per method, row of its probe, and split.

  What pretraining cost and which labels it had stands beside rows of its
  weights only, not beside floors and random ones.
  """
  lines = []
  for name, by_split in cells.items():
    for split, found in by_split.items():
      for row, scored in found['rows'].items():
        value = scored['test']['all']['accuracy']
        floor = row.startswith(FLOOR)
        trained = not floor and not row.startswith(RANDOM)
        cost = costs[name] if trained else {}
        lines.append(
          {
            'method': 'floor' if floor else name,
            'row': row.removeprefix(FLOOR),
            'paper': in_paper(name, row, headline),
            'split': split,
            'accuracy': value['value'],
            'low': value['low'],
            'high': value['high'],
            'flags': ' '.join(cost.get('flags', ())),
            **{key: cost.get(key) for key in COSTS},
          }
        )
  return lines


def _predictions(folder: str, row: str) -> dict[str, np.ndarray]:
  with np.load(os.path.join(folder, 'predictions.npz')) as z:
    names = {'label': 'test.label', 'group': 'test.group', 'id': 'test.id'}
    found = {name: z[key] for name, key in names.items()}
    return {**found, 'probs': z[f'test.probs.{row}']}


def comparisons(
  cells: Mapping[str, Mapping[str, Any]], config: ConfigDict
) -> list[dict[str, Any]]:
  """Ours minus each other method on the same test groups, row by row."""
  lines: list[dict[str, Any]] = []
  if OURS not in cells:
    return lines
  for name, by_split in cells.items():
    for split, (_, folder) in by_split.items():
      for row in dict.fromkeys((config.headline, 'knn', MSFA)):
        both = (cells[OURS][split][0]['rows'], by_split[split][0]['rows'])
        if name == OURS or not all(row in found for found in both):
          continue
        a = _predictions(cells[OURS][split][1], row)
        b = _predictions(folder, row)
        assert (a['id'] == b['id']).all()
        lines.append(
          {
            'other': name,
            'row': row,
            'split': split,
            **bootstrap.compare(
              a['label'],
              a['probs'],
              b['probs'],
              a['group'],
              'accuracy',
              config.resamples,
              config.probe.seed,
            ),
          }
        )
  return lines


def _percent(line: Mapping[str, Any]) -> str:
  values = [100 * line[k] for k in ('accuracy', 'low', 'high')]
  return '{:.1f} [{:.1f}, {:.1f}]'.format(*values)


def _flagged(line: Mapping[str, Any]) -> str:
  flags = line['flags']
  return f'{line["method"]} ({flags})' if flags else line['method']


def _cost(name: str, cost: Mapping[str, Any]) -> str:
  seconds, flops = cost['training_s'], cost['flops_per_image']
  cells = (
    name,
    ', '.join(cost['flags']) or '-',
    f'{cost["images_drawn"]:,}',
    '-' if seconds is None else f'{seconds:,.0f}',
    '-' if flops is None else f'{flops / 1e9:.2f}',
    f'{cost["parameters"] / 1e6:.2f}',
  )
  return '| ' + ' | '.join(cells) + ' |'


def markdown(results: Mapping[str, Any]) -> str:
  """Accuracy by method and row, one column per split; then what it cost."""
  splits_ = results['splits']
  table: dict[tuple[str, str], dict[str, Any]] = {}
  for line in results['table']:
    key = (_flagged(line), line['row'])
    table.setdefault(key, {})[line['split']] = line
  text = [
    '| method | probe | paper | ' + ' | '.join(splits_) + ' |',
    '|' + '---|' * (3 + len(splits_)),
  ]
  for (method, row), by_split in table.items():
    paper = next(iter(by_split.values()))['paper']
    found = [_percent(by_split[s]) if s in by_split else '-' for s in splits_]
    named = '-' if paper is None else f'{paper:.0f}'
    text.append(f'| {method} | {row} | {named} | ' + ' | '.join(found) + ' |')
  text += [
    '',
    'Accuracy in percent, 95 % interval over groups of the test part.',
  ]
  text += [
    '',
    '| method | flags | images drawn | training, s | GFLOP per image drawn '
    '| encoder, M parameters |',
    '|' + '---|' * 6,
    *(_cost(name, cost) for name, cost in results['costs'].items()),
    '',
    'Training without compilation and evaluation; encoder without what '
    'training alone needs. supervised: read labels; supervised_text: captions '
    'made of labels; external: trained by others, on other images.',
    '',
  ]
  for c in results['comparisons']:
    values = [100 * c[k] for k in ('difference', 'low', 'high')]
    text.append(
      f'{OURS} - {c["other"]}, {c["row"]}, {c["split"]}: '
      '{:+.1f} [{:+.1f}, {:+.1f}].'.format(*values)
    )
  return '\n'.join(text) + '\n'


def draw(path: str, results: Mapping[str, Any]) -> None:
  """The headline row of each method with its interval, on the first split."""
  split, headline = results['splits'][0], results['headline']
  shown: Sequence[Mapping[str, Any]] = [
    line
    for line in results['table']
    if line['split'] == split
    and (
      line['row'] in (headline, f'{RANDOM}{headline}')
      or (line['method'], line['row']) == (OURS, MSFA)
      or line['method'] == 'floor'
    )
  ]
  report_plots.intervals(
    path,
    [
      (
        f'{_flagged(line)}, {line["row"]}',
        {**line, 'value': line['accuracy']},
        FLOOR if line['method'] == 'floor' else line['row'],
      )
      for line in shown
    ],
    MSFA,
    f'accuracy in percent, test part of {split!r}',
  )

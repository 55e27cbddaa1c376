"""Lines, comparisons and pictures of Table 1, from the probes of its cells."""

from collections.abc import Mapping
import os
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.draw import plots
from micdiffrep_jax.draw.result import FLOOR, RANDOM, title
from micdiffrep_jax.scores import bootstrap
from micdiffrep_jax.studies import page_table1

OURS = 'ddpm'  # what the others are compared with
MSFA = 'mlp_concat'
# Accuracy in percent, Zhu and Zhao 2024, table 1; its split is not stated.
PAPER = {'mae': 69.0, 'moco': 73.0, 'byol': 77.0, 'clip': 82.0}
PAPER_OURS = {'linear_single': 83.0, MSFA: 88.0}
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
            'method': page_table1.FLOOR if floor else name,
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
      for row in dict.fromkeys((config.headline, 'knn', 'kernel', MSFA)):
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


def draw(path: str, results: Mapping[str, Any]) -> None:
  """The headline row and MSFA of each method, on the first split."""
  split, headline = results['splits'][0], results['headline']
  of_encoders, floors = [], []
  for line in (x for x in results['table'] if x['split'] == split):
    method, row = line['method'], line['row']
    scored = {**line, 'value': line['accuracy']}
    if method == page_table1.FLOOR:
      floors.append((title(row), scored, FLOOR))
    elif row == MSFA or row.removeprefix(RANDOM) == headline:
      name = f'{page_table1.flagged(line)}, {title(row)}'
      # One row stands out: the headline of ours.
      others = method != OURS and not row.startswith(RANDOM)
      of_encoders.append((name, scored, '' if others else row))
  figure = plots.intervals(
    of_encoders + floors,
    headline,
    f'accuracy in percent, test part of {split!r}',
  )
  plots.save(path, figure)

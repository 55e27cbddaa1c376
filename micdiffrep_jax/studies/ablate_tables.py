"""Tables and pictures of an ablation: the grid, Figure 4, maps, the 2 x 2.

All scores are of validation rows, but for the 2 x 2, which is of test rows.
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any

import numpy as np
from scipy import stats

from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.draw.page import write_csv
from micdiffrep_jax.run import files
from micdiffrep_jax.studies import ablate_grid
from micdiffrep_jax.studies.ablate_grid import Scored

MSFA = 'MSFA (MLP, all layers)'


def write(
  workdir: str, grids: Mapping[str, Sequence[Scored]], criterion: str
) -> None:
  """grid.csv and grid.json: validation scores of every head of the grid."""
  columns = ('encoder', *Scored._fields)
  rows = [
    (encoder, h.kind, '+'.join(h.layers), *h[2:])
    for encoder, heads in grids.items()
    for h in heads
  ]
  write_csv(os.path.join(workdir, 'grid.csv'), columns, rows)
  record = {
    'scores': 'validation rows; nothing here is a test score',
    'select': criterion,
    'heads': {
      name: [h._asdict() for h in heads] for name, heads in grids.items()
    },
  }
  files.write_json(os.path.join(workdir, 'grid.json'), record)


def band(scores: Sequence[float]) -> tuple[float, float, float]:
  """Mean of shares and 95 % t-interval of it over seeds, within [0, 1].

  The interval of one seed is its value.
  """
  mean = float(np.mean(scores))
  if len(scores) < 2:
    return mean, mean, mean
  error = float(np.std(scores, ddof=1)) / len(scores) ** 0.5
  reach = float(stats.t.ppf(0.975, len(scores) - 1)) * error
  return mean, max(0.0, mean - reach), min(1.0, mean + reach)


def best_by_timestep(
  heads: Sequence[Scored], criterion: str
) -> dict[int, tuple[float, float, float]]:
  """At each timestep, the setting with the best mean over seeds: its band."""
  cells: dict[int, dict[tuple, list[float]]] = {}
  for h in heads:
    setting = (h.layers, h.grid, h.learning_rate, h.weight_decay)
    at = cells.setdefault(int(h.timestep), {})
    at.setdefault(setting, []).append(getattr(h, criterion))
  return {
    t: band(max(at.values(), key=lambda s: float(np.mean(s))))
    for t, at in sorted(cells.items())
  }


def figure4(
  path: str,
  heads: Sequence[Scored],
  criterion: str,
  single: str,
  title: str,
) -> None:
  """Score against timestep: one curve per layer, MSFA drawn on top.

  single: the head of the single layers; the paper's is linear. Each point is
  the best pooling and setting there; bands are 95 % intervals over seeds.
  """
  alone = [h for h in heads if '+' not in h.timestep]
  series: dict[str, dict[str, Any]] = {}
  for layer in dict.fromkeys(h.layers[0] for h in alone if len(h.layers) == 1):
    mine = [h for h in alone if h.layers == (layer,) and h.kind == single]
    if mine:
      series[layer] = _line(mine, criterion)
  together = [h for h in alone if len(h.layers) > 1 and h.kind == 'mlp']
  if together:
    series[MSFA] = _line(together, criterion)
  if not series:
    return
  steps = [t for line in series.values() for t in line['x']]
  dotted = []
  for text in dict.fromkeys(h.timestep for h in heads if '+' in h.timestep):
    fused = [
      h._replace(timestep='0')
      for h in heads
      if h.timestep == text and len(h.layers) > 1 and h.kind == 'mlp'
    ]
    if fused:
      mean = 100 * best_by_timestep(fused, criterion)[0][0]
      dotted.append(f'MSFA, t = {text} fused')
      series[dotted[-1]] = {'x': [min(steps), max(steps)], 'y': [mean, mean]}
  figure = plots.curves(
    series,
    'timestep',
    f'validation {criterion.replace("_", " ")}, %',
    title,
    bold=MSFA,
    dotted=dotted,
    log_x=min(steps) > 0,
  )
  plots.save(path, figure)


def _line(heads: Sequence[Scored], criterion: str) -> dict[str, list[float]]:
  best = best_by_timestep(heads, criterion)
  mean, low, high = (100 * np.array(v) for v in zip(*best.values()))
  return {
    'x': list(best),
    'y': mean.tolist(),
    'low': low.tolist(),
    'high': high.tolist(),
  }


def draw(
  workdir: str, grids: Mapping[str, Sequence[Scored]], criterion: str
) -> None:
  """figure4*.png and heatmap*.png, overall and for each pooling."""
  heads = grids['encoder']
  kinds = list(dict.fromkeys(h.kind for h in heads))
  sizes = list(dict.fromkeys(h.grid for h in heads))
  trials = [
    t._asdict()
    for t in ablate_grid.average(heads, criterion)
    if not isinstance(t.timestep, tuple)
  ]
  for kind in kinds:
    suffix = '' if kind == 'linear' else f'_{kind}'
    title = f'Single layers: {kind} head'
    path = os.path.join(workdir, f'figure4{suffix}.png')
    figure4(path, heads, criterion, kind, f'{title}, best pooling')
    for grid in sizes:
      mine = [h for h in heads if h.grid == grid]
      path = os.path.join(workdir, f'figure4{suffix}_grid{grid}.png')
      figure4(path, mine, criterion, kind, f'{title}, {grid} x {grid} cells')
      plots.save(
        os.path.join(workdir, f'heatmap_{kind}_grid{grid}.png'),
        plots.layers_by_timestep(
          [t for t in trials if t['kind'] == kind and t['grid'] == grid]
        ),
      )


def two_by_two(results: Mapping[str, Any]) -> str:
  """Plain text: {linear, MLP} x {single, all layers}, test accuracy."""
  lines = []
  for encoder, table in results['two_by_two'].items():
    lines += ['', f'2 x 2, {encoder}: test accuracy, %, seeds mean (deviation)']
    lines.append(f'{"head":8}{"best single layer":32}all layers')
    for kind, cells in table.items():
      shown = [_cell(cells.get(part)) for part in ('single', 'concat')]
      lines.append(f'{kind:8}{shown[0]:32}{shown[1]}'.rstrip())
  return '\n'.join(lines)


def _cell(found: Mapping[str, Any] | None) -> str:
  if not found:
    return '-'
  text = f'{page.brackets(found)}, {100 * found["seeds_mean"]:.1f}'
  if found['seeds_std'] is not None:
    text += f' ({100 * found["seeds_std"]:.1f})'
  return text

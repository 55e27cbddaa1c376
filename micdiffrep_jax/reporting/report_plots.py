"""Pictures that only the report draws."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from matplotlib.figure import Figure  # without pyplot: Agg, and no display
from matplotlib.ticker import EngFormatter
import numpy as np

_INK, _FAINT, _RANDOM, _FLOOR = '#1f3b63', '#9aa5b1', '#b07d2b', '#8a8f96'


def _save(figure: Figure, path: str | os.PathLike) -> None:
  figure.savefig(path, dpi=130, bbox_inches='tight')


def intervals(
  path: str,
  rows: Sequence[tuple[str, Mapping[str, Any] | None, str]],
  main: str,
  label: str,
) -> None:
  """Points with 95 % intervals, one line per (title, value, row name)."""
  shown = [r for r in rows if r[1] and r[1].get('value') is not None]
  figure = Figure(figsize=(7.6, 0.9 + 0.27 * len(shown)))
  axes = figure.add_subplot()
  for y, (_, found, name) in enumerate(shown):
    assert found is not None
    value, low, high = (100 * (found[k] or 0) for k in ('value', 'low', 'high'))
    color = _INK
    if name.startswith('random/'):
      color = _RANDOM
    elif name.startswith('floor/'):
      color = _FLOOR
    axes.plot([low, high], [y, y], color=color, linewidth=2)
    size = 8 if name == main else 5
    axes.plot([value], [y], marker='o', color=color, markersize=size)
    if name == main:
      axes.axvline(value, color=_INK, linestyle=':', linewidth=1, zorder=0)
  axes.set_yticks(range(len(shown)), [r[0] for r in shown], fontsize=8)
  axes.invert_yaxis()
  axes.set_xlabel(label, fontsize=9)
  axes.grid(axis='x', alpha=0.3)
  for side in ('top', 'right', 'left'):
    axes.spines[side].set_visible(False)
  axes.tick_params(axis='y', length=0)
  _save(figure, path)


def layers_by_timestep(path: str, trials: Sequence[Mapping[str, Any]]) -> None:
  """A map of the best score of each layer at each timestep, in percent.

  A trial has layers, timestep and score; several layers are 'all layers'.
  """
  names: list[str] = []
  best: dict[tuple[str, int | str], float] = {}
  for trial in trials:
    layers = trial['layers']
    name = layers[0] if len(layers) == 1 else 'all layers'
    if name not in names:
      names.append(name)
    t = trial['timestep']
    key = (name, '+'.join(map(str, t)) if isinstance(t, list) else t)
    best[key] = max(best.get(key, -1.0), trial['score'])
  # Several timesteps fused are text, and stand behind the single ones.
  steps = sorted({t for _, t in best}, key=lambda t: (isinstance(t, str), t))
  values = np.array(
    [[100 * best.get((n, t), np.nan) for t in steps] for n in names]
  )
  figure = Figure(figsize=(1.9 + 0.62 * len(steps), 0.9 + 0.27 * len(names)))
  axes = figure.add_subplot()
  axes.imshow(values, cmap='viridis', aspect='auto')
  middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
  for (i, j), value in np.ndenumerate(values):
    if np.isfinite(value):
      color = 'white' if value < middle else 'black'
      text = f'{value:.1f}'
      axes.text(j, i, text, ha='center', va='center', color=color, fontsize=8)
  axes.set_xticks(range(len(steps)), [str(t) for t in steps], fontsize=8)
  axes.set_yticks(range(len(names)), names, fontsize=8)
  axes.set_xlabel('timestep', fontsize=9)
  _save(figure, path)


def lines(
  path: str,
  series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  xlabel: str,
  ylabel: str,
  log_y: bool = False,
  y_range: tuple[float, float] | None = None,
) -> None:
  """Lines {name: (x, y)}; a legend where there are several."""
  figure = Figure(figsize=(5.2, 3.4))
  axes = figure.add_subplot()
  for number, (name, (x, y)) in enumerate(series.items()):
    color = _INK if len(series) == 1 else f'C{number}'
    axes.plot(x, y, linewidth=1.4, color=color, label=name)
    if len(x) == 1:
      axes.plot(x, y, marker='o', color=color)
  axes.xaxis.set_major_formatter(EngFormatter(sep=''))  # 250k
  axes.set_xlabel(xlabel, fontsize=9)
  axes.set_ylabel(ylabel, fontsize=9)
  if log_y:
    axes.set_yscale('log')
  if y_range:
    axes.set_ylim(y_range)
  axes.grid(alpha=0.3)
  if len(series) > 1:
    axes.legend(fontsize=7, ncols=2)
  _save(figure, path)

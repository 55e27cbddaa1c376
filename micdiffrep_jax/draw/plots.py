"""Pictures of results: confusion matrix, reliability diagram, curves."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from matplotlib.figure import Figure  # without pyplot: Agg, and no display
import numpy as np

_INK, _FAINT = '#1f3b63', '#9aa5b1'


def _save(figure: Figure, path: str | os.PathLike) -> None:
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  figure.savefig(path, dpi=130, bbox_inches='tight')


def confusion(
  path: str | os.PathLike,
  matrix: Sequence[Sequence[int]] | np.ndarray,
  classes: Sequence[str],
  title: str = '',
) -> None:
  """Draws counts (k, k), rows the true class, shaded by share of the row."""
  counts = np.asarray(matrix)
  share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  side = 2.0 + 0.8 * len(classes)
  figure = Figure(figsize=(side, side))
  axes = figure.add_subplot()
  axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
  for (i, j), count in np.ndenumerate(counts):
    color = 'white' if share[i, j] > 0.6 else 'black'
    text = f'{count}\n{100 * share[i, j]:.0f} %'
    axes.text(j, i, text, ha='center', va='center', color=color, fontsize=9)
  ticks = range(len(classes))
  axes.set_xticks(ticks, classes, rotation=30, ha='right')
  axes.set_yticks(ticks, classes)
  axes.set(xlabel='predicted', ylabel='true', title=title)
  _save(figure, path)


def reliability(
  path: str | os.PathLike, curves: Mapping[str, Mapping[str, Any]]
) -> None:
  """Draws accuracy against confidence, one line per named curve.

  A curve is the `reliability` of a summary: edges, rows, confidence, accuracy
  (None for an empty bin). The lower panel shows the rows of each bin.
  """
  figure = Figure(figsize=(4.6, 5.6))
  top, bottom = figure.subplots(
    2, 1, sharex=True, gridspec_kw={'height_ratios': [3, 1]}
  )
  top.plot([0, 1], [0, 1], color=_FAINT, linestyle=':', label='calibrated')
  for name, curve in curves.items():
    x = np.array(curve['confidence'], float)
    y = np.array(curve['accuracy'], float)
    top.plot(x, y, marker='o', markersize=4, label=name)
    edges = np.asarray(curve['edges'])
    bottom.stairs(np.asarray(curve['rows']), edges, label=name)
  top.set(ylabel='accuracy', xlim=(0, 1), ylim=(0, 1))
  top.legend(fontsize=8)
  bottom.set(xlabel='confidence', ylabel='images')
  _save(figure, path)


def curves(
  path: str | os.PathLike,
  series: Mapping[str, Mapping[str, Sequence[float]]],
  xlabel: str,
  ylabel: str,
  title: str = '',
  bold: str = '',
  dotted: Sequence[str] = (),
  log_x: bool = False,
) -> None:
  """Draws lines with optional bands: {name: {x, y[, low, high]}}.

  The line named `bold` is drawn thick, for the one that the figure is about;
  those in `dotted` are what it is compared with.
  """
  figure = Figure(figsize=(6.4, 4.2))
  axes = figure.add_subplot()
  for name, line in series.items():
    strong = name == bold
    (drawn,) = axes.plot(
      line['x'],
      line['y'],
      marker='o',
      markersize=3,
      linewidth=2.6 if strong else 1.2,
      linestyle=':' if name in dotted else '-',
      color=_INK if strong else None,
      zorder=3 if strong else 2,
      label=name,
    )
    if 'low' in line:
      axes.fill_between(
        line['x'],
        line['low'],
        line['high'],
        color=drawn.get_color(),
        alpha=0.15,
        linewidth=0,
      )
  axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
  if log_x:
    axes.set_xscale('log')
    at = sorted({float(x) for line in series.values() for x in line['x']})
    axes.set_xticks(at, [f'{x:g}' for x in at], rotation=45 if at[8:] else 0)
    axes.minorticks_off()
  axes.grid(alpha=0.3)
  # Below the axes, where it covers no line.
  axes.legend(
    fontsize=7, ncols=2, loc='upper center', bbox_to_anchor=(0.5, -0.15)
  )
  _save(figure, path)

"""Plots of results, as Figures: confusion, reliability, curves, intervals."""

from collections.abc import Mapping, Sequence
import io
import os
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: Agg, and no display
from matplotlib.ticker import EngFormatter
import numpy as np

from micdiffrep_jax.draw.interval import Interval, bounds
from micdiffrep_jax.run import files
from micdiffrep_jax.scores.decision import NetBenefit

_INK, _FAINT, _RANDOM, _FLOOR = '#1f3b63', '#9aa5b1', '#b07d2b', '#8a8f96'
# Of lines that carry their names; told apart by the colour-blind too.
_DIRECT = (
  *(_INK, '#c4601c', '#3f8f5f', '#8a4f9e', '#a8325a', '#2f8fa8'),
  *('#8c8a2f', '#7a5230', '#5f6b7a', '#c23b9a'),
)
_BANDS = 4  # lines with bands in one picture


def encode(figure: Figure, kind: str) -> bytes:
  """A figure as a file: png or svg."""
  content = io.BytesIO()
  figure.savefig(content, format=kind, dpi=130, bbox_inches='tight')
  return content.getvalue()


def save(path: str | os.PathLike, figure: Figure) -> None:
  """Writes a .png or .svg that is either whole or absent."""
  kind = os.path.splitext(path)[1].removeprefix('.')
  files.write_whole(path, encode(figure, kind))


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
  """A figure of that many inches with one plot."""
  figure = Figure(figsize=(width, height))
  return figure, figure.add_subplot()


def _write_in_cells(
  axes: Axes, texts: np.ndarray, white: np.ndarray, size: int
) -> None:
  """Writes texts (i, j) in the cells of an image, white where it is dark."""
  for (i, j), text in np.ndenumerate(texts):
    color = 'white' if white[i, j] else 'black'
    axes.text(j, i, text, ha='center', va='center', color=color, fontsize=size)


def confusion(
  matrix: Sequence[Sequence[int]] | np.ndarray,
  classes: Sequence[str],
  title: str = '',
) -> Figure:
  """Counts (k, k), rows the true class, shaded by share of the row."""
  counts = np.asarray(matrix)
  share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  side = 2.0 + 0.8 * len(classes)
  figure, axes = _axes(side, side)
  axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
  texts = np.empty(counts.shape, object)
  for at, count in np.ndenumerate(counts):
    texts[at] = f'{count}\n{100 * share[at]:.0f} %'
  _write_in_cells(axes, texts, share > 0.6, 9)
  ticks = range(len(classes))
  axes.set_xticks(ticks, classes, rotation=30, ha='right')
  axes.set_yticks(ticks, classes)
  axes.set(xlabel='predicted', ylabel='true', title=title)
  return figure


def reliability(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
  """Accuracy against confidence, at most three named curves, told at their end.

  A curve is the `reliability` of a summary: edges, rows, confidence, accuracy
  (None for an empty bin). The lower panel shows the rows of each bin, of the
  first curve. Dots are as large as their bins are full: few images say little.
  """
  figure = Figure(figsize=(5.4, 5.6))
  top, bottom = figure.subplots(
    2, 1, sharex=True, gridspec_kw={'height_ratios': [3, 1]}
  )
  top.plot([0, 1], [0, 1], color=_FAINT, linestyle=':')
  top.text(0.14, 0.05, 'as often right as it says', color=_FAINT, fontsize=8)
  ends = []
  for (name, curve), color in zip(curves.items(), _DIRECT):
    x = np.array(curve['confidence'], float)
    y = np.array(curve['accuracy'], float)
    rows = np.asarray(curve['rows'], float)
    full = np.isfinite(y) & (rows >= 0.005 * rows.sum())
    top.plot(x[full], y[full], color=color, linewidth=1.6)
    top.scatter(x, y, 6 + 120 * rows / max(rows.max(), 1), color=color)
    if full.any():
      ends.append((name, float(y[full][-1]), color))
  _label_ends(top, ends)
  first = next(iter(curves.values()))
  bottom.stairs(
    np.asarray(first['rows']),
    np.asarray(first['edges']),
    fill=True,
    color=_INK,
    alpha=0.6,
  )
  top.set(ylabel='share that is right', xlim=(0, 1), ylim=(0, 1))
  top.grid(alpha=0.3)
  bottom.set(xlabel='confidence of the classifier', ylabel='images')
  return figure


def decision_curves(
  by_class: Mapping[str, Mapping[str, NetBenefit]], reference: str
) -> Figure:
  """Net benefit against threshold, a panel per class, the first row in a band.

  reference: the row of acting on all, drawn as a faint line; on none is 0.
  """
  columns = min(2, len(by_class))
  rows = -(-len(by_class) // columns)
  figure = Figure(figsize=(4.2 * columns, 0.7 + 2.8 * rows))
  panels = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
  for axes, (label, curves) in zip(panels, by_class.items()):
    axes.axhline(0, color=_FAINT, linewidth=1)
    banded = next(iter(curves.values()))
    tops = [curve.value.max() for curve in curves.values()]
    top = max(0.02, *tops, np.nanmax(banded.high, initial=0.0))
    for (name, curve), color in zip(curves.items(), _DIRECT):
      x, y = curve.thresholds, curve.value
      if name == reference:
        axes.plot(x, y, color=_FAINT, linestyle=':', label=name)
        continue
      axes.plot(x, y, color=color, linewidth=1.6, label=name)
      if curve is banded:
        axes.fill_between(x, curve.low, curve.high, color=color, alpha=0.15)
    axes.set(ylim=(-0.15 * top, 1.05 * top), title=f'{label} or not')
    axes.grid(alpha=0.3)
  for axes in panels[len(by_class) :]:
    axes.set_axis_off()
  lines, names = panels[0].get_legend_handles_labels()
  figure.legend(lines, names, loc='upper center', ncols=2, frameon=False)
  figure.supxlabel('probability from which one acts', fontsize=10)
  figure.supylabel('net benefit per image', fontsize=10)
  figure.tight_layout(rect=(0, 0, 1, 1 - 0.6 / figure.get_figheight()))
  return figure


def _label_ends(
  axes: Axes, ends: Sequence[tuple[str, float, str]], gap: float = 0.055
) -> None:
  """Writes (name, y, color) right of the axes, at least `gap` of them apart."""
  low, high = axes.get_ylim()
  at = -np.inf
  for name, y, color in sorted(ends, key=lambda end: end[1]):
    at = max((y - low) / (high - low), at + gap)
    axes.text(
      1.02,
      at,
      name,
      transform=axes.transAxes,
      color=color,
      fontsize=8,
      va='center',
    )


def add_point(
  series: dict[str, dict[str, list[float]]], name: str, x: float, y: Interval
) -> None:
  """Puts a score at x into the line of that name, in percent, with its band."""
  line = series.setdefault(name, {k: [] for k in ('x', 'y', 'low', 'high')})
  line['x'].append(x)
  for axis, value in zip(('y', 'low', 'high'), bounds(y)):
    line[axis].append(np.nan if value is None else 100 * value)


def few_labels(
  series: Mapping[str, Mapping[str, Sequence[float]]],
  kinds: Mapping[str, str],
  xlabel: str,
  ylabel: str,
  title: str = '',
  log_x: bool = True,
) -> Figure:
  """The best line of each kind, with its band and name; the others faint.

  Bands of more than a few lines would hide each other: there are none then.

  series: as of `curves`. kinds: of every line what it is; in their order.
  """
  figure, axes = _axes(6.4, 4.2)
  best = {
    kind: max(
      (name for name in series if kinds[name] == kind),
      key=lambda name: float(np.mean(series[name]['y'])),
    )
    for kind in dict.fromkeys(kinds[name] for name in series)
  }
  colors = dict(zip(best.values(), _DIRECT * len(best)))
  for name, line in series.items():
    x, y = line['x'], line['y']
    if name not in colors:
      axes.plot(x, y, color=_FAINT, linewidth=0.8, alpha=0.7, zorder=1)
      continue
    color = colors[name]
    axes.plot(x, y, 'o-', color=color, linewidth=2, markersize=4, zorder=3)
    if 'low' in line and len(colors) <= _BANDS:
      band = line['low'], line['high']
      axes.fill_between(x, *band, color=color, alpha=0.12, linewidth=0)
  axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
  if log_x:
    axes.set_xscale('log')
  at = sorted({float(x) for line in series.values() for x in line['x']})
  axes.set_xticks(at, [f'{x:g}' for x in at])
  axes.minorticks_off()
  axes.grid(alpha=0.3)
  ends = [(n, float(series[n]['y'][-1]), color) for n, color in colors.items()]
  if len(series) > len(colors):
    low = axes.get_ylim()[0]
    ends.append(('faint: the others, in the table', low, _FAINT))
  _label_ends(axes, ends)
  return figure


def curves(
  series: Mapping[str, Mapping[str, Sequence[float]]],
  xlabel: str,
  ylabel: str,
  title: str = '',
  bold: str = '',
  dotted: Sequence[str] = (),
  log_x: bool = False,
) -> Figure:
  """Lines with optional bands: {name: {x, y[, low, high]}}.

  The line named `bold` is drawn thick, for the one that the figure is about;
  those in `dotted` are what it is compared with.
  """
  figure, axes = _axes(6.4, 4.2)
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
  return figure


def lines(
  series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  xlabel: str,
  ylabel: str,
  log_y: bool = False,
  y_range: tuple[float, float] | None = None,
) -> Figure:
  """Lines of many points {name: (x, y)}; a legend where there are several."""
  figure, axes = _axes(5.2, 3.4)
  for number, (name, (x, y)) in enumerate(series.items()):
    color = _INK if len(series) == 1 else f'C{number}'
    alone = 'o' if len(x) == 1 else None
    axes.plot(x, y, linewidth=1.4, marker=alone, color=color, label=name)
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
  return figure


def intervals(
  rows: Sequence[tuple[str, Interval, str]],
  main: str,
  label: str,
) -> Figure:
  """Points with 95 % intervals, one line per (title, value, row name)."""
  shown = [
    (title, [100 * (x or 0) for x in found], name)
    for title, found, name in ((a, bounds(x), b) for a, x, b in rows)
    if found[0] is not None
  ]
  figure, axes = _axes(7.6, 0.9 + 0.27 * len(shown))
  colors = {'random': _RANDOM, 'floor': _FLOOR}
  for y, (_, (value, low, high), name) in enumerate(shown):
    color = colors.get(name.partition('/')[0], _INK)
    axes.plot([low, high], [y, y], color=color, linewidth=2)
    size = 8 if name == main else 5
    axes.plot([value], [y], marker='o', color=color, markersize=size)
    if name == main:
      axes.axvline(value, color=_INK, linestyle=':', linewidth=1, zorder=0)
  axes.set_yticks(range(len(shown)), [title for title, *_ in shown], fontsize=8)
  axes.invert_yaxis()
  axes.set_xlabel(label, fontsize=9)
  axes.grid(axis='x', alpha=0.3)
  for side in ('top', 'right', 'left'):
    axes.spines[side].set_visible(False)
  axes.tick_params(axis='y', length=0)
  return figure


def layers_by_timestep(trials: Sequence[Mapping[str, Any]]) -> Figure:
  """A map of the best score of each layer at each timestep, in percent.

  A trial has layers, timestep and score; several layers are 'all layers'.
  """
  best: dict[tuple[str, int | str], float] = {}
  for trial in trials:
    layers, t = trial['layers'], trial['timestep']
    name = layers[0] if len(layers) == 1 else 'all layers'
    key = (name, '+'.join(map(str, t)) if isinstance(t, list) else t)
    best[key] = max(best.get(key, -np.inf), trial['score'])
  names = list(dict.fromkeys(name for name, _ in best))
  # Several timesteps fused are text, and stand behind the single ones.
  steps = sorted({t for _, t in best}, key=lambda t: (isinstance(t, str), t))
  values = np.array(
    [[100 * best.get((n, t), np.nan) for t in steps] for n in names]
  )
  figure, axes = _axes(1.9 + 0.62 * len(steps), 0.9 + 0.27 * len(names))
  axes.imshow(values, cmap='viridis', aspect='auto')
  middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
  texts = np.where(np.isfinite(values), np.char.mod('%.1f', values), '')
  _write_in_cells(axes, texts, values < middle, 8)
  axes.set_xticks(range(len(steps)), [str(t) for t in steps], fontsize=8)
  axes.set_yticks(range(len(names)), names, fontsize=8)
  axes.set_xlabel('timestep', fontsize=9)
  return figure

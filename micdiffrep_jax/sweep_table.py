"""What became of the units of a sweep: a table, a CSV file and a plot."""

from collections.abc import Sequence
import csv
import io
import json
import numbers
import os
from typing import Any, NamedTuple

from etils import epath
from matplotlib.figure import Figure

from micdiffrep_jax.run import log

ERROR = 'error.json'  # in the folder of a unit that failed
# Of a results.json, what tells how and where but not how well.
CIRCUMSTANCES = (
  'config versions device host_cores command finished dataset unseen steps '
  'images_seen'
).split()
PANELS = 6


class Row(NamedTuple):
  """One unit.

  status: finished | failed | unfinished (begun, then killed) | waiting.
  exit_status: of a process that ran this unit alone; None if not known.
  """

  unit: str
  status: str
  exit_status: int | None
  error: str
  override: dict[str, Any]
  scalars: dict[str, float]


def row(folder: str, override: dict[str, Any], results: dict | None) -> Row:
  """The state of a unit from its folder; results: None if not finished."""
  unit = os.path.basename(folder)
  if results is not None:
    return Row(unit, 'finished', 0, '', override, scalars(results))
  path = epath.Path(folder)
  if (path / ERROR).exists():
    record = json.loads((path / ERROR).read_text())
    status, error = record['exit_status'], record['error']
    return Row(unit, 'failed', status, error, override, {})
  status = 'unfinished' if path.exists() else 'waiting'
  return Row(unit, status, None, '', override, {})


def scalars(results: dict, prefix: str = '') -> dict[str, float]:
  """The numbers in a results.json, nested names joined by dots."""
  found: dict[str, float] = {}
  for name, value in results.items():
    if not prefix and name in CIRCUMSTANCES:
      continue
    if isinstance(value, dict):
      found |= scalars(value, f'{prefix}{name}.')
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
      found[prefix + name] = float(value)
  return found


def shared(rows: Sequence[Row]) -> list[str]:
  """Scalars that all finished units have, those first that differ."""
  done = [r.scalars for r in rows if r.status == 'finished']
  names = [k for k in (done[0] if done else {}) if all(k in s for s in done)]
  return sorted(names, key=lambda k: len({s[k] for s in done}) == 1)


def _table(rows: Sequence[Row], names: Sequence[str]) -> list[list[str]]:
  fields = list(dict.fromkeys(k for r in rows for k in r.override))
  lines = [['unit', 'status', 'exit_status', *fields, *names, 'error']]
  for r in rows:
    exit_status = '' if r.exit_status is None else str(r.exit_status)
    values = [str(r.override.get(k, '')) for k in fields]
    values += [f'{r.scalars[k]:.6g}' if r.scalars else '' for k in names]
    error = ' '.join(r.error.split())
    lines.append([r.unit, r.status, exit_status, *values, error])
  return lines


def text(rows: Sequence[Row]) -> str:
  """The table for a terminal, with the first few scalars."""
  lines = _table(rows, shared(rows)[:PANELS])
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  return '\n'.join(
    '  '.join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip()
    for line in lines
  )


def write(rows: Sequence[Row], workdir: str) -> None:
  """Writes sweep.csv and, where finished units share a scalar, sweep.png."""
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  buffer = io.StringIO()
  csv.writer(buffer, lineterminator='\n').writerows(_table(rows, shared(rows)))
  log.write_whole(folder / 'sweep.csv', buffer.getvalue().encode())
  if shared(rows):
    picture = io.BytesIO()
    plot(rows).savefig(picture, format='png', dpi=120)
    log.write_whole(folder / 'sweep.png', picture.getvalue())


def plot(rows: Sequence[Row]) -> Figure:
  """A panel per scalar over the units, or over the one number they vary."""
  rows = [r for r in rows if r.status == 'finished']
  names = shared(rows)[:PANELS]
  values = [list(r.override.values()) for r in rows]
  numeric = all(len(v) == 1 and isinstance(v[0], int | float) for v in values)
  x = [v[0] for v in values] if numeric else list(range(len(rows)))
  figure = Figure((3.2 * len(names), 3.0), layout='constrained')
  for i, name in enumerate(names):
    axes = figure.add_subplot(1, len(names), i + 1)
    points = sorted(zip(x, (r.scalars[name] for r in rows)))
    axes.plot(*zip(*points), 'o-' if numeric else 'o')
    axes.set_title(name, fontsize=9)
    axes.grid(alpha=0.3)
    if numeric:
      axes.set_xlabel(next(iter(rows[0].override)))
      if min(x) > 0 and max(x) >= 100 * min(x):
        axes.set_xscale('log')
    else:
      labels = [
        r.unit + ''.join(f'\n{k}={v}' for k, v in r.override.items())
        for r in rows
      ]
      axes.set_xticks(x, labels, rotation=90, fontsize=6)
  return figure

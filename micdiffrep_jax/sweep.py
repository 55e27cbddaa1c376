"""Sweeps: a config file yields overrides, each of which is a run of its own.

What became of the units is a table, a CSV file and a plot.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import csv
import importlib.util
import io
import json
import numbers
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epath
import jax
from ml_collections import ConfigDict

from micdiffrep_jax import tasks
from micdiffrep_jax.run import files, guard, log, paths
from micdiffrep_jax.run.checks import lookup

if TYPE_CHECKING:
  from matplotlib.figure import Figure

ERROR = 'error.json'  # in the folder of a unit that failed
# Of a results.json, what tells how and where but not how well.
CIRCUMSTANCES = (
  'config versions device host_cores command finished dataset unseen steps '
  'images_seen'
).split()
PANELS = 6


class Unit(NamedTuple):
  """One run of a sweep: its folder and what it changes in the config."""

  folder: str
  override: Mapping[str, Any]  # {'optim.lr': 1e-4}
  config: ConfigDict


class Failure(NamedTuple):
  """The error.json of a unit; exit_status: of a process that ran it alone."""

  error: str
  exit_status: int


class Row(NamedTuple):
  """What became of a unit.

  status: finished | failed | unfinished (begun, then killed) | waiting.
  exit_status: of a process that ran this unit alone; None if not known.
  """

  unit: str
  status: str
  exit_status: int | None
  error: str
  override: Mapping[str, Any]
  scalars: Mapping[str, float]


def read_sweeps(file: str) -> dict[str, Callable[[], Iterable[Mapping]]]:
  """The functions of a config file that yield overrides, by their names.

  'x' for sweep_x() and '' for sweep(). Raises ValueError for a file that is
  not Python.
  """
  spec = importlib.util.spec_from_file_location('sweep_config', file)
  if spec is None or spec.loader is None:
    raise ValueError(f'{file} is not a Python file.')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return {
    k.removeprefix('sweep').removeprefix('_'): v
    for k, v in vars(module).items()
    if (k == 'sweep' or k.startswith('sweep_')) and callable(v)
  }


def units(path: str, name: str, config: ConfigDict, workdir: str) -> list[Unit]:
  """The units of a sweep, in folders workdir/000, 001, ...

  path: of the config file, a preset behind a colon allowed. name: '' for
  sweep(), 'x' for sweep_x(). Raises ValueError for an unknown sweep, field or
  type, and for a sweep without units.
  """
  file = path.split(':')[0]
  chosen = lookup(read_sweeps(file), name, f'sweep in {file}', '--sweep')
  found = []
  for number, override in enumerate(chosen()):
    unit = config.copy_and_resolve_references()
    try:
      unit.update_from_flattened_dict(override)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
      raise ValueError(f'The sweep sets {override}: {e}') from e
    paths.expand_config(unit)
    folder = os.path.join(workdir, f'{number:03d}')
    found.append(Unit(folder, dict(override), unit))
  if not found:
    raise ValueError(f'The sweep {name!r} of {file} yields no unit.')
  return found


def run_sweep(
  path: str,
  name: str,
  config: ConfigDict,
  workdir: str,
  run: Callable[[ConfigDict, str], Mapping],
  index: int | None = None,
) -> list[str]:
  """Runs all units, or one; returns the numbers of those that failed.

  Finished units are skipped. A unit that fails leaves error.json in its
  folder, and the rest still run. In the end workdir/sweep.csv and sweep.png
  hold what is known of all units, whichever process ran them.
  """
  chosen = units(path, name, config, workdir)
  if index is not None and not 0 <= index < len(chosen):
    raise ValueError(
      f'--sweep_index={index} is outside [0, {len(chosen)}), the units of '
      'this sweep.'
    )
  failed = []
  try:
    for i, unit in enumerate(chosen):
      if index in (None, i) and not _run_unit(unit, run, f'{i}/{len(chosen)}'):
        failed.append(f'{i:03d}')
  finally:
    show(chosen, workdir)
  return failed


def _run_unit(
  unit: Unit, run: Callable[[ConfigDict, str], Mapping], place: str
) -> bool:
  """Runs a unit unless it is finished; returns whether it is then."""
  record = os.path.join(unit.folder, ERROR)
  if tasks.finished(unit.folder, unit.config) is not None:
    log.get_logger().info('%s: finished before.', unit.folder)
    return True
  log.get_logger().info('%s: unit %s, %s.', unit.folder, place, unit.override)
  if jax.process_index() == 0 and os.path.exists(record):
    os.remove(record)
  try:
    run(unit.config, unit.folder)
    return True
  except Exception as e:  # one unit's fault is not the next's
    guard.report(e)
    failure = Failure(f'{type(e).__name__}: {e}', guard.exit_status(e))
    if jax.process_index() == 0:
      files.write_json(record, failure._asdict())
    return False
  finally:
    jax.clear_caches()


def show(chosen: Sequence[Unit], workdir: str) -> None:
  """Prints and writes the table of a sweep as it stands."""
  if jax.process_index():
    return
  rows = [row(unit) for unit in chosen]
  write(rows, workdir)
  print(text(rows), flush=True)


def row(unit: Unit) -> Row:
  """What became of a unit, from its folder."""
  name, folder = os.path.basename(unit.folder), epath.Path(unit.folder)
  results = tasks.finished(unit.folder, unit.config)
  if results is not None:
    return Row(name, 'finished', 0, '', unit.override, scalars(results))
  if (folder / ERROR).exists():
    failure = Failure(**json.loads((folder / ERROR).read_text()))
    return Row(
      name, 'failed', failure.exit_status, failure.error, unit.override, {}
    )
  status = 'unfinished' if folder.exists() else 'waiting'
  return Row(name, status, None, '', unit.override, {})


def scalars(results: Mapping[str, Any], prefix: str = '') -> dict[str, float]:
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
  files.write_whole(folder / 'sweep.csv', buffer.getvalue().encode())
  if shared(rows):
    picture = io.BytesIO()
    plot(rows).savefig(picture, format='png', dpi=120)
    files.write_whole(folder / 'sweep.png', picture.getvalue())


def plot(rows: Sequence[Row]) -> 'Figure':
  """A panel per scalar over the units, or over the one number they vary."""
  from matplotlib.figure import Figure  # takes a second, and few runs draw

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

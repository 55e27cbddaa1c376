"""Sweeps: a config file yields overrides, each of which is a run of its own."""

from collections.abc import Callable
import importlib.util
import os
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from micdiffrep_jax import sweep_table, tasks
from micdiffrep_jax.run import guard, log
from micdiffrep_jax.run.checks import lookup


class Unit(NamedTuple):
  """One run of a sweep: its folder and what it changes in the config."""

  folder: str
  override: dict[str, Any]  # {'optim.lr': 1e-4}
  config: ConfigDict


def units(path: str, name: str, config: ConfigDict, workdir: str) -> list[Unit]:
  """The units of a sweep, in folders workdir/000, 001, ...

  path: of the config file, a preset behind a colon allowed. name: '' for
  sweep(), 'x' for sweep_x(). Raises ValueError for an unknown sweep, field or
  type, and for a sweep without units.
  """
  file = path.split(':')[0]
  spec = importlib.util.spec_from_file_location('sweep_config', file)
  if spec is None or spec.loader is None:
    raise ValueError(f'{file} is not a Python file.')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  sweeps = {
    k.removeprefix('sweep').removeprefix('_'): v
    for k, v in vars(module).items()
    if (k == 'sweep' or k.startswith('sweep_')) and callable(v)
  }
  chosen = lookup(sweeps, name, f'sweep in {file}', '--sweep')
  found = []
  for number, override in enumerate(chosen()):
    unit = config.copy_and_resolve_references()
    try:
      unit.update_from_flattened_dict(override)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
      raise ValueError(f'The sweep sets {override}: {e}') from e
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
  run: Callable[[ConfigDict, str], dict],
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
  unit: Unit, run: Callable[[ConfigDict, str], dict], place: str
) -> bool:
  """Runs a unit unless it is finished; returns whether it is then."""
  record = os.path.join(unit.folder, sweep_table.ERROR)
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
    if jax.process_index() == 0:
      log.write_json(
        record,
        {
          'error': f'{type(e).__name__}: {e}',
          'exit_status': guard.exit_status(e),
        },
      )
    return False
  finally:
    jax.clear_caches()


def show(chosen: list[Unit], workdir: str) -> None:
  """Prints and writes the table of a sweep as it stands."""
  if jax.process_index():
    return
  rows = [
    sweep_table.row(u.folder, u.override, tasks.finished(u.folder, u.config))
    for u in chosen
  ]
  sweep_table.write(rows, workdir)
  print(sweep_table.text(rows), flush=True)

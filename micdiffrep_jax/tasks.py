"""The table of tasks, and the task that runs several in a row."""

from collections.abc import Callable, Mapping
import functools
import importlib
import json
import os
import sys
from types import ModuleType
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from micdiffrep_jax.run import files, log, paths
from micdiffrep_jax.run.checks import lookup

Task = Callable[[ConfigDict, str], Mapping[str, Any]]


def run_task(config: ConfigDict, workdir: str) -> Mapping[str, Any]:
  """Runs config.task in workdir and returns its results.

  Raises ValueError, before any work, for a folder that cannot be written.
  """
  task = lookup(TASKS, config.task, 'task', '--config.task')
  paths.check_workdir(workdir)
  generated = [
    path
    for path in data_paths(config)
    if is_phantom(path) and not is_given(path)
  ]
  if generated and config.task != 'pipeline':  # its stages say what they use
    log.get_logger().warning(
      'NO DATA GIVEN: `%s` works on generated phantoms (%s), not on pictures '
      'of patients. Set --config.data.path=DATASET.',
      config.task,
      ', '.join(dict.fromkeys(generated)),
    )
  return task(config, workdir)


def is_phantom(path: str) -> bool:
  """Whether a data path asks for generated pictures."""
  return path.partition(':')[0] == 'phantom' and not os.path.exists(path)


def is_given(path: str) -> bool:
  """Whether the command itself names this data path, and no preset did."""
  return f'data.path={path}' in ' '.join(sys.argv).replace(' ', '=')


def _sharing(task: Task) -> Task:
  """A task of several stages, which find the features of those before them."""

  @functools.wraps(task)
  def call(config: ConfigDict, workdir: str) -> Mapping[str, Any]:
    from micdiffrep_jax.encoders import cache  # on use, as the tasks are

    with cache.shared(os.path.join(workdir, 'features'), config):
      return task(config, workdir)

  return call


@_sharing
def run(config: ConfigDict, workdir: str) -> Mapping[str, Any]:
  """Task `pipeline`: runs config.stages in order, each in its own folder.

  A stage whose results.json stands there with the same config is not run again.
  What a stage leaves empty is filled in from the stages before, see fill_in.
  """
  check_stages(config)
  units: dict[str, ConfigDict] = {}
  folders: dict[str, str] = {}  # of the stages before
  for stage in config.stages:
    units[stage] = fill_in(config, stage, folders)
    folders[stage] = os.path.join(workdir, stage)
  check_units(units)
  results: dict[str, Mapping[str, Any]] = {}
  for stage, unit in units.items():
    folder = folders[stage]
    done = finished(folder, unit)
    if done is not None:
      log.get_logger().info('%s: finished before, %s.', stage, folder)
      results[stage] = done
      continue
    log.get_logger().info('%s: in %s.', stage, folder)
    results[stage] = TASKS[unit.task](unit, folder)
  return files.write_results(workdir, {'task': 'pipeline', **results}, config)


def check_stages(config: ConfigDict) -> None:
  """Raises ValueError for a stage or a task that is not known."""
  known = {k: v for k, v in config.items() if isinstance(v, ConfigDict)}
  for stage in config.stages:
    lookup(known, stage, 'stage', '--config.stages')
    lookup(TASKS, config[stage].task, 'task', f'--config.{stage}.task')


def check_units(units: Mapping[str, ConfigDict]) -> None:
  """Raises ValueError for what a late stage would refuse hours from now."""
  for stage, unit in units.items():
    if unit.task not in CHECKED:
      continue
    try:
      _import(unit.task).check(unit)
    except ValueError as e:
      flags = f'flags begin with --config.{stage}.'
      raise ValueError(f'Stage {stage!r}, whose {flags}: {e}') from e


def fill_in(
  config: ConfigDict, stage: str, folders: Mapping[str, str]
) -> ConfigDict:
  """The config of a stage, told of the folders of the stages before.

  An empty `checkpoint` becomes the folder of the stage `pretrain`, and an empty
  `probe` that of `probe`; of `checkpoints` the one of the method that was
  pretrained; who has no teacher gets the folder of the stage `teacher`; empty
  `runs` become all folders.
  """
  unit = config[stage].copy_and_resolve_references()
  with unit.unlocked():
    for field, earlier in (('checkpoint', 'pretrain'), ('probe', 'probe')):
      if unit.get(field, None) == '' and earlier in folders:
        unit[field] = folders[earlier]
    if 'pretrain' in folders:
      method = config.pretrain.method
      given = unit.get('checkpoints', None)
      if isinstance(given, ConfigDict) and given.get(method, None) == '':
        given[method] = folders['pretrain']
    if 'teacher' in folders:
      for pupil in (unit, *unit.get('pretrain', {}).values()):
        teacher = pupil.get('teacher', None)
        if teacher and not (teacher.checkpoint or teacher.features):
          teacher.checkpoint = folders['teacher']
    if unit.get('runs', None) == ():
      unit.runs = tuple(folders.values())
  return unit


def finished(folder: str, config: ConfigDict) -> files.Results | None:
  """The results of a finished run with this very config, or None."""
  path = epath.Path(folder) / 'results.json'
  if not path.exists():
    return None
  record = json.loads(path.read_text())
  return record if record['config'] == files.plain(config) else None


def _import(task: str) -> ModuleType:
  """The module of a task, imported on use: `prepare` needs no model code."""
  return importlib.import_module(f'micdiffrep_jax.{MODULES[task]}')


def _task(name: str) -> Task:
  """run() of the module of a task.

  The phantoms that its data paths name are prepared before it starts: a task
  only opens data sets.
  """

  def call(config: ConfigDict, workdir: str) -> Mapping[str, Any]:
    for path in data_paths(config):
      from micdiffrep_jax.data import prepare  # `predict` needs none of it

      prepare.resolve(path)
    result: Mapping[str, Any] = _import(name).run(config, workdir)
    return result

  return call


def data_paths(config: ConfigDict) -> list[str]:
  """config.data.path, or those of the parts of a config that has none."""
  if 'path' in config.get('data', {}):
    return [config.data.path]
  parts = [v for v in config.values() if isinstance(v, ConfigDict)]
  return [path for part in parts for path in data_paths(part)]


# The module of each task; `pipeline` is this one.
MODULES = {
  'prepare': 'data.prepare',
  'audit': 'studies.audit',
  'pretrain': 'pretrain.train',
  'convert_clip': 'encoders.convert',
  'probe': 'studies.probe',
  'finetune': 'studies.finetune',
  'probe_curve': 'studies.curve',
  'ablate': 'studies.ablate',
  'label_efficiency': 'studies.labels',
  'cross_validate': 'studies.folds',
  'table1': 'studies.table1',
  'splits': 'studies.splits',
  'sample': 'generate.sample',
  'bundle': 'bundle.export',
  'predict': 'bundle.predict',
  'evaluate': 'bundle.evaluate',
  'report': 'studies.report',
}
# Those whose `check` needs the config alone.
CHECKED = (
  'probe',
  'finetune',
  'ablate',
  'label_efficiency',
  'cross_validate',
  'splits',
  'table1',
)
# Those whose probes find each other's features; so does `pipeline`.
SHARING = ('table1', 'splits')

TASKS: dict[str, Task] = {
  **{name: _task(name) for name in MODULES},
  **{name: _sharing(_task(name)) for name in SHARING},
  'pipeline': run,
}

"""The table of tasks, and the task that runs several in a row."""

from collections.abc import Callable
import functools
import importlib
import json
import os
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from micdiffrep_jax.run import log
from micdiffrep_jax.run.checks import lookup


def _task(module: str) -> Callable[[ConfigDict, str], dict]:
  """run() of a module, imported on use: `prepare` needs no model code."""

  def call(config: ConfigDict, workdir: str) -> dict:
    return importlib.import_module(f'micdiffrep_jax.{module}').run(
      config, workdir
    )

  return call


def _sharing(
  task: Callable[[ConfigDict, str], dict],
) -> Callable[[ConfigDict, str], dict]:
  """A task of several stages, which find the features of those before them."""

  @functools.wraps(task)
  def call(config: ConfigDict, workdir: str) -> dict:
    from micdiffrep_jax.encoders import cache  # on use, as the tasks are

    with cache.shared(os.path.join(workdir, 'features'), config):
      return task(config, workdir)

  return call


@_sharing
def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Task `pipeline`: runs config.stages in order, each in its own folder.

  A stage whose results.json stands there with the same config is not run again.
  A `checkpoint` left empty is the folder of the stage `pretrain` and a `probe`
  that of `probe`, where these came before; among `checkpoints` the one of the
  method that was pretrained; `runs` left empty are the folders of all stages
  before.
  """
  known = {k: v for k, v in config.items() if isinstance(v, ConfigDict)}
  for stage in config.stages:
    lookup(known, stage, 'stage', '--config.stages')
    lookup(TASKS, config[stage].task, 'task', f'--config.{stage}.task')
  results = {}
  for number, stage in enumerate(config.stages):
    folder = os.path.join(workdir, stage)
    unit = config[stage].copy_and_resolve_references()
    with unit.unlocked():
      for field, earlier in (('checkpoint', 'pretrain'), ('probe', 'probe')):
        if unit.get(field, None) == '' and earlier in config.stages[:number]:
          unit[field] = os.path.join(workdir, earlier)
      if 'pretrain' in config.stages[:number]:
        method = config.pretrain.method
        if unit.get('checkpoints', {}).get(method, None) == '':
          unit.checkpoints[method] = os.path.join(workdir, 'pretrain')
      if unit.get('runs', None) == ():
        unit.runs = tuple(
          os.path.join(workdir, s) for s in config.stages[:number]
        )
    done = finished(folder, unit)
    if done is not None:
      log.get_logger().info('%s: finished before, %s.', stage, folder)
      results[stage] = done
      continue
    log.get_logger().info('%s: in %s.', stage, folder)
    results[stage] = TASKS[unit.task](unit, folder)
  return log.write_results(workdir, {'task': 'pipeline', **results}, config)


def finished(folder: str, config: ConfigDict) -> dict | None:
  """The results of a finished run with this very config, or None."""
  path = epath.Path(folder) / 'results.json'
  if not path.exists():
    return None
  record = json.loads(path.read_text())
  return record if record['config'] == log.plain(config) else None


TASKS: dict[str, Callable[[ConfigDict, str], dict]] = {
  'prepare': _task('data.prepare'),
  'audit': _task('studies.audit'),
  'pretrain': _task('pretrain.train'),
  'convert_clip': _task('encoders.convert'),
  'probe': _task('studies.probe'),
  'probe_curve': _task('studies.curve'),
  'ablate': _task('studies.ablate'),
  'label_efficiency': _task('studies.labels'),
  'cross_validate': _task('studies.folds'),
  'table1': _sharing(_task('studies.table1')),
  'splits': _sharing(_task('studies.splits')),
  'sample': _task('generate.sample'),
  'bundle': _task('bundle.export'),
  'predict': _task('bundle.predict'),
  'evaluate': _task('bundle.evaluate'),
  'report': _task('studies.report'),
  'pipeline': run,
}

"""Runs one task or a sweep: python -m micdiffrep_jax.main --config=...

Only what reads flags is imported at the top, so that --help answers at once.
"""

from collections.abc import Sequence
import os
import sys
import threading

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from micdiffrep_jax.run import command

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'NAME[:PRESET] of a config, or FILE[:PRESET]; with --help: its fields.',
  lock_config=True,
)
_LIST = flags.DEFINE_boolean(
  'list', False, 'Only name the configs, or the fields of --config.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; by default runs/<name of the config>.'
)
_SWEEP = flags.DEFINE_string(
  'sweep',
  None,
  "Run the units of the config's sweep_<name>(), or of sweep() for --sweep=.",
)
_DISTRIBUTED = flags.DEFINE_string(
  'distributed',
  'auto',
  'How processes join: auto (Slurm, Open MPI), on (TPU pods), off, or '
  'HOST:PORT,COUNT,INDEX.',
)
_SWEEP_INDEX = flags.DEFINE_integer(
  'sweep_index', None, 'Run this unit of the sweep only.'
)
_SWEEP_LIST = flags.DEFINE_boolean(
  'sweep_list', False, 'Only show what became of the units of the sweep.'
)


def main(argv: Sequence[str]) -> None:
  """Parses nothing itself: absl has; turns user errors into one line."""
  if len(argv) > 1:
    raise app.UsageError(f'Unknown arguments {argv[1:]}.')
  from micdiffrep_jax.run import distributed, guard, log, paths

  absl_logging.set_verbosity(absl_logging.ERROR)
  threading.excepthook = guard.report_of_thread
  keep_compiled_programs()
  config = _CONFIG.value
  path = flags.FLAGS['config'].config_filename  # type: ignore[attr-defined]
  name = os.path.splitext(os.path.basename(path.split(':')[0]))[0]
  try:
    workdir = _WORKDIR.value or os.path.join('runs', name)
    workdir = paths.expand(workdir, '--workdir')
    paths.expand_config(config)
    distributed.initialize(_DISTRIBUTED.value)
    log.speak_on_first_process()
    status = run(config, path, workdir)
  except SystemExit as e:  # all processes stop together, for a signal
    status = int(e.code or 0)
  except Exception as e:
    guard.report(e)
    distributed.leave(guard.exit_status(e))
  distributed.finish()
  sys.exit(status)


def keep_compiled_programs() -> None:
  """Keeps compiled programs between runs: a second start takes seconds."""
  import jax

  from micdiffrep_jax.run import paths

  if os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    return
  folder = os.path.join(paths.user_cache(), 'xla')
  if paths.why_not_writable(folder):  # jax would warn of each program
    return
  jax.config.update('jax_compilation_cache_dir', folder)


def run(config: ConfigDict, path: str, workdir: str) -> int:
  """Does what the flags ask for; returns the exit status.

  path: of the config file, where the sweeps stand.
  """
  from micdiffrep_jax import sweep, tasks

  if _SWEEP_LIST.value:
    units = sweep.units(path, _SWEEP.value or '', config, workdir)
    sweep.show(units, workdir)
  elif _SWEEP.value is not None or _SWEEP_INDEX.value is not None:
    failed = sweep.run_sweep(
      path,
      _SWEEP.value or '',
      config,
      workdir,
      tasks.run_task,
      _SWEEP_INDEX.value,
    )
    return 1 if failed else 0
  else:
    tasks.run_task(config, workdir)
  return 0


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main, flags_parser=command.parse)

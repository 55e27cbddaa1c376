"""Joins the processes of one run: Slurm, Open MPI, TPU pods, or by address.

Every process runs the same program on its own devices; the mesh spans all.
"""

import logging
import os
import sys
from typing import NoReturn

import jax

# A silent process counts as dead after this; the others then end as well.
HEARTBEAT_TIMEOUT_S = 60
# Variables that say how many tasks were started together.
TASK_COUNTS = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')


def initialize(how: str = 'auto') -> None:
  """Connects this process to the others; must precede any use of a device.

  how: 'auto' connects where srun or mpirun started several tasks, 'on' has jax
  find the cluster (every worker of a TPU pod), 'off' never connects, and
  'HOST:PORT,COUNT,INDEX' names the first process, how many there are and which
  this is. Raises ValueError where that is malformed or no cluster is found.
  """
  if how == 'off' or (how == 'auto' and not _several_tasks()):
    return
  # Our own handler stops all processes at one step, see guard.StopSignal.
  jax.config.update('jax_enable_preemption_service', False)
  address: dict[str, str | int] = {}
  if how not in ('auto', 'on'):
    address = parse(how)
  timeouts = {'heartbeat_timeout_seconds': HEARTBEAT_TIMEOUT_S}
  try:
    jax.distributed.initialize(**address, **timeouts)  # type: ignore[arg-type]
  except (ValueError, RuntimeError) as e:
    raise ValueError(
      f'The processes of this run could not be joined: {e}. Set --distributed='
      'HOST:PORT,COUNT,INDEX, or --distributed=off for one process.'
    ) from e


def parse(how: str) -> dict[str, str | int]:
  """'HOST:PORT,COUNT,INDEX' -> arguments of jax.distributed.initialize."""
  address, *numbers = how.split(',')
  whole = len(numbers) == 2 and all(n.isdigit() for n in numbers)
  if not whole or not address.rpartition(':')[2].isdigit():
    raise ValueError(
      f'--distributed={how} is none of auto, on, off, HOST:PORT,COUNT,INDEX.'
    )
  count, index = map(int, numbers)
  if not 0 <= index < count:
    raise ValueError(
      f'--distributed={how}: the index must lie in [0, {count}).'
    )
  return {
    'coordinator_address': address,
    'num_processes': count,
    'process_id': index,
  }


def _several_tasks() -> bool:
  return any(int(os.environ.get(name) or 1) > 1 for name in TASK_COUNTS)


def finish() -> None:
  """Waits for the other processes before this one ends well."""
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()


def leave(status: int) -> NoReturn:
  """Ends this process at once: the others may be waiting for it, so it may not
  wait for them. They end when they miss it.
  """
  if not jax.distributed.is_initialized():
    sys.exit(status)
  logging.shutdown()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)

"""Starts runs of the program cheaply: as forks of a process that imported it.

A test writes requests, one JSON object a line, and reads the answers. Each run
is a process and a session of its own and enters main() as from a command line.
"""

import atexit
import contextlib
import ctypes
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

from etils import epath

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Ended(AssertionError):
  """A run came to its end before it did what was awaited."""


class Spawner:
  """The test's side: starts, awaits and kills runs."""

  def __init__(self, cache: str):
    self._server = subprocess.Popen(
      [sys.executable, __file__],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      start_new_session=True,
      env={
        **os.environ,
        'PYTHONPATH': ROOT,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '',
        'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
        'JAX_COMPILATION_CACHE_DIR': cache,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'TF_CPP_MIN_LOG_LEVEL': '3',
      },
    )
    self.running: set[int] = set()

  def _ask(self, **request):
    self._server.stdin.write(json.dumps(request) + '\n')
    self._server.stdin.flush()
    return json.loads(self._server.stdout.readline())

  def start(self, *argv, output, devices=1, **env):
    """Starts main with these arguments and returns its process id."""
    env['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={devices}'
    pid = self._ask(argv=argv, output=str(output), env=env)
    self.running.add(pid)
    return pid

  def poll(self, pid):
    """The exit status, negative for a signal; None while it runs."""
    status = self._ask(poll=pid)
    if status is not None:
      self.running.discard(pid)
    return status

  def wait(self, pid, timeout_s=400):
    """The exit status, as poll."""
    end = time.monotonic() + timeout_s
    while (status := self.poll(pid)) is None:
      if time.monotonic() > end:
        os.killpg(pid, signal.SIGKILL)
        raise TimeoutError(f'process {pid} did not end in {timeout_s} s')
      time.sleep(0.02)
    return status

  def kill(self, pid, number=signal.SIGKILL):
    """Sends a signal to the run alone and awaits its end."""
    os.kill(pid, number)
    return self.wait(pid)

  def wait_for(self, path, *pids, timeout_s=400):
    """Returns once a file exists; fails if a run ends before."""
    end = time.monotonic() + timeout_s
    while not epath.Path(path).exists():
      for pid in pids:
        status = self.poll(pid)
        if status is not None:
          raise Ended(f'process {pid} ended with {status} before {path}')
      assert time.monotonic() < end, f'no {path} after {timeout_s} s'
      time.sleep(0.02)

  def close(self):
    """Ends what still runs."""
    for pid in self.running:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    self._server.kill()
    self._server.wait()


@functools.cache
def spawner():
  """One for all tests; compiled programs outlive it."""
  spawner = Spawner(os.path.expanduser('~/.cache/micdiffrep_jax/tests-runs'))
  atexit.register(spawner.close)
  return spawner


@functools.cache
def phantom():
  """A small prepared folder of 16 px."""
  from micdiffrep_jax.data import prepare

  return prepare.prepared_phantom('size_px=16,patients=60')


def pretrain(workdir, **overrides):
  """Arguments of a run that saves every other step and logs every one."""
  fields = {
    'data.path': phantom(),
    'model.multipliers': '(1,)',
    'model.attention': '()',
    'model.channels': 4,
    'model.groups': 2,
    'monitor.samples': 0,
    'monitor.probe_images': 0,
    'monitor.images': 16,
    'batch_size': 4,
    'steps': 12,
    'log_every': 1,
    'save_every': 2,
    'eval_every': 6,
    **{k.replace('__', '.'): v for k, v in overrides.items()},
  }
  return [
    '--config=configs/pretrain.py:test',
    f'--workdir={workdir}',
    *(f'--config.{k}={v}' for k, v in fields.items()),
  ]


def free_port():
  """A port nobody listens on just now."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def text(output):
  """What a run wrote, without the progress bar.

  What a killed run was showing stands before the first line of the next.
  """
  with open(output) as f:
    lines = f.read().replace('\r', '\n').splitlines()
  lines = [
    re.sub(r'^pretrain:.*?(?=\d\d:\d\d:\d\d [A-Z]+ |$)', '', x) for x in lines
  ]
  return '\n'.join(x for x in lines if x)


def metrics(workdir):
  """The lines of metrics.jsonl without what depends on speed."""
  with open(os.path.join(workdir, 'metrics.jsonl')) as f:
    lines = [json.loads(line) for line in f]
  return [{k: v for k, v in x.items() if k != 'images_per_s'} for x in lines]


def state(workdir, step=None):
  """Every array of a sound checkpoint: {path: numpy}."""
  import jax
  import numpy as np
  from orbax.checkpoint import v1 as ocp

  from micdiffrep_jax.run import checkpoint

  directory, step = checkpoint.find(str(workdir), step)
  folder = f'{directory}/{step}'
  shapes = ocp.checkpointables_metadata(folder).metadata['state']
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes
  )
  tree = ocp.load_checkpointables(folder, {'state': abstract})['state']
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(k): np.asarray(v) for k, v in flat}


def serve():
  """The other side: never touches a device, so that it may be forked."""
  from micdiffrep_jax.main import app, command, flags, main
  from micdiffrep_jax.pretrain import monitor, train  # noqa: F401

  for line in sys.stdin:
    request = json.loads(line)
    if 'poll' in request:
      pid, status = os.waitpid(request['poll'], os.WNOHANG)
      print(os.waitstatus_to_exitcode(status) if pid else 'null', flush=True)
      continue
    pid = os.fork()
    if pid:
      print(pid, flush=True)
      continue
    os.setsid()
    # A run does not outlive the tests, even if those are killed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    output = os.open(request['output'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.environ.update(request['env'])
    flags.mark_flag_as_required('config')
    sys.argv = ['main', *request['argv']]  # where overrides are looked for
    app.run(main, flags_parser=command.parse)


if __name__ == '__main__':
  serve()

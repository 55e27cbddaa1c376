"""Runs of several processes: they stop together, die together and go on."""

import contextlib
import os
import signal
import time

import numpy as np
import pytest
from spawn import Ended, free_port, metrics, pretrain, spawner, state, text

from micdiffrep_jax.run import checkpoint, distributed

STEPS = 16
# Sums over devices and processes are taken in another order.
TOLERANCE = 2e-5
# Kernels of 3 x 3 x 176 x 176 are large enough to be split, and a save of each
# step takes longer than a step: a signal comes while one is under way.
SPLIT = {'fsdp': True, 'model__channels': 176, 'batch_size': 8, 'save_every': 1}
# It gives a slow peer 30 s: on a busy machine a start may take another.
GLOO_GAVE_UP = 'Gloo context initialization failed'


def start_two(workdir, tmp_path, name, devices=2, **overrides):
  port = free_port()
  return [
    spawner().start(
      *pretrain(workdir, **{'steps': STEPS, **overrides}),
      f'--distributed=127.0.0.1:{port},2,{i}',
      output=tmp_path / f'{name}{i}',
      devices=devices,
    )
    for i in range(2)
  ]


def start_two_as_slurm_does(workdir, tmp_path, name):
  job = str(free_port())  # jax derives the port from it
  return [
    spawner().start(
      *pretrain(workdir, steps=STEPS),
      output=tmp_path / f'{name}{i}',
      devices=2,
      SLURM_JOB_ID=job,
      SLURM_STEP_NODELIST='localhost',
      SLURM_STEP_NUM_TASKS='2',
      SLURM_NTASKS='2',
      SLURM_PROCID=str(i),
      SLURM_LOCALID=str(i),
    )
    for i in range(2)
  ]


def start_two_and_save(workdir, tmp_path, **settings):
  """Two processes that have saved step 4."""
  outputs = tmp_path / 'two0', tmp_path / 'two1'
  for _ in range(3):
    runs = start_two(workdir, tmp_path, 'two', **settings)
    with contextlib.suppress(Ended):
      spawner().wait_for(workdir / 'checkpoints/seals/4.json', *runs)
      return runs
    for run in spawner().running.intersection(runs):
      spawner().wait(run)
    said = '\n'.join(map(text, outputs))
    assert GLOO_GAVE_UP in said, said
    for output in outputs:
      output.unlink()
  raise AssertionError(f'Three times: {GLOO_GAVE_UP}\n{said}')


def start_one(workdir, output, devices=4, **overrides):
  arguments = pretrain(workdir, **{'steps': STEPS, **overrides})
  return spawner().start(*arguments, output=output, devices=devices)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """One process, four devices, never stopped."""
  folder = tmp_path_factory.mktemp('alone')
  run = start_one(folder / 'run', folder / 'output')
  assert spawner().wait(run) == 0, text(folder / 'output')
  return folder / 'run'


def assert_close(workdir, reference):
  want, have = state(reference), state(workdir)
  assert want.keys() == have.keys()
  for name in want:
    np.testing.assert_allclose(
      have[name], want[name], atol=TOLERANCE, err_msg=name
    )
  lines = list(zip(metrics(workdir), metrics(reference), strict=True))
  for line, other in lines:
    assert line == pytest.approx(other, abs=10 * TOLERANCE)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_one_step_and_one_goes_on(tmp_path, alone):
  workdir = tmp_path / 'run'
  runs = start_two_and_save(workdir, tmp_path)
  os.kill(runs[1], signal.SIGTERM)  # not the one that writes
  assert [spawner().wait(r) for r in runs] == [143, 143], text(
    tmp_path / 'two0'
  )
  _, step = checkpoint.find(str(workdir))
  assert f'Stopped by signal 15 at step {step} of' in text(tmp_path / 'two0')
  assert metrics(workdir)[-1]['step'] == step < STEPS
  run = start_one(workdir, tmp_path / 'one')
  assert spawner().wait(run) == 0, text(tmp_path / 'one')
  assert f'Goes on from step {step}.' in text(tmp_path / 'one')
  assert_close(workdir, alone)


@pytest.mark.slow
def test_when_one_process_dies_all_end_and_a_restart_goes_on(tmp_path, alone):
  workdir = tmp_path / 'run'
  runs = start_two_and_save(workdir, tmp_path)
  spawner().kill(runs[1])
  began = time.monotonic()
  assert spawner().wait(runs[0]) != 0
  assert time.monotonic() - began < distributed.HEARTBEAT_TIMEOUT_S + 30
  _, step = checkpoint.find(str(workdir))
  assert 4 <= step < STEPS
  for attempt in ('first', 'second', 'third'):
    runs = start_two_as_slurm_does(workdir, tmp_path, attempt)
    ends = [spawner().wait(r) for r in runs]
    said = text(tmp_path / f'{attempt}0')
    if GLOO_GAVE_UP not in said:
      break
  assert ends == [0, 0], said
  assert '4 device(s)' in said
  assert_close(workdir, alone)


@pytest.mark.slow
def test_a_split_state_that_is_being_saved_goes_on_in_one_process(tmp_path):
  workdir, alone, steps = tmp_path / 'run', tmp_path / 'alone', 10
  more = {**SPLIT, 'steps': steps}
  runs = start_two_and_save(workdir, tmp_path, devices=4, **more)
  os.kill(runs[0], signal.SIGTERM)
  said = text(tmp_path / 'two0')
  assert [spawner().wait(r) for r in runs] == [143, 143], said
  _, step = checkpoint.find(str(workdir))
  assert 4 <= step < steps
  for folder in (workdir, alone):
    run = start_one(folder, tmp_path / 'one', devices=8, **more)
    assert spawner().wait(run) == 0, text(tmp_path / 'one')
  assert f'Goes on from step {step}.' in text(tmp_path / 'one')
  assert_close(workdir, alone)


def test_an_address_is_taken_apart():
  assert distributed.parse('node-1:1234,8,7') == {
    'coordinator_address': 'node-1:1234',
    'num_processes': 8,
    'process_id': 7,
  }


@pytest.mark.parametrize(
  'how',
  ['yes', 'host,2,0', 'host:1,2', 'host:1,2,x', 'host:1,2,2', 'host:1,0,0'],
)
def test_a_malformed_address_is_refused(how):
  with pytest.raises(ValueError, match='--distributed='):
    distributed.initialize(how)


def test_one_process_is_left_alone(monkeypatch):
  monkeypatch.setattr('jax.distributed.initialize', None)
  monkeypatch.setenv('SLURM_JOB_ID', '7')  # inside a batch script, not a step
  monkeypatch.setenv('SLURM_NTASKS', '4')
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '1')
  distributed.initialize('auto')
  distributed.initialize('off')

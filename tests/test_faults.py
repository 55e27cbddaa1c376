"""Whole runs that are killed, starved, damaged or misled, and started again."""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from spawn import metrics, phantom, pretrain, spawner, state, text

from micdiffrep_jax.run import checkpoint

STEPS = 30


def finish(workdir, output, steps=STEPS):
  """Runs to the end and returns what was said."""
  run = spawner().start(*pretrain(workdir, steps=steps), output=output)
  status = spawner().wait(run)
  assert status == 0, text(output)
  return text(output)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  """{steps: folder of an uninterrupted run}, made on demand."""
  made = {}

  def make(steps=STEPS):
    if steps not in made:
      folder = tmp_path_factory.mktemp(f'undisturbed{steps}')
      finish(folder, folder / 'output', steps)
      made[steps] = folder
    return made[steps]

  return make


def assert_same(workdir, reference):
  """Parameters, EMA, optimizer, averages and metrics, to the last bit."""
  want, have = state(reference), state(workdir)
  assert len(want) > 20
  assert want.keys() == have.keys()
  for name in want:
    np.testing.assert_array_equal(want[name], have[name], err_msg=name)
  assert metrics(workdir) == metrics(reference)


def unsealed(directory):
  """Whether a save is under way: a step's folder, or Orbax's temporary one."""
  with contextlib.suppress(FileNotFoundError):
    sealed = set(os.listdir(f'{directory}/seals'))
    names = [n for n in os.listdir(directory) if n[:1].isdigit()]
    return any(f'{n}.json' not in sealed for n in names)
  return False


def begun(output):
  """How many runs have written here that they begin."""
  return output.read_text().count(' steps of ') if output.exists() else 0


def size(path):
  return path.stat().st_size if path.exists() else 0


def until(condition, run, output):
  """Waits for a condition; False where the run came to its end before."""
  while not condition():
    status = spawner().poll(run)
    if status is not None:
      assert status == 0, text(output)
      return False
    time.sleep(0.002)
  return True


@pytest.mark.slow
def test_killed_runs_end_bit_identical(tmp_path, undisturbed):
  kills, steps = 20, 120
  reference = undisturbed(steps)
  workdir, output = tmp_path / 'run', tmp_path / 'output'
  directory, lines = workdir / 'checkpoints', workdir / 'metrics.jsonl'
  moment = random.Random(kills)
  killed = in_a_save = 0
  while killed < kills:
    before = begun(output)
    run = spawner().start(*pretrain(workdir, steps=steps), output=output)
    # Every start cuts metrics.jsonl back to its checkpoint, then appends.
    alive = until(lambda: begun(output) > before, run, output)  # noqa: B023
    length = size(lines)
    alive = alive and until(lambda: size(lines) != length, run, output)  # noqa: B023
    if killed % 2:
      time.sleep(moment.uniform(0, 0.3))
    else:
      alive = alive and until(lambda: unsealed(directory), run, output)
    if alive and spawner().kill(run) == -signal.SIGKILL:
      killed += 1
      in_a_save += unsealed(directory)
    else:  # too fast for the next kill: as good as undisturbed, and anew
      assert_same(workdir, reference)
      shutil.rmtree(workdir)
  assert in_a_save >= kills // 4
  finish(workdir, output, steps)
  assert_same(workdir, reference)


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on_from_there(tmp_path, undisturbed):
  workdir, output = tmp_path / 'run', tmp_path / 'output'
  run = spawner().start(*pretrain(workdir, steps=STEPS), output=output)
  spawner().wait_for(workdir / 'checkpoints/seals/4.json', run)
  assert spawner().kill(run, signal.SIGTERM) == 143
  said = text(output)
  _, step = checkpoint.find(str(workdir))
  (line,) = [x for x in said.splitlines() if 'WARNING' in x]
  assert f'Stopped by signal 15 at step {step} of {STEPS}; saved.' in line
  assert metrics(workdir)[-1]['step'] == step
  assert f'Goes on from step {step}.' in finish(workdir, output)
  assert_same(workdir, undisturbed())


@pytest.mark.parametrize(
  'damage',
  [
    pytest.param('bit', marks=pytest.mark.slow),
    pytest.param('seal', marks=pytest.mark.slow),
    pytest.param('half', marks=pytest.mark.slow),
  ],
)
def test_a_damaged_checkpoint_costs_no_more_than_its_steps(
  tmp_path, undisturbed, damage
):
  workdir = shutil.copytree(undisturbed(), tmp_path / 'run')
  directory = workdir / 'checkpoints'
  newest = directory / str(STEPS)
  if damage == 'bit':
    files = [p for p in newest.rglob('*') if p.is_file()]
    file = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
  elif damage == 'seal':
    (directory / 'seals' / f'{STEPS}.json').write_text('{')
  else:
    shutil.rmtree(newest / 'state')
    (directory / '99').mkdir()
  said = finish(workdir, tmp_path / 'output')
  warnings = [x for x in said.splitlines() if 'WARNING' in x]
  assert len(warnings) == (2 if damage == 'half' else 1), said
  assert f'Checkpoint {STEPS} ' in warnings[-1]
  assert f'Goes on from step {STEPS - 2}.' in said
  assert checkpoint.find(str(workdir))[1] == STEPS
  assert_same(workdir, undisturbed())


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 4 MiB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(folder)]
  try:
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError) as e:
    pytest.skip(f'a small tmpfs cannot be mounted here: {e}')
  yield folder
  subprocess.run(['umount', '-l', str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_step(small_disk, undisturbed):
  workdir, output = small_disk / 'run', small_disk.parent / 'output'
  run = spawner().start(*pretrain(workdir, steps=STEPS), output=output)
  spawner().wait_for(workdir / 'checkpoints/seals/4.json', run)
  filler = small_disk / 'filler'
  with contextlib.suppress(OSError), open(filler, 'wb', 0) as f:
    while True:
      f.write(bytes(4096))
  assert spawner().wait(run) == 2
  # Orbax and TensorBoard log their own traces around it, and threads theirs.
  (line,) = [x for x in text(output).splitlines() if ' ERROR OSError: ' in x]
  assert 'space' in line
  assert '--workdir' in line
  _, step = checkpoint.find(str(workdir))
  assert step >= 4
  filler.unlink()
  finish(workdir, output)
  assert_same(workdir, undisturbed())


@pytest.mark.slow
def test_changed_settings_or_data_are_named(tmp_path, undisturbed):
  workdir, output = tmp_path / 'run', tmp_path / 'output'
  shutil.copytree(undisturbed(), workdir)
  arguments = pretrain(workdir, steps=STEPS, optim__lr=0.5, data__split='paper')
  assert spawner().wait(spawner().start(*arguments, output=output)) == 2
  said = text(output)
  assert 'config.optim.lr: 0.0001 -> 0.5' in said
  assert 'config.data.split: patient -> paper' in said
  assert 'info.split_hash: ' in said
  assert '--config.allow_changes=True' in said
  assert_same(workdir, undisturbed())


def processes_of_session(session):
  found = []
  for folder in pathlib.Path('/proc').iterdir():
    with contextlib.suppress(OSError, ValueError):
      fields = (folder / 'stat').read_text().rpartition(')')[2].split()
      if int(fields[3]) == session and fields[0] != 'Z':
        found.append(folder.name)
  return found


@pytest.mark.slow
def test_a_second_run_is_refused_and_a_kill_leaves_no_process(tmp_path):
  workdir, output = tmp_path / 'run', tmp_path / 'output'
  arguments = pretrain(workdir, steps=10_000)
  first = spawner().start(*arguments, output=output)
  spawner().wait_for(workdir / 'checkpoints/seals/2.json', first)
  second = spawner().start(*arguments, output=tmp_path / 'second')
  assert spawner().wait(second) == 2
  assert f'Another run (process {first})' in text(tmp_path / 'second')
  assert spawner().poll(first) is None
  assert processes_of_session(first) == [str(first)]
  spawner().kill(first)
  assert processes_of_session(first) == []


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  workdir, output = tmp_path / 'run', tmp_path / 'output'
  arguments = pretrain(
    workdir, steps=40, optim__lr=1e30, optim__clip_norm=0.0, save_every=1
  )
  assert spawner().wait(spawner().start(*arguments, output=output)) == 2
  said = text(output)
  assert 'FloatingPointError: The loss is not finite at step ' in said
  step = int(said.partition('not finite at step ')[2].split()[0])
  assert 1 < step < 40
  assert checkpoint.find(str(workdir))[1] == step - 1
  assert all(np.isfinite(v).all() for v in state(workdir).values())
  assert metrics(workdir)[-1]['step'] == step - 1
  # The same command with the checks on names the operation.
  output.unlink()
  run = spawner().start(*arguments, '--config.debug=True', output=output)
  assert spawner().wait(run) == 2
  assert 'invalid value (nan) encountered in' in text(output)


@pytest.mark.slow
def test_a_profile_of_some_steps_lies_where_tensorboard_looks(tmp_path):
  workdir, output = tmp_path / 'run', tmp_path / 'output'
  arguments = pretrain(workdir, steps=6, profile='3:4', data__path=phantom())
  assert spawner().wait(spawner().start(*arguments, output=output)) == 0
  traces = list((workdir / 'tensorboard/plugins/profile').rglob('*.xplane.pb'))
  assert len(traces) == 1
  assert b'step_fn' in traces[0].read_bytes()

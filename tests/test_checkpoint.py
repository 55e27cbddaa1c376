import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micdiffrep_jax.run import checkpoint
from micdiffrep_jax.run.checkpoint import Metadata


def make_state(value=1.0, width=4):
  return {
    'params': {'kernel': jnp.arange(3.0 * width).reshape(3, width) * value},
    'extra': {'ema': jnp.full((width,), float(value))},
  }


def abstract(state):
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
  )


@pytest.fixture
def directory(tmp_path):
  """Checkpoints 1 to 3; step i holds make_state(i)."""
  path = str(tmp_path / 'checkpoints')
  checkpoints = checkpoint.Checkpoints(path)
  for i in (1, 2, 3):
    checkpoints.save(i, make_state(i), Metadata({'seed': i}, {}))
  checkpoints.close()
  return path


def restored(directory):
  checkpoints = checkpoint.Checkpoints(directory)
  state = checkpoints.restore(abstract(make_state()))
  checkpoints.close()
  return checkpoints.latest, state


def largest_file(folder):
  files = [p for p in pathlib.Path(folder).rglob('*') if p.is_file()]
  return max(files, key=lambda p: p.stat().st_size)


def test_newest_is_restored_exactly_and_older_ones_go(directory):
  step, state = restored(directory)
  assert step == 3
  jax.tree.map(np.testing.assert_array_equal, state, make_state(3))
  assert checkpoint.steps(directory) == [2, 3]
  assert sorted(os.listdir(f'{directory}/seals')) == ['2.json', '3.json']


def test_best_and_regular_ones_are_kept_beside_the_newest(tmp_path):
  path = str(tmp_path / 'checkpoints')
  checkpoints = checkpoint.Checkpoints(path, keep_every=4, best_metric='loss')
  for i, loss in enumerate([3.0, 1.0, 2.0, 4.0, 5.0, 6.0, 7.0], start=1):
    checkpoints.save(i, make_state(i), Metadata({}, {}), {'loss': loss})
  checkpoints.close()
  assert checkpoint.steps(path) == [2, 4, 6, 7]


def test_every_flipped_bit_is_noticed(directory, caplog):
  for path in pathlib.Path(directory, '3').rglob('*'):
    if path.is_file() and path.stat().st_size:
      whole = path.read_bytes()
      broken = bytearray(whole)
      broken[len(whole) // 2] ^= 1
      path.write_bytes(bytes(broken))
      assert checkpoint.find(directory) == (directory, 2), path
      path.write_bytes(whole)
  assert checkpoint.find(directory) == (directory, 3)


@pytest.mark.parametrize('damage', ['flip', 'cut', 'empty', 'unsealed', 'seal'])
def test_a_damaged_step_is_dropped_and_can_be_saved_again(directory, damage):
  step = pathlib.Path(directory, '3')
  seal = pathlib.Path(directory, 'seals', '3.json')
  if damage == 'flip':
    file = largest_file(step)
    data = bytearray(file.read_bytes())
    data[-1] ^= 128
    file.write_bytes(bytes(data))
  elif damage == 'cut':
    file = largest_file(step)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  elif damage == 'empty':
    (pathlib.Path(directory) / '9').mkdir()
    largest_file(step).unlink()
  elif damage == 'unsealed':
    seal.unlink()
  else:
    seal.write_text(seal.read_text()[:10])
  checkpoints = checkpoint.Checkpoints(directory)
  assert checkpoints.latest == 2
  checkpoints.save(3, make_state(30), Metadata({}, {}))
  checkpoints.close()
  latest, state = restored(directory)
  assert latest == 3
  jax.tree.map(np.testing.assert_array_equal, state, make_state(30))


def test_another_model_is_refused_with_the_list_of_differences(directory):
  other = make_state(width=5)
  other['params']['bias'] = jnp.zeros(5)
  checkpoints = checkpoint.Checkpoints(directory)
  with pytest.raises(ValueError, match='does not fit') as e:
    checkpoints.restore(abstract(other))
  checkpoints.close()
  text = str(e.value)
  assert "missing params/bias ((5,), 'float32')" in text
  assert 'params/kernel is ((3, 4)' in text


def test_dtype_is_never_cast_silently(directory):
  other = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_state())
  checkpoints = checkpoint.Checkpoints(directory)
  with pytest.raises(ValueError, match='bfloat16'):
    checkpoints.restore(abstract(other))
  checkpoints.close()


def test_a_part_of_a_state_is_loaded_alone(directory):
  want = abstract(make_state())
  del want['params']
  state = checkpoint.load(directory, 3, want)
  assert set(state) == {'extra'}
  np.testing.assert_array_equal(state['extra']['ema'], 3 * np.ones(4))
  assert checkpoint.read_metadata(directory, 3) == Metadata({'seed': 3}, {})


def test_find_takes_a_run_its_checkpoints_or_one_step(directory):
  run = os.path.dirname(directory)
  assert checkpoint.find(run) == (directory, 3)
  assert checkpoint.find(directory, 2) == (directory, 2)
  assert checkpoint.find(f'{directory}/2') == (directory, 2)
  with pytest.raises(ValueError, match=r'No step 7.*\[2, 3\]'):
    checkpoint.find(directory, 7)
  with pytest.raises(ValueError, match='--config.checkpoint=DIR'):
    checkpoint.find('/nowhere')


def test_a_seal_names_every_file(directory):
  with open(f'{directory}/seals/3.json') as f:
    sealed = set(json.load(f))
  folder = pathlib.Path(directory, '3')
  files = {str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()}
  assert sealed == files


def test_relative_paths_are_found_and_loaded(directory, monkeypatch):
  run = os.path.dirname(directory)
  monkeypatch.chdir(os.path.dirname(run))
  found = checkpoint.find(os.path.basename(run))
  assert found == (directory, 3)
  state = checkpoint.load(*found, abstract(make_state()))
  jax.tree.map(np.testing.assert_array_equal, state, make_state(3))

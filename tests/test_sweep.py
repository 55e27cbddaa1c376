import csv
import json
import os

from ml_collections import ConfigDict
import pytest

from micdiffrep_jax import sweep
from micdiffrep_jax.run import files

SWEEPS = """
from ml_collections import ConfigDict

def get_config(preset=''):
  return ConfigDict()

def sweep():
  for lr in (1e-4, 1e-3, 1e-2):
    yield {'optim.lr': lr}

def sweep_typo():
  yield {'optim.lrr': 1.0}

def sweep_type():
  yield {'optim.lr': 'fast'}

def sweep_none():
  yield from ()
"""


@pytest.fixture
def path(tmp_path):
  file = tmp_path / 'config.py'
  file.write_text(SWEEPS)
  return f'{file}:preset'


def make_config():
  config = ConfigDict({'task': 'x', 'seed': 3, 'optim': {'lr': 0.1}})
  return config.lock()


class Task:
  """Writes results as a task does; fails for one learning rate."""

  def __init__(self, fails=None, error=None):
    self.fails, self.error = fails, error
    self.seen = []

  def __call__(self, config, workdir):
    self.seen.append(config.optim.lr)
    if config.optim.lr == self.fails:
      raise self.error or ValueError('lr too high')
    results = {'loss': config.optim.lr * 2, 'nested': {'score': 1.0}}
    return files.write_results(workdir, results, config)


def table(workdir):
  with open(os.path.join(workdir, 'sweep.csv')) as f:
    return list(csv.DictReader(f))


def test_each_unit_changes_only_its_fields(path, tmp_path):
  config = make_config()
  found = sweep.units(path, '', config, 'w')
  assert [u.config.optim.lr for u in found] == [1e-4, 1e-3, 1e-2]
  assert [u.folder for u in found] == ['w/000', 'w/001', 'w/002']
  assert all(u.config.seed == 3 and u.config.is_locked for u in found)
  assert config.optim.lr == 0.1


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('typo', 'lrr'),
    ('type', 'fast'),
    ('none', 'yields no unit'),
    ('other', "'', 'none', 'typ"),
  ],
)
def test_a_wrong_sweep_is_refused_before_any_unit_runs(path, name, message):
  task = Task()
  with pytest.raises(ValueError, match=message):
    sweep.run_sweep(path, name, make_config(), 'nowhere', task)
  assert not task.seen
  assert not os.path.exists('nowhere')


@pytest.mark.parametrize(
  ('error', 'status'), [(ValueError('too high'), 2), (RuntimeError('bug'), 1)]
)
def test_a_failed_unit_is_listed_and_the_rest_finish(
  path, tmp_path, capsys, error, status
):
  task = Task(fails=1e-3, error=error)
  args = (path, '', make_config(), str(tmp_path), task)
  assert sweep.run_sweep(*args) == ['001']
  assert task.seen == [1e-4, 1e-3, 1e-2]
  rows = table(tmp_path)
  assert [r['status'] for r in rows] == ['finished', 'failed', 'finished']
  assert [r['exit_status'] for r in rows] == ['0', str(status), '0']
  assert rows[1]['error'] == f'{type(error).__name__}: {error}'
  assert [r['loss'] for r in rows] == ['0.0002', '', '0.02']
  assert rows[2]['nested.score'] == '1'
  assert str(error) in capsys.readouterr().out


def test_a_second_start_runs_what_is_not_finished(path, tmp_path):
  args = (path, '', make_config(), str(tmp_path))
  sweep.run_sweep(*args, Task(fails=1e-3))
  task = Task()
  assert sweep.run_sweep(*args, task) == []
  assert task.seen == [1e-3]
  assert {r['status'] for r in table(tmp_path)} == {'finished'}
  assert not os.path.exists(tmp_path / '001' / sweep.ERROR)


def test_one_unit_by_its_number_tells_of_all(path, tmp_path):
  args = (path, '', make_config(), str(tmp_path))
  task = Task()
  os.makedirs(tmp_path / '002')
  sweep.run_sweep(*args, task, 1)
  assert task.seen == [1e-3]
  status = [r['status'] for r in table(tmp_path)]
  assert status == ['waiting', 'finished', 'unfinished']
  for index in (-1, 3):
    with pytest.raises(ValueError, match=r'\[0, 3\)'):
      sweep.run_sweep(*args, task, index)


def test_a_stop_signal_ends_the_sweep_and_leaves_its_table(path, tmp_path):
  task = Task(fails=1e-3, error=SystemExit(143))
  with pytest.raises(SystemExit):
    sweep.run_sweep(path, '', make_config(), str(tmp_path), task)
  assert task.seen == [1e-4, 1e-3]
  assert table(tmp_path)[0]['status'] == 'finished'
  assert not os.path.exists(tmp_path / '001' / sweep.ERROR)


def test_results_of_another_config_do_not_count(path, tmp_path):
  args = (path, '', make_config(), str(tmp_path))
  sweep.run_sweep(*args, Task())
  record = tmp_path / '000' / 'results.json'
  results = json.loads(record.read_text())
  results['config']['seed'] = 4
  record.write_text(json.dumps(results))
  task = Task()
  sweep.run_sweep(*args, task)
  assert task.seen == [1e-4]


def test_the_plot_shows_each_scalar_over_what_was_varied(path, tmp_path):
  rows = [
    sweep.Row(str(i), 'finished', 0, '', {'lr': x}, {'loss': y, 'n': 1.0})
    for i, (x, y) in enumerate([(1e-2, 5.0), (1e-4, 6.0)])
  ]
  rows.append(sweep.Row('2', 'failed', 1, 'e', {'lr': 1.0}, {}))
  axes = sweep.plot(rows).axes
  assert [a.get_title() for a in axes] == ['loss', 'n']
  assert axes[0].get_xlabel() == 'lr'
  assert axes[0].lines[0].get_xydata().tolist() == [[1e-4, 6.0], [1e-2, 5.0]]
  sweep.write(rows, str(tmp_path))
  assert (tmp_path / 'sweep.png').read_bytes()[:4] == b'\x89PNG'


def test_scalars_leave_out_circumstances():
  results = {
    'loss': 1,
    'ok': True,
    'host_cores': 2,
    'config': {'seed': 1},
    'probe': {'accuracy': 0.5, 'layers': ['a']},
  }
  assert sweep.scalars(results) == {'loss': 1.0, 'probe.accuracy': 0.5}

"""What a stage of a pipeline is told of the stages before it."""

import sys
import types

from ml_collections import ConfigDict
import pytest

from micdiffrep_jax import tasks
from micdiffrep_jax.data import dataset
from micdiffrep_jax.run import files

STAGES = {
  'pretrain': {'method': 'ddpm'},
  'probe': {'checkpoint': ''},
  'table1': {'checkpoints': {'ddpm': '', 'mae': '', 'clip': 'mine'}},
  'bundle': {'checkpoint': 'mine', 'probe': ''},
  'report': {'runs': ()},
}


@pytest.fixture
def seen(monkeypatch):
  """The configs that tasks ran with, by name."""
  found = {}

  def call(config, workdir):
    found[config.task] = config.to_dict()
    return files.write_results(workdir, {'task': config.task}, config)

  monkeypatch.setattr(tasks, 'TASKS', dict.fromkeys(STAGES, call))
  monkeypatch.setattr(tasks, 'CHECKED', ())  # these configs are no studies'
  return found


def get_config():
  config = ConfigDict({'stages': tuple(STAGES), **STAGES})
  for name in STAGES:
    config[name].task = name
  return config


def test_what_is_left_empty_is_what_earlier_stages_made(seen, tmp_path):
  tasks.run(get_config(), str(tmp_path))
  made = {name: str(tmp_path / name) for name in STAGES}
  assert seen['probe']['checkpoint'] == made['pretrain']
  assert seen['table1']['checkpoints'] == {
    'ddpm': made['pretrain'],
    'mae': '',
    'clip': 'mine',
  }
  assert seen['bundle']['checkpoint'] == 'mine'
  assert seen['bundle']['probe'] == made['probe']
  assert seen['report']['runs'] == tuple(list(made.values())[:-1])


def test_who_has_no_teacher_gets_the_one_that_was_made(seen, tmp_path):
  def pupil(checkpoint='', features=''):
    return {'teacher': {'checkpoint': checkpoint, 'features': features}}

  config = get_config()
  config.stages = ('teacher', 'pretrain', 'table1')
  config.teacher = {'task': 'probe'}
  config.pretrain.update(pupil())
  config.table1.pretrain = {
    'ddpm': {},
    'ddpm_aligned': pupil(),
    'aligned_alone': pupil(features='mine.npz'),
    'other': pupil(checkpoint='mine'),
  }
  tasks.run(config, str(tmp_path))
  made = str(tmp_path / 'teacher')
  assert seen['pretrain']['teacher']['checkpoint'] == made
  taught = seen['table1']['pretrain']
  assert taught['ddpm_aligned']['teacher']['checkpoint'] == made
  assert taught['aligned_alone']['teacher']['checkpoint'] == ''
  assert taught['other']['teacher']['checkpoint'] == 'mine'


def test_a_finished_stage_is_not_run_again(seen, tmp_path):
  first = tasks.run(get_config(), str(tmp_path))
  seen.clear()
  config = get_config()
  config.probe.checkpoint = 'another'
  again = tasks.run(config, str(tmp_path))
  assert list(seen) == ['probe']
  assert again['table1'] == first['table1']


def test_an_unknown_stage_is_named_before_any_runs(seen, tmp_path):
  config = get_config()
  config.stages = ('pretrain', 'prob')
  with pytest.raises(ValueError, match='--config.stages'):
    tasks.run(config, str(tmp_path))
  assert not seen


def test_a_phantom_is_prepared_before_its_task_starts(tmp_path, monkeypatch):
  name = 'phantom:size_px=16,patients=24,slices=1'

  def run(config, workdir):
    return {
      'given': config.data.path,
      'images': len(dataset.open_dataset(config.data.path).images),
    }

  monkeypatch.setenv('MICDIFFREP_CACHE', str(tmp_path))
  fake = types.SimpleNamespace(run=run)
  monkeypatch.setitem(sys.modules, 'micdiffrep_jax.fake', fake)
  monkeypatch.setitem(tasks.MODULES, 'a_task', 'fake')
  config = ConfigDict({'data': {'path': name}}).lock()
  assert tasks._task('a_task')(config, '') == {'given': name, 'images': 25}


def test_data_paths_of_parts_count_where_the_task_has_none():
  parts = {
    'pretrain': {'data': {'path': 'a'}},
    'probe': {'data': {'path': 'b'}},
  }
  assert tasks.data_paths(ConfigDict(parts)) == ['a', 'b']
  whole = ConfigDict({'data': {'path': 'c', 'cache': True}, **parts})
  assert tasks.data_paths(whole) == ['c']
  no_data = ConfigDict({'data': {'source': 'x'}, 'probe': 'runs/probe'})
  assert tasks.data_paths(no_data) == []

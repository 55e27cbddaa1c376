"""The whole pipeline's configs: what would only fail hours from its start."""

import pytest

from configs import reproduce
from micdiffrep_jax import tasks
from micdiffrep_jax.methods import METHODS
from micdiffrep_jax.studies import table1

IMAGES = 7532  # of Crystal Clean, that no split tests


@pytest.mark.parametrize('preset', ['paper', 'tiny'])
@pytest.mark.parametrize('name', reproduce.METHODS)
def test_every_row_suits_the_images_at_hand(preset, name):
  config = reproduce.get_config(preset)
  unit = table1.pretrain_config(config.table1, name)
  size_px = config.prepare.data.size_px
  if 'teacher' in unit:
    unit.teacher.shape = (unit.teacher.grid, unit.teacher.grid, 8)
  method = METHODS[unit.method](unit, size_px, 1)
  if method.check:
    method.check(IMAGES)
  asked = config.table1.layers[name]
  assert set(asked) <= set(method.layers)


@pytest.mark.parametrize('preset', ['paper', 'tiny', 'test'])
def test_ours_draws_as_many_images_as_the_other_rows(preset):
  config = reproduce.get_config(preset)
  unit = config.pretrain
  assert unit.steps * unit.batch_size == config.table1.images_drawn
  assert config.table1.ours == unit.method
  ours = config.table1.pretrain[unit.method]
  assert unit.contrast.to_dict() == ours.contrast.to_dict()


def test_the_teacher_has_the_size_of_the_images():
  config = reproduce.get_config('tiny')
  config.prepare.data.size_px = 96
  config.prepare.data.channels = 3
  assert (config.teacher.size_px, config.teacher.input_px) == (96, 192)
  assert config.teacher.channels == 3


def test_a_table_whose_pupils_have_no_teacher_is_refused_at_once(tmp_path):
  config = reproduce.get_config('tiny')
  config.table1.committees = ()
  config.stages = tuple(s for s in config.stages if s != 'teacher')
  flag = r'--config\.pretrain\.ddpm_aligned\.teacher\.checkpoint'
  with pytest.raises(ValueError, match=f"'table1'.*{flag}"):
    tasks.run(config.lock(), str(tmp_path))
  assert not list(tmp_path.glob('*/results.json'))


def test_a_late_stage_is_checked_before_the_first(tmp_path):
  config = reproduce.get_config('test')
  config.splits.splits = ('patients',)
  with pytest.raises(ValueError, match=r"'splits'.*--config\.splits\."):
    tasks.run(config.lock(), str(tmp_path))
  assert not list(tmp_path.glob('*/results.json'))

import importlib.util
import pathlib
import re

from ml_collections import ConfigDict
import pytest

from micdiffrep_jax.tasks import TASKS

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(ROOT.glob('configs/*.py'))


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def presets(path):
  """'' and whatever the file's own preset comparisons name."""
  if hasattr(load(path), 'PRESETS'):
    return load(path).PRESETS
  names = re.findall(r"preset == '(\w+)'", path.read_text())
  return ['', *names] if path.stem != 'pretrain' else ['paper', *names]


CASES = [(p, name) for p in FILES for name in presets(p)]


@pytest.mark.parametrize(('path', 'preset'), CASES)
def test_every_preset_names_a_task_and_locks(path, preset):
  config = load(path).get_config(preset)
  assert isinstance(config, ConfigDict)
  assert config.task in TASKS
  config.lock()


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_unknown_presets_are_refused_and_the_command_is_told(path):
  module = load(path)
  assert 'python -m micdiffrep_jax.main' in module.__doc__
  with pytest.raises(ValueError, match='preset'):
    module.get_config('no_such_preset')


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_configs_import_nothing_of_the_package(path):
  assert 'micdiffrep_jax import' not in path.read_text()

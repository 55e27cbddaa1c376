"""The pages of documentation: what they link to and what they tell to type."""

import importlib.util
import pathlib
import re
import sys
import types

import numpy as np
from PIL import Image
import pytest

import micdiffrep_jax as mdr
from micdiffrep_jax.run import command

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / 'docs').rglob('*.md'))
# A path, or a name alone; what a page spells in capitals is the reader's.
_COMMANDS = re.compile(r'main --config=(\S+)((?:\s+\\?\s*--\S+)*)')


def test_every_page_has_its_place_in_the_site():
  said = (ROOT / 'mkdocs.yml').read_text()
  for path in PAGES:
    assert str(path.relative_to(ROOT / 'docs')) in said


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_commands_name_configs_and_fields_that_exist(path, monkeypatch):
  monkeypatch.chdir(ROOT)
  known = {p.stem: p for p in ROOT.glob('configs/*.py')}
  for given, flags in _COMMANDS.findall(path.read_text()):
    if given.startswith('NAME'):
      continue
    name, _, preset = given.partition(':')
    file = known[pathlib.Path(name).stem]
    at = f'{file.relative_to(ROOT)}:{preset}' if preset else str(file)
    fields = command.describe(at)
    for field in re.findall(r'--config\.([\w.]+)=', flags):
      assert f'--config.{field}=' in fields


@pytest.fixture
def hooks(monkeypatch):
  """docs/hooks.py, whether or not mkdocs is installed."""
  files = types.ModuleType('mkdocs.structure.files')
  files.File = files.Files = object
  for name in ('mkdocs', 'mkdocs.structure'):
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
  monkeypatch.setitem(sys.modules, files.__name__, files)
  spec = importlib.util.spec_from_file_location('hooks', ROOT / 'docs/hooks.py')
  found = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(found)
  return found


def test_the_page_of_the_api_has_each_public_name_with_its_docstring(hooks):
  page = hooks.api_page()
  titles = re.findall('^#+ (.*)$', page, re.MULTILINE)
  assert set(mdr.__all__) < set(titles)
  assert {'Encoder.features', 'KernelClassifier.fit'} < set(titles)
  # What scikit-learn wrote is told there, and what is private nowhere.
  assert not any('set_params' in x or '._' in x for x in titles)
  assert "layers: str | collections.abc.Sequence[str] = 'encoder'" in page
  assert 'rounded to float16' in page


def test_the_picture_of_the_method_is_what_its_script_draws(tmp_path):
  """Up to how a version of matplotlib draws letters."""
  spec = importlib.util.spec_from_file_location('m', ROOT / 'docs/method.py')
  method = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(method)
  method.write(tmp_path / 'method.png')
  assert method.PICTURE.stat().st_size < 150_000
  old, new = (
    np.asarray(Image.open(path).convert('L'), float)
    for path in (method.PICTURE, tmp_path / 'method.png')
  )
  assert old.shape == new.shape
  assert np.abs(old - new).mean() < 3

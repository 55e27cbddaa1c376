"""The pages of documentation: what they link to and what they tell to type."""

import pathlib
import re

import pytest

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

"""The rooms of the package: their order, their size, and what is said of them.

The tuples below are what does not hold yet. A test fails where one of their
entries holds by now, so that they shrink to nothing.
"""

import ast
import graphlib
import re

from architecture import (
  FILES,
  ORDER,
  PACKAGE,
  PICTURE,
  ROOT,
  draw,
  imported_rooms,
  imports,
  module_name,
  room,
)
import pytest

PAGE = ROOT / 'docs' / 'architecture.md'
LINES = 70  # a function fits a screen
TOO_LONG = (
  'encoders.cache fill',
  'generate.sample run',
  'heads.train_head train_head',
  'heads.trained fit',
  'methods.byol make',
  'methods.clip make',
  'methods.ddpm make',
  'methods.moco make',
  'models.unet __call__',
  'pretrain.monitor make',
  'pretrain.train fit',
  'studies.ablate_grid search',
  'studies.ablate_pass fill',
  'studies.probe run',
)
# Imported on use, which hides a circle from Python but not from a reader.
CIRCLES = (
  ('data.phantom', 'data.sources'),
  ('data.sources', 'data.tfds_source'),
)
# Rooms that do not say what enters, what leaves and who may import them.
SILENT = (
  'scores draw data heads diffusion models methods encoders bundle generate '
  'pretrain studies'
).split()
# Files that docs/architecture.md names before they are there.
ABSENT = (
  'data/sources/',
  'heads/base.py',
  'heads/table.py',
  'models/backbones.py',
)


def test_every_unit_has_its_place():
  assert {room(p) for p in FILES} - {''} == set(ORDER)


@pytest.mark.parametrize('path', FILES, ids=module_name)
def test_imports_go_down_only(path):
  own = room(path)
  if not own:
    return
  allowed = set(ORDER[: ORDER.index(own) + 1])
  assert {m.split('.')[0] for m in imports(path)[0]} <= allowed


@pytest.mark.parametrize('path', FILES, ids=module_name)
def test_flax_stays_in_models_and_jax_out_of_data(path):
  outside = imports(path)[1]
  if room(path) != 'models':
    assert 'flax' not in outside
  if room(path) == 'data':
    assert 'jax' not in outside
  assert not outside & {'torch', 'tensorflow'}


def test_no_circle_of_rooms():
  graphlib.TopologicalSorter(imported_rooms()).prepare()


def test_no_circle_of_files():
  graph = {module_name(p): set(imports(p)[0]) - {module_name(p)} for p in FILES}
  for one, other in CIRCLES:
    assert other in graph[one], 'no circle by now: take it off the list'
    assert one in graph[other], 'no circle by now: take it off the list'
    graph[one].remove(other)
  graphlib.TopologicalSorter(graph).prepare()


def test_a_function_fits_a_screen():
  functions = {
    f'{module_name(path)} {node.name}': node.end_lineno - node.lineno + 1
    for path in FILES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
  }
  assert {k for k, n in functions.items() if n > LINES} == set(TOO_LONG)


def test_a_room_says_what_enters_what_leaves_and_who_may_import_it():
  said = {
    name: ast.get_docstring(ast.parse(path.read_text())) or ''
    for name in ORDER
    if (path := PACKAGE / name / '__init__.py').exists()
  }
  words = ('enter', 'leave', 'import')
  silent = [k for k, text in said.items() if not all(w in text for w in words)]
  assert silent == SILENT


def test_the_picture_shows_the_imports_of_today():
  assert PICTURE.read_text() == draw(), 'run: python tests/architecture.py'


def test_the_page_names_every_room_in_order_and_files_that_are_there():
  page = PAGE.read_text()
  rows = re.findall(r'^\| `([a-z]+)` \|', page, re.MULTILINE)
  assert rows == ORDER[::-1]
  named = set(re.findall(r'`([\w/]+(?:\.py|/))`', page))
  assert len(named) > 10
  absent = {
    name
    for name in named
    if not (PACKAGE / name).exists() and not (ROOT / name).exists()
  }
  assert absent == set(ABSENT)

"""The rooms of the package: their order, their size, what is said of them."""

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
  graphlib.TopologicalSorter(graph).prepare()


def test_a_function_fits_a_screen():
  functions = {
    f'{module_name(path)} {node.name}': node.end_lineno - node.lineno + 1
    for path in FILES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
  }
  assert not {k: n for k, n in functions.items() if n > LINES}


def test_a_room_says_what_enters_what_leaves_and_who_may_import_it():
  said = {
    name: ast.get_docstring(ast.parse(path.read_text())) or ''
    for name in ORDER
    if (path := PACKAGE / name / '__init__.py').exists()
  }
  words = ('enter', 'leave', 'import')
  silent = [k for k, text in said.items() if not all(w in text for w in words)]
  assert not silent


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
  assert not absent

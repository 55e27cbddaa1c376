"""Tests of the tests: the suite is collected where nothing optional is."""

import ast
import importlib.util
import pathlib

from optional import OPTIONAL, require
import pytest

TESTS = pathlib.Path(__file__).parent
IMPORTERS = ('importorskip', 'import_module', '__import__')


def run_at_import(tree):
  """Nodes of a module outside of its functions' bodies."""
  waiting = [tree]
  while waiting:
    node = waiting.pop()
    yield node
    match node:
      case ast.FunctionDef() | ast.AsyncFunctionDef():
        waiting += [*node.decorator_list, node.args]
      case ast.Lambda():
        waiting.append(node.args)
      case _:
        waiting += ast.iter_child_nodes(node)


def named(node):
  """Modules that a node imports by a statement or by a call."""
  match node:
    case ast.Import():
      return [alias.name for alias in node.names]
    case ast.ImportFrom(level=0):
      return [node.module]
    case ast.Call(
      func=ast.Attribute(attr=call) | ast.Name(id=call),
      args=[ast.Constant(value=str(module)), *_],
    ) if call in IMPORTERS:
      return [module]
  return []


def imported(path):
  """Top-level names imported with a file, also by its helpers."""
  names, waiting = set(), [path]
  while waiting:
    for node in run_at_import(ast.parse(waiting.pop().read_text())):
      for module in named(node):
        name = module.split('.')[0]
        helper = path.parent / f'{name}.py'
        if name not in names and helper.exists():
          waiting.append(helper)
        names.add(name)
  return names


def test_no_file_of_tests_imports_an_optional_package_with_itself():
  files = [TESTS / 'conftest.py', *sorted(TESTS.rglob('test_*.py'))]
  found = {path.name: imported(path) & set(OPTIONAL) for path in files}
  assert not {name: packages for name, packages in found.items() if packages}


@pytest.mark.parametrize(
  'text',
  [
    'import numpy, torch.nn',
    'from torch import nn',
    "torch = pytest.importorskip('torch')",
    "nn = importlib.import_module('torch.nn')",
    'try:\n  import torch\nexcept ImportError:\n  torch = None',
    'class A:\n  import torch',
    "@use(importorskip('torch'))\ndef f(): ...",
    'import helper',
  ],
)
def test_an_import_at_a_file_s_top_is_found(tmp_path, text):
  (tmp_path / 'helper.py').write_text('import other')
  (tmp_path / 'other.py').write_text('import helper\nimport torch')
  (tmp_path / 'a.py').write_text(text)
  assert 'torch' in imported(tmp_path / 'a.py')


def test_an_import_in_a_function_is_not_at_the_top(tmp_path):
  (tmp_path / 'helper.py').write_text('import torch')
  (tmp_path / 'a.py').write_text(
    'import numpy\nclass A:\n  def f(self):\n    import helper, torch\n'
  )
  assert imported(tmp_path / 'a.py') == {'numpy'}


def test_a_skip_says_what_is_missing_and_how_to_get_it(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(pytest.skip.Exception, match='pydicom.*DICOM.*medical'):
    require('pydicom')
  with pytest.raises(pytest.skip.Exception, match=r'torch.*peers\.txt'):
    require('torch', 'pydicom')


def test_nothing_is_skipped_where_the_package_is_found(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  require('torch', 'pydicom')

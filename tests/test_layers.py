import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / 'micdiffrep_jax'

# Imports go down only: a room may import those before it. The one way up is
# tasks.TASKS, which names modules and imports them on use.
ORDER = (
  'run scores draw data heads diffusion models methods encoders bundle '
  'generate pretrain tasks studies sweep_table sweep main'
).split()
FILES = sorted(PACKAGE.rglob('*.py'))


def unit(path):
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imports(path):
  """Units of the package that a file imports, and other top-level names."""
  inside, outside = set(), set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      parts = node.module.split('.')
      if parts[0] != 'micdiffrep_jax':
        outside.add(parts[0])
      elif len(parts) > 1:
        inside.add(parts[1])
      else:
        inside |= {alias.name for alias in node.names}
    elif isinstance(node, ast.Import):
      for alias in node.names:
        outside.add(alias.name.split('.')[0])
  return inside, outside


def test_every_unit_has_its_place():
  found = {unit(p) for p in FILES} - {'__init__'}
  assert found == set(ORDER)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.name))
def test_imports_go_down_only(path):
  own = unit(path)
  if own == '__init__':
    return
  allowed = set(ORDER[: ORDER.index(own) + 1])
  assert imports(path)[0] <= allowed


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.name))
def test_flax_stays_in_models_and_jax_out_of_data(path):
  outside = imports(path)[1]
  if unit(path) != 'models':
    assert 'flax' not in outside
  if unit(path) == 'data':
    assert 'jax' not in outside
  assert not outside & {'torch', 'tensorflow'}

"""Notebooks run from top to bottom; `-m ''` runs them."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'docs' / 'notebooks').glob('*.ipynb'))


@pytest.mark.slow
@pytest.mark.needs('nbclient', 'nbformat', 'ipykernel')
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, monkeypatch):
  import nbclient
  import nbformat

  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setenv('XLA_FLAGS', '')
  book = nbformat.read(path, 4)
  assert not any(c.get('outputs') for c in book.cells)  # kept without outputs
  nbclient.NotebookClient(book, timeout=1200).execute()
  kinds = [
    kind
    for cell in book.cells
    for output in cell.get('outputs', ())
    for kind in output.get('data', ())
  ]
  assert 'image/png' in kinds

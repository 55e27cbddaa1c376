"""Plots show what they were given, tables hold it, records say it lacks."""

import csv
import io

import cv2
import numpy as np
import pytest

from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.run.records import Content, Damaged


def ink(path):
  image = cv2.imread(str(path))
  assert min(image.shape[:2]) > 300
  return image


def test_confusion_is_darkest_where_the_counts_are(tmp_path):
  path = tmp_path / 'deep' / 'confusion.png'
  plots.save(path, plots.confusion([[90, 0], [0, 90]], ['a', 'b']))
  one = ink(path)
  plots.save(path, plots.confusion([[0, 90], [90, 0]], ['a', 'b']))
  two = ink(path)
  h, w = one.shape[:2]
  corner = np.s_[h // 5 : h // 4, w // 2 - w // 10 : w // 2]
  assert one[corner].mean() < two[corner].mean() - 50


def test_an_empty_bin_leaves_a_gap_not_an_error(tmp_path):
  curve = {
    'edges': [0, 0.5, 1],
    'rows': [0, 4],
    'confidence': [None, 0.8],
    'accuracy': [None, 0.7],
  }
  plots.save(tmp_path / 'r.png', plots.reliability({'msfa': curve}))
  ink(tmp_path / 'r.png')


@pytest.mark.parametrize('band', [False, True])
def test_curves_draw_with_and_without_bands(tmp_path, band):
  line = {'x': [1, 11, 51], 'y': [0.6, 0.7, 0.65]}
  if band:
    line |= {'low': [0.5, 0.6, 0.5], 'high': [0.7, 0.8, 0.7]}
  figure = plots.curves({'mid': line}, 't', 'accuracy', bold='mid')
  plots.save(tmp_path / 'c.png', figure)
  ink(tmp_path / 'c.png')


def test_a_csv_is_what_the_csv_module_writes(tmp_path):
  """Oracle: the csv module, for floats, quotes, line breaks and nothing."""
  rows = [
    (1, 0.1, 1 / 3, 'a,b', None, True),
    (-2, 1e-20, np.float32(0.1), 'say "x"\ntwice', '', np.int64(7)),
  ]
  columns = ('n', 'a', 'b', 'text, quoted', 'empty', 'flag')
  page.write_csv(tmp_path / 'x.csv', columns, rows)
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerows([columns, *rows])
  assert (tmp_path / 'x.csv').read_text() == text.getvalue()
  assert len(list(tmp_path.iterdir())) == 1


def test_a_pivot_keeps_the_order_of_rows_and_columns():
  cells = [('b', 2, 'x'), ('a', 1, 'y'), ('b', 1, 'z')]
  table = page.pivot(cells, ['name'], {2: 'two', 3: 'three', 1: 'one'})
  assert table.columns == ['name', 'two', 'three', 'one']
  assert table.rows == [['b', 'x', '-', 'z'], ['a', '-', '-', 'y']]
  assert page.pivot([], ['name'], {1: 'one'}).rows == []


def test_a_record_says_what_it_lacks_and_where():
  record = Content({'rows': [{'test': {'n': 1}}]}, 'r.json')
  with pytest.raises(Damaged, match="r.json: rows: 0: test has no 'all'"):
    record['rows'][0]['test']['all']
  assert record['rows'][0]['test'].get('all') is None

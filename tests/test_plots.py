"""A plot is a picture of a sensible size that shows what it was given."""

import cv2
import numpy as np
import pytest

from micdiffrep_jax.draw import plots


def ink(path):
  image = cv2.imread(str(path))
  assert min(image.shape[:2]) > 300
  return image


def test_confusion_is_darkest_where_the_counts_are(tmp_path):
  path = tmp_path / 'deep' / 'confusion.png'
  plots.confusion(path, [[90, 0], [0, 90]], ['a', 'b'])
  one = ink(path)
  plots.confusion(path, [[0, 90], [90, 0]], ['a', 'b'])
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
  plots.reliability(tmp_path / 'r.png', {'msfa': curve})
  ink(tmp_path / 'r.png')


@pytest.mark.parametrize('band', [False, True])
def test_curves_draw_with_and_without_bands(tmp_path, band):
  line = {'x': [1, 11, 51], 'y': [0.6, 0.7, 0.65]}
  if band:
    line |= {'low': [0.5, 0.6, 0.5], 'high': [0.7, 0.8, 0.7]}
  plots.curves(tmp_path / 'c.png', {'mid': line}, 't', 'accuracy', bold='mid')
  ink(tmp_path / 'c.png')

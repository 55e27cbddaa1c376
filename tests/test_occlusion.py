"""Heat maps: what is covered, and whether the hottest place is the lesion."""

import cv2
import numpy as np
import pytest
from scipy import stats
import tiny_bundle

from micdiffrep_jax.bundle import occlusion
from micdiffrep_jax.data.sources import phantom

SIDE, MARGIN = 48, 2
SPEC = phantom.Spec(SIDE, 40, 1)


def smaller(picture):
  return cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def phantoms():
  """(image, where its lesion is) of every patient that has one."""
  for patient in range(SPEC.patients):
    lesion = smaller(255 * phantom.lesion(SPEC, patient, 0).astype(np.uint8))
    if lesion.any():
      image = smaller(phantom.draw(SPEC, patient, 0))
      yield image[..., None], lesion > 127


def contrast_of_blobs(model, images, seeds):
  """A classifier that looks for a spot unlike its surroundings, in the brain.

  It has no place of its own: what it looks at is where the spot is.
  """
  thing = occlusion.is_object(images[0]).astype(np.uint8)
  inner = cv2.erode(thing, np.ones((9, 9), np.uint8)) > 0
  odds = []
  for x in images[..., 0].astype(np.float32):
    spot = cv2.GaussianBlur(x, (0, 0), 2) - cv2.GaussianBlur(x, (0, 0), 5)
    odds.append(np.quantile(np.abs(spot[inner]), 0.99) / 4)
  p = 1 / (1 + np.exp(-np.array(odds)))
  return np.stack([1 - p, p], 1)


def test_the_hottest_place_is_the_lesion_far_above_chance(monkeypatch):
  monkeypatch.setattr(occlusion, 'bundle_predict', contrast_of_blobs)
  hits, chances = [], []
  for image, lesion in phantoms():
    drop = occlusion.drop_map(tiny_bundle.model(), image, 1)
    thing = occlusion.is_object(image)
    assert thing[lesion].all()
    np.testing.assert_array_equal(drop[~thing], 0)
    hits.append(occlusion.points_at(drop, lesion, MARGIN))
    chances.append(occlusion.widened(lesion, MARGIN)[thing].mean())
  assert len(hits) == 30  # three classes of four have a lesion
  chance = float(np.mean(chances))
  assert 0.02 < chance < 0.15
  found = stats.binomtest(sum(hits), len(hits)).proportion_ci(method='wilson')
  assert found.low > 3 * chance


def test_air_is_dark_and_at_the_border_and_an_image_may_have_none():
  image = np.zeros((32, 32, 1), np.uint8)
  image[8:24, 8:24] = 150
  image[14:18, 14:18] = 0  # dark, but inside
  thing = occlusion.is_object(image)
  assert thing[8:24, 8:24].all()
  assert not thing[:6].any()
  full = np.full((32, 32, 3), 120, np.uint8)
  assert occlusion.is_object(full).all()
  assert occlusion.is_object(0 * full).all()


def test_what_is_covered_becomes_what_lies_around_it():
  image = np.zeros((32, 32, 1), np.uint8)
  image[4:28, 4:28] = 100
  image[12:20, 12:20] = 250
  copies, weights = occlusion.cover(image, 0.5, 0.25)
  whole = [
    (copy, weight)
    for copy, weight in zip(copies, weights)
    if (weight > 0)[12:20, 12:20].all()
  ]
  assert whole
  for copy, weight in whole:
    # The spot is gone; beyond the window, and in the air, nothing is changed.
    assert abs(copy[12:20, 12:20].astype(int) - 100).max() <= 2
    np.testing.assert_array_equal(copy[weight == 0], image[weight == 0])
  np.testing.assert_array_equal(weights[:, image[..., 0] == 0].max(), 0)


def test_windows_without_an_object_are_not_looked_at():
  image = np.zeros((32, 32, 1), np.uint8)
  image[20:, 20:] = 200
  copies, _ = occlusion.cover(image, 0.25, 0.25)
  assert 4 <= len(copies) <= 9  # of sixteen


def test_a_picture_tells_the_class_and_how_much_red_is():
  image = np.full((16, 16, 1), 90, np.uint8)
  drop = np.zeros((16, 16))
  plain = occlusion.overlay(image, drop, 64, 'glioma, 93 %')
  assert plain.shape == (64 + 22, 128 + 96, 3)
  np.testing.assert_array_equal(plain[22:, :64], plain[22:, 64:128])
  drop[4:8, 4:8] = 0.01  # noise is not stretched to red
  faint = occlusion.overlay(image, drop, 64, 'glioma, 93 %')
  assert abs(faint[22:, :128].astype(int) - plain[22:, :128]).max() < 10
  drop[4:8, 4:8] = 3.0
  assert (occlusion.overlay(image, drop, 64, '') != plain).any()
  with pytest.raises(ValueError, match='window'):
    occlusion.cover(image, 1.5, 0.5)

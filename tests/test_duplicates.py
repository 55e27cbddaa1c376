import cv2
import numpy as np
import pytest

from micdiffrep_jax.data import duplicates
from micdiffrep_jax.data.sources import phantom

LIMITS = duplicates.Thresholds()
SPEC = phantom.Spec()


def search(pictures, limits=LIMITS):
  crops = np.stack([duplicates.head_crop(p) for p in pictures])
  return duplicates.pairs_within(duplicates.describe(crops), limits).tolist()


@pytest.fixture(scope='module')
def heads():
  return [phantom.draw(SPEC, patient, 2) for patient in range(12)]


def jpeg(picture, quality):
  data = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
  return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)


@pytest.mark.parametrize(
  'change',
  [
    lambda x: x.copy(),
    lambda x: jpeg(x, 70),
    lambda x: np.clip(x * 1.2 + 5, 0, 255).astype(np.uint8),
    lambda x: (x * 0.6).astype(np.uint8),
    lambda x: cv2.resize(x, (224, 224)),
    lambda x: cv2.copyMakeBorder(x, 20, 4, 9, 30, cv2.BORDER_CONSTANT),
    lambda x: np.repeat(x[..., None], 3, -1),
  ],
  ids=['copy', 'jpeg', 'brighter', 'darker', 'larger', 'margin', 'colour'],
)
def test_planted_copy_is_the_only_pair(heads, change):
  # Smoothed as scans are: the phantom's pixel noise is no detail of a head.
  smooth = [cv2.GaussianBlur(h, (0, 0), 1) for h in heads]
  assert search([*smooth, change(smooth[3])]) == [[3, 12]]


def test_different_patients_are_no_pair(heads):
  assert search(heads) == []


def test_flat_pictures_are_no_pair():
  flat = [np.full((40, 40), v, np.uint8) for v in (0, 7, 7)]
  assert search(flat) == []


def test_search_equals_brute_force_across_blocks(monkeypatch):
  monkeypatch.setattr(duplicates, '_BLOCK', 7)
  rng = np.random.default_rng(0)
  base = rng.standard_normal((10, 60))
  x = np.concatenate([base, base + 0.2 * rng.standard_normal((10, 60))])
  y = x + 0.1 * rng.standard_normal(x.shape)

  def unit(a):
    return (a / np.linalg.norm(a, axis=1, keepdims=True)).astype('f4')

  d = duplicates.Descriptors(unit(x), unit(y))
  limits = duplicates.Thresholds(0.97, 0.9, 0.975)
  full, detail = d.full @ d.full.T, d.detail @ d.detail.T
  near = ((full >= 0.97) & (detail >= 0.9)) | (detail >= 0.975)
  expected = np.argwhere(np.triu(near, 1))
  assert 3 < len(expected) < 20
  np.testing.assert_array_equal(duplicates.pairs_within(d, limits), expected)
  part = duplicates.Descriptors(d.full[:6], d.detail[:6])
  np.testing.assert_array_equal(
    duplicates.pairs_between(part, d, limits), np.argwhere(near[:6])
  )


def test_each_rule_counts_and_full_alone_does_not():
  def pair(full, detail):
    def vector(c):
      return np.array([[1, 0], [c, np.sqrt(1 - c * c)]], 'f4')

    d = duplicates.Descriptors(vector(full), vector(detail))
    return len(duplicates.pairs_within(d, LIMITS))

  assert pair(0.985, 0.86) == 1
  assert pair(0.2, 0.96) == 1
  assert pair(0.97, 0.94) == 0
  assert pair(0.999, 0.84) == 0


def test_equal_pairs_link_all_equal_rows_but_constant_ones():
  hashes = np.array(['a', 'b', 'a', 'c', 'a', 'b'])
  usable = np.array([1, 0, 1, 1, 1, 0], bool)
  pairs = duplicates.equal_pairs(hashes, usable)
  assert {tuple(sorted(p)) for p in pairs.tolist()} == {(0, 2), (2, 4)}


def test_crop_is_the_head_whatever_salt_lies_around_it():
  disc = cv2.circle(np.zeros((128, 128), np.uint8), (70, 50), 30, 200, -1)
  inside = disc[20:81, 40:101]
  salted = disc.copy()
  salted[[2, 120], [100, 3]] = 255
  for picture in (disc, salted):
    crop = duplicates.head_crop(picture)
    assert crop.shape == (32, 32)
    # Rows that the disc barely touches may fall away: 2 % of them.
    assert abs(duplicates.head_crop(inside).astype(int) - crop).mean() < 2

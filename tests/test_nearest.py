"""Oracle: the search that compares all pairs."""

import cv2
import numpy as np
import pytest

from micdiffrep_jax.data import duplicates, nearest

LIMITS = duplicates.Thresholds()


def crops(n, seed=0):
  """Random pictures; of the first half each has a copy, brighter and noisy."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 200, (n // 2, 10, 10), dtype=np.uint8)
  first = np.stack([cv2.resize(x, (32, 32)) for x in coarse])
  noise = rng.normal(0, 4, first.shape)
  second = np.clip(1.2 * first + noise, 0, 255).astype(np.uint8)
  return np.concatenate([first, second])


@pytest.fixture
def large(monkeypatch):
  monkeypatch.setattr(nearest, 'LARGE', 0)
  monkeypatch.setattr(nearest, '_BLOCK', 150)  # several of them


def test_details_are_those_of_the_exact_search():
  found = crops(20)
  found[3] = 7
  np.testing.assert_allclose(
    nearest._details(found), duplicates.describe(found).detail, atol=1e-5
  )


@pytest.mark.needs('faiss')
def test_all_pairs_are_found_once_and_in_order(large):
  found = crops(800)
  found[[5, 9]] = 7  # flat pictures are equal without showing the same
  exact = duplicates.pairs_within(duplicates.describe(found), LIMITS)
  assert 350 < len(exact) < 450
  np.testing.assert_array_equal(nearest.within(found, LIMITS), exact)


@pytest.mark.needs('faiss')
def test_pairs_with_known_pictures_are_found(large):
  whole = crops(600)
  asked, known = whole[:250], whole[200:]
  exact = duplicates.pairs_between(
    duplicates.describe(asked), duplicates.describe(known), LIMITS
  )
  assert len(exact) > 200
  np.testing.assert_array_equal(nearest.between(asked, known, LIMITS), exact)


@pytest.mark.needs('faiss')
def test_nothing_to_compare_is_no_pair(large):
  flat = np.zeros((40, 32, 32), np.uint8)
  assert nearest.within(flat, LIMITS).shape == (0, 2)
  assert nearest.between(crops(8), flat, LIMITS).shape == (0, 2)


def test_without_its_library_all_pairs_are_compared_and_it_is_named(
  large, monkeypatch
):
  said = []
  monkeypatch.setattr(nearest.importlib.util, 'find_spec', lambda _: None)
  logger = nearest.log.get_logger()
  monkeypatch.setattr(logger, 'warning', lambda *x: said.append(x[0] % x[1:]))
  found = crops(60)
  exact = duplicates.pairs_within(duplicates.describe(found), LIMITS)
  np.testing.assert_array_equal(nearest.within(found, LIMITS), exact)
  assert len(exact) == 30
  (line,) = said
  assert "pip install -e '.[large]'" in line


def test_small_sets_need_no_library(monkeypatch):
  monkeypatch.setattr(
    nearest.importlib.util, 'find_spec', lambda _: pytest.fail('asked')
  )
  assert len(nearest.within(crops(40), LIMITS)) == 20

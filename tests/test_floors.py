"""Oracles: brute force, hand-made images, a generated dataset."""

from types import SimpleNamespace

import numpy as np
import pytest

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.heads import floors, matrix
from micdiffrep_jax.heads.base import Problem


def dataset(n=60, size=32, seed=0):
  """Vertical stripes, horizontal stripes or bright images."""
  rng = np.random.default_rng(seed)
  labels = np.arange(n) % 3
  stripes = np.tile(np.array([0, 0, 1, 1] * (size // 4)), (size, 1))
  base = np.stack([90 * stripes, 90 * stripes.T, 0 * stripes + 200])
  images = base[labels] + rng.integers(0, 50, (n, size, size))
  return SimpleNamespace(
    images=images[..., None].astype(np.uint8),
    classes=('bright', 'horizontal', 'vertical'),
    manifest={'class': np.array(['vertical', 'horizontal', 'bright'])[labels]},
  )


def predict(ds, train, query):
  rows = np.arange(len(ds.images))
  cut = floors.Cut(train, query, data.labels(ds))
  found = floors.predict(ds.images, rows, 3, [cut])
  return {name: probs for name, (probs,) in found.items()}


def test_every_floor_gives_probabilities_and_beats_the_majority():
  ds = dataset()
  train, query = np.arange(42), np.arange(42, 60)
  truth = np.tile([2, 1, 0], 6)
  # Brightness alone cannot tell the two directions of stripes.
  least = {'majority': 0.3, 'forest_brightness': 0.6}
  got = predict(ds, train, query)
  assert set(got) == set(floors.FLOORS)
  for name, probs in got.items():
    assert probs.shape == (18, 3)
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-6)
    accuracy = (probs.argmax(1) == truth).mean()
    assert accuracy >= least.get(name, 0.9), name
  np.testing.assert_allclose(got['majority'][0], 1 / 3)


def test_nearest_equals_brute_force():
  rng = np.random.default_rng(0)
  bank = rng.normal(size=(50, 7)).astype(np.float32)
  query = rng.normal(size=(1100, 7)).astype(np.float32)
  labels = rng.integers(0, 4, 50)
  distance = np.linalg.norm(query[:, None] - bank[None], axis=-1)
  want = labels[distance.argmin(1)]
  kept = np.arange(50)
  problem = Problem(matrix.literal(bank), labels, 4, kept, kept[:1])
  fitted = floors.nearest(problem, seed=0)
  got = floors.nearest_predict(fitted.params, matrix.literal(query))
  assert (got.argmax(1) == want).all()


@pytest.mark.parametrize(('axis', 'bin_number'), [(1, 0), (0, 4)])
def test_a_ramp_votes_for_its_own_orientation(axis, bin_number):
  ramp = np.linspace(0, 255, 64)
  image = np.broadcast_to(ramp if axis else ramp[:, None], (64, 64))
  got = floors.hog(image[..., None].astype(np.uint8)).reshape(-1, 9)
  if axis:  # angle 0 lies between the centres of the first and last bins
    assert (got[:, [0, 8]].sum(1) > 0.99 * got.sum(1)).all()
  else:
    assert (got.argmax(1) == bin_number).all()


def test_hog_ignores_brightness_and_contrast():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 100, (64, 64, 1))
  one = floors.hog(image.astype(np.uint8))
  two = floors.hog((2 * image + 40).astype(np.uint8))
  assert one.shape == (1764,)
  np.testing.assert_allclose(one, two, atol=1e-3)
  assert np.abs(one - floors.hog(image[::-1].astype(np.uint8))).max() > 0.05


def test_brightness_numbers_ignore_flips():
  image = np.random.default_rng(0).integers(0, 255, (64, 64, 1), np.uint8)
  np.testing.assert_allclose(
    floors.brightness(image), floors.brightness(image[:, ::-1]), rtol=1e-5
  )
  assert floors.brightness(image)[0] == pytest.approx(image.mean() / 255)


def test_a_class_without_training_rows_gets_zero():
  ds = dataset()
  train = np.flatnonzero(ds.manifest['class'] != 'horizontal')
  got = predict(ds, train, np.arange(9))
  for name, probs in got.items():
    assert (probs[:, 1] == 0).all(), name


def test_an_unknown_floor_names_the_known():
  with pytest.raises(ValueError, match=r'nearest_hog.*--config\.floors'):
    floors.check(('nearest_hogs',))


def test_unlabelled_rows_are_refused():
  ds = dataset()
  ds.manifest['class'] = ds.manifest['class'].astype(object)
  ds.manifest['class'][3] = ''
  with pytest.raises(ValueError, match='labelled'):
    predict(ds, np.arange(9), np.arange(9))

import numpy as np
import pytest
from scipy import linalg

from micdiffrep_jax.generate import assess


def _draw(seed, n=400, d=6, mean=0.0, scale=1.0):
  return np.random.default_rng(seed).normal(mean, scale, (n, d))


def _compare(generated, val, train):
  sets = assess.FeatureSets(generated, val, train)
  return assess.compare(assess.on_scale(sets))


def test_frechet_distance_of_known_gaussians():
  # For d independent features: sum (m1 - m2)^2 + (s1 - s2)^2.
  a, b = _draw(0, 50_000), _draw(1, 50_000, mean=0.5, scale=2.0)
  want = 6 * (0.5**2 + (2 - 1) ** 2)
  assert assess.frechet_distance(a, b) == pytest.approx(want, rel=0.03)
  shifted = assess.frechet_distance(a, a + 3.0)
  assert shifted == pytest.approx(6 * 9.0, rel=1e-9)


def test_frechet_distance_equals_the_matrix_square_root_form():
  rng = np.random.default_rng(0)
  a, b = (_draw(s) @ rng.normal(size=(6, 6)) for s in (0, 1))
  cov_a, cov_b = np.cov(a.T), np.cov(b.T)
  want = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(
    cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real
  )
  assert assess.frechet_distance(a, b) == pytest.approx(want, rel=1e-8)


def test_frechet_distance_of_fewer_images_than_features_is_sound():
  a = _draw(0, n=5, d=40)
  assert assess.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
  assert assess.frechet_distance(a, a[:, :1] * np.ones(40)) > 0


def test_kernel_distance_equals_its_double_sum():
  a, b = _draw(0, 7, 3), _draw(1, 5, 3, mean=1.0)

  def k(x, y):
    return (np.dot(x, y) / 3 + 1) ** 3

  want = (
    np.mean([k(a[i], a[j]) for i in range(7) for j in range(7) if i != j])
    + np.mean([k(b[i], b[j]) for i in range(5) for j in range(5) if i != j])
    - 2 * np.mean([k(x, y) for x in a for y in b])
  )
  assert assess.kernel_distance(a, b) == pytest.approx(want, rel=1e-10)


def test_kernel_distance_is_unbiased():
  values = [
    assess.kernel_distance(_draw(2 * s, 20), _draw(2 * s + 1, 20))
    for s in range(300)
  ]
  # Zero within four standard errors; the biased estimate is near 0.5.
  assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)


def test_precision_and_recall_tell_dropped_modes_from_bad_images():
  rng = np.random.default_rng(0)
  real = np.concatenate(
    [rng.normal(0, 0.1, (50, 2)), rng.normal(9, 0.1, (50, 2))]
  )
  one_mode = rng.normal(0, 0.03, (60, 2))
  precision, recall = assess.precision_recall(real, one_mode)
  assert precision == 1
  assert recall <= 0.5
  far = rng.normal(40, 0.1, (60, 2))
  assert assess.precision_recall(real, far) == (0, 0)
  assert assess.precision_recall(real, real) == (1, 1)


def test_radius_is_the_kth_neighbour_without_the_image_itself():
  real = np.array([[0.0], [1.0], [3.0], [7.0]])
  # k = 1 radii: 1, 1, 2, 4; so 2.0 to 5.0 around 3, 3.0 to 11.0 around 7.
  generated = np.array([[-1.0], [-1.1], [2.5], [11.0], [11.1]])
  precision, _ = assess.precision_recall(real, generated, k=1)
  assert precision == pytest.approx(3 / 5)


def test_compare_puts_real_images_at_the_floor():
  train, val = _draw(0, 300), _draw(1, 200)
  found = _compare(_draw(2, 100, mean=1.0), val, train)
  assert found.images == {'generated': 100, 'val': 200, 'floor': 100}
  for name in ('frechet_distance', 'kernel_distance'):
    floor = abs(getattr(found.floor, name))
    assert getattr(found.generated, name) > 3 * floor
  assert found.floor.precision > 0.8 > found.generated.recall


def test_compare_takes_features_as_they_are():
  val = 2 * _draw(0)
  found = assess.compare(assess.FeatureSets(val + 3, val, val))
  assert found.generated.frechet_distance == pytest.approx(6 * 9)


def test_a_feature_that_real_images_lack_does_not_outweigh_all_others():
  rng = np.random.default_rng(0)
  real, made = rng.normal(size=(2, 200, 5))
  dead, alive = np.zeros((200, 1)), np.ones((200, 1))
  found = _compare(
    np.hstack([made, alive]), np.hstack([real, dead]), np.hstack([real, dead])
  )
  # One deviation of the others is 1, so the feature is off by 12 of a tenth.
  assert 100 < found.generated.frechet_distance < 200


def test_nearest_equals_brute_force_over_blocks():
  queries, train = _draw(0, 30, 8), _draw(1, 95, 8)
  found = assess.nearest(queries, [train[:40], train[40:41], train[41:]])
  distance = np.sqrt(((queries[:, None] - train[None]) ** 2).mean(-1))
  np.testing.assert_array_equal(found.row, distance.argmin(1))
  np.testing.assert_allclose(found.distance, distance.min(1), rtol=1e-5)


def test_an_exact_copy_is_at_distance_zero():
  train = np.random.default_rng(0).uniform(0, 1, (50, 3000)).astype('f4')
  found = assess.nearest(train[[7, 31]], [train[:20], train[20:]])
  assert found.row.tolist() == [7, 31]
  assert found.distance.tolist() == [0, 0]


def test_copies_are_called_out_and_new_images_are_not():
  rng = np.random.default_rng(0)
  train, val = rng.normal(size=(400, 20)), rng.normal(size=(300, 20))
  val_distance = assess.nearest(val, [train]).distance

  def share(samples):
    found = assess.nearest(samples, [train]).distance
    return assess.memorisation(found, val_distance, 5.0, 0.15)

  new = share(rng.normal(size=(300, 20)))
  assert not new.warning
  # 5 % expected; four standard errors of a share of 300.
  assert abs(new.share_close - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 300)
  half = np.concatenate([train[:150] + 0.01, rng.normal(size=(150, 20))])
  copied = share(half)
  assert copied.warning
  assert copied.share_close > 0.5


def test_a_few_samples_that_are_close_by_chance_give_no_warning():
  val = np.arange(1.0, 33.0)
  few = np.where(np.arange(32) < 5, 0.5, 20.0)  # 16 % of 32; 2 of val are close
  found = assess.memorisation(few, val, 5.0, 0.1)
  assert found.share_close == 5 / 32
  assert not found.warning
  many = assess.memorisation(np.tile(few, 20), np.tile(val, 20), 5.0, 0.1)
  assert many.share_close == 5 / 32
  assert many.warning


def test_what_cannot_be_compared_raises():
  with pytest.raises(ValueError, match=r'\(400, 6\) and \(400, 5\)'):
    assess.frechet_distance(_draw(0), _draw(0, d=5))
  with pytest.raises(ValueError, match='at least 4'):
    assess.precision_recall(_draw(0), _draw(0, n=3))
  with pytest.raises(ValueError, match='no training images'):
    assess.nearest(_draw(0), [])
  with pytest.raises(ValueError, match='percentile=0'):
    assess.memorisation(np.ones(2), np.ones(2), 0, 0.1)

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from micdiffrep_jax.scores import bootstrap


def test_the_mean_is_scikit_learns_and_the_interval_holds_draws_and_groups():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 300)
  groups = np.arange(300) // 5
  # Images of a group are right or wrong together, but for a few.
  right = np.repeat(rng.random((5, 60)) < 0.7, 5, axis=1)
  right ^= rng.random((5, 300)) < 0.05
  said = np.where(right, labels, (labels + 1) % 3)

  def interval(said, groups):
    found = bootstrap.resample(labels, said, groups, 3, 400, 0)
    return {m: bootstrap.interval_over_draws(x) for m, x in found.items()}

  found = interval(said, groups)
  each = [balanced_accuracy_score(labels, s) for s in said]
  balanced = found['balanced_accuracy']
  np.testing.assert_allclose(balanced.each, each)
  assert balanced.value == pytest.approx(np.mean(each))
  assert balanced.low < balanced.value < balanced.high

  # Same answers in each draw: groups alone make the interval. One group: draws.
  same = np.repeat(said[:1], 5, 0)
  by_groups, by_draws = interval(same, groups), interval(said, 0 * groups)
  width = lambda f: f['accuracy'].high - f['accuracy'].low  # noqa: E731
  assert by_groups['accuracy'].deviation == 0
  assert width(by_groups) > 0
  assert 0 < width(by_draws) < width(by_groups)
  p = (same[0] == labels).mean()
  per_group = (same[0] == labels).reshape(60, 5).mean(1)
  standard_error = per_group.std(ddof=1) / 60**0.5
  assert width(by_groups) == pytest.approx(3.92 * standard_error, rel=0.15)
  assert by_groups['accuracy'].value == pytest.approx(p)


def test_a_difference_is_paired():
  """Both are wrong on the same images but for ten: a narrow interval."""
  rng = np.random.default_rng(1)
  labels = rng.integers(0, 3, 300)
  said = np.where(rng.random((5, 300)) < 0.7, labels, (labels + 1) % 3)
  worse = said.copy()
  worse[:, :10] = (labels[:10] + 2) % 3
  a, b = (
    bootstrap.resample(labels, x, np.arange(300), 3, 400, 0)['accuracy']
    for x in (said, worse)
  )
  found = bootstrap.difference(a, b)
  assert found.value == pytest.approx(
    (said == labels).mean() - (worse == labels).mean()
  )
  assert 0 < found.low < found.value < found.high
  alone = bootstrap.interval_over_draws(a)
  assert found.high - found.low < 0.6 * (alone.high - alone.low)
  same = bootstrap.difference(a, a)
  assert same == (0.0, 0.0, 0.0)

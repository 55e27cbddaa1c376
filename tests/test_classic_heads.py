"""Oracles: optimality conditions, scikit-learn, and brute force."""

import numpy as np
import pytest
from scipy import special
from sklearn.neighbors import KNeighborsClassifier

from micdiffrep_jax.heads import classic, matrix
from micdiffrep_jax.heads.base import Problem

K = 3


def problem(n=400, d=8, signal=0.8, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, K, n)
  x = rng.normal(size=(n, d)) + signal * rng.normal(size=(K, d))[labels]
  return matrix.standardise((5 + x).astype(np.float16)), labels


def logistic(features, y, train, val, **tried):
  return classic.logistic(Problem(features, y, K, train, val), **tried)


def neighbours_say(bank, labels, query, k):
  params = {'bank': bank, 'labels': labels, 'classes': K, 'neighbours': k}
  return classic.knn_predict(params, matrix.literal(query))


def test_logistic_regression_is_at_its_optimum():
  features, y = problem()
  train, val = np.arange(300), np.arange(300, 400)
  got = logistic(features, y, train, val, strength=(0.05,))
  z = matrix.as_float32(features, train)
  m, bias = got.params['M'][0], got.params['M_bias'][0]
  error = special.softmax(z @ m.T + bias, axis=1) - np.eye(K)[y[train]]
  # The gradient of the stated objective vanishes, to the solver's tolerance.
  np.testing.assert_allclose(error.T @ z / 300 + 0.05 * m, 0, atol=1e-3)
  np.testing.assert_allclose(error.mean(0), 0, atol=1e-3)
  assert got.told['converged']


def test_strength_is_the_best_on_validation():
  features, y = problem(n=200, d=100, signal=0.2)
  got = logistic(features, y, np.arange(120), np.arange(120, 200))
  scores, strength = got.told['scores'], got.chosen['strength']
  assert scores[strength] == got.score == max(scores.values())
  z = matrix.as_float32(features, np.arange(120, 200))
  logits = z @ got.params['M'][0].T + got.params['M_bias'][0]
  right = (logits.argmax(1) == y[120:]).mean()
  assert got.score == pytest.approx(right)


def test_its_parameters_serve_as_a_linear_head():
  features, y = problem()
  rows = np.arange(300), np.arange(300, 400)
  got = logistic(features, y, *rows, strength=(0.05,))
  z = matrix.as_float32(features, np.arange(400))
  logits = classic.HEADS['logistic'].predict(got.params, features)
  want = z @ got.params['M'][0].T + got.params['M_bias'][0]
  np.testing.assert_allclose(logits, want, atol=1e-4)


@pytest.mark.parametrize('present', [(0, 2), (1, 2)])
def test_an_absent_class_gets_no_probability(present):
  features, y = problem()
  train = np.flatnonzero(np.isin(y, present))
  got = logistic(features, y, train[:150], train[150:], strength=(0.01,))
  logits = classic.HEADS['logistic'].predict(got.params, features)
  (absent,) = set(range(K)) - set(present)
  assert special.softmax(logits, axis=1)[:, absent].max() < 1e-6
  assert (logits.argmax(1) == y)[train[150:]].mean() > 0.7


def test_nearest_neighbours_equal_sklearn():
  features, y = problem(n=1300, d=6)
  z = matrix.as_float32(features, np.arange(1300))
  bank, query = z[:600], z[600:]
  for k in (1, 7):
    theirs = KNeighborsClassifier(
      k,
      metric='cosine',
      weights=lambda distance: np.exp(-distance / 0.07),
    ).fit(bank, y[:600])
    ours = neighbours_say(bank, y[:600], query, k)
    np.testing.assert_allclose(ours, theirs.predict_proba(query), atol=1e-3)


def test_number_of_neighbours_is_the_best_on_validation():
  features, y = problem(signal=0.4)
  train, val = np.arange(300), np.arange(300, 400)
  got = classic.knn(Problem(features, y, K, train, val))
  k, scores = got.chosen['neighbours'], got.told['scores']
  assert scores[k] == got.score == max(scores.values())
  z = matrix.as_float32(features, np.arange(400))
  probs = neighbours_say(z[train], y[train], z[val], k)
  assert scores[k] == pytest.approx((probs.argmax(1) == y[val]).mean())
  np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-6)


def test_one_class_is_refused():
  features, y = problem()
  with pytest.raises(ValueError, match='single class'):
    logistic(features, 0 * y, np.arange(9), np.arange(9, 20))


def test_prototypes_are_the_mean_directions_and_the_nearest_wins():
  features, y = problem(signal=1.5)
  train, val = np.flatnonzero(y[:300] != 1), np.arange(300, 400)
  got = classic.prototypes(Problem(features, y, K, train, val))
  z = matrix.unit(matrix.as_float32(features, np.arange(400)))
  means = {c: z[train][y[train] == c].mean(0) for c in (0, 2)}
  cosine = {c: z @ (m / np.linalg.norm(m)) for c, m in means.items()}
  said = classic.HEADS['prototypes'].predict(got.params, features)
  for c in (0, 2):
    np.testing.assert_allclose(0.07 * said[:, c], cosine[c], atol=1e-4)
  right = np.where(cosine[0] > cosine[2], 0, 2)[val] == y[val]
  assert got.score == pytest.approx(right.mean())
  assert special.softmax(said, axis=1)[:, 1].max() < 1e-6  # no row of it

"""Oracles: scikit-learn's kernel ridge, and the path of trained heads."""

import numpy as np
import pytest
from scipy import special
from sklearn.kernel_ridge import KernelRidge
from test_classic_heads import K, problem

from micdiffrep_jax.heads import kernel, matrix, table
from micdiffrep_jax.heads.base import Problem


def fit(features, y, train, val, **settings):
  return kernel.fit(Problem(features, y, K, train, val), **settings)


def test_its_head_equals_kernel_ridge_regression():
  features, y = problem(n=300)
  train, val = np.arange(200), np.arange(200, 300)
  got = fit(features, y, train, val, gamma=(2.0,), strength=(0.05,))
  u = matrix.unit(matrix.as_float32(features, np.arange(300)))
  mean, (values, vectors) = u[train].mean(0), np.linalg.eigh(np.cov(u[train].T))
  w = (u - mean) @ vectors / values**0.25
  w /= np.sqrt(2 * w[train].var(0, ddof=1).sum())
  share = np.bincount(y[train]) / 200
  theirs = KernelRidge(alpha=0.05, kernel='rbf', gamma=2.0).fit(
    w[train], np.eye(K)[y[train]] - share
  )
  ours = kernel.HEAD.predict(got.params, features)
  np.testing.assert_allclose(ours, theirs.predict(w), atol=2e-3)
  right = (ours[val].argmax(1) == y[val]).mean()
  assert got.told['scores'] == [[2.0, 0.05, pytest.approx(right)]]
  assert got.chosen == {'gamma': 2.0, 'strength': 0.05}


def test_it_learns_what_no_linear_head_can():
  """Classes by the angle's parity: an exclusive or."""
  rng = np.random.default_rng(0)
  _, y = problem()
  side = rng.choice([-1, 1], (400, 2))
  y = (side.prod(1) > 0).astype(int)
  x = side + 0.3 * rng.normal(size=(400, 2))
  features, _ = problem(d=2)
  features = features._replace(x=x.astype(np.float32))
  features = features._replace(shift=np.zeros(2), scale=np.ones(2))
  got = fit(features, y, np.arange(300), np.arange(300, 400))
  logits = kernel.HEAD.predict(got.params, features)
  assert (logits.argmax(1) == y)[300:].mean() > 0.95
  assert got.score == max(score for *_, score in got.told['scores'])
  assert [*got.chosen.values(), got.score] in got.told['scores']


def test_an_absent_class_gets_no_probability():
  features, y = problem()
  train = np.flatnonzero(y != 1)
  got = fit(features, y, train[:150], train[150:])
  logits = kernel.HEAD.predict(got.params, features)
  assert special.softmax(logits, axis=1)[:, 1].max() < 1e-6


def test_many_rows_are_thinned_and_one_class_is_refused(monkeypatch):
  monkeypatch.setattr(kernel, 'ROWS', 50)
  features, y = problem()
  train, val = np.arange(300), np.arange(300, 400)
  got = fit(features, y, train, val)
  assert got.params['centres'].shape[1] == 50
  assert got.score > 0.6
  with pytest.raises(ValueError, match='single class'):
    fit(features, 0 * y, train, val)


@pytest.mark.parametrize('kind', ['kernel', 'kernel_layers'])
def test_fitted_again_it_keeps_its_components_and_what_it_was(kind):
  """Oracle: ridge regression of all rows under the kernel of its components."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(90, 12)).astype(np.float32), np.arange(90) % 3
  x[:, :3] += 3 * np.eye(3)[y]
  features = matrix.standardise(x, maps=(matrix.Map(1, 5), matrix.Map(1, 7)))
  few, every = np.arange(60), np.arange(90)
  head = table.HEADS[kind]
  first = head.fit(Problem(features, y, 3, few, np.arange(60, 90)))
  problem = Problem(features, y, 3, every, every[:1])
  after, before = table.refit(
    kind, problem, first.params, None, (0,), first.chosen
  )
  np.testing.assert_allclose(
    head.predict(before, features),
    head.predict(first.params, features),
    atol=1e-4,
  )
  same = [name for name in after if after[name] is before[name]]
  assert set(after) - set(same) == {'M', 'M_bias'}
  closeness = 0.0
  centres = [name for name in after if name.endswith('centres')]
  for name in centres:
    w = after[name][0]
    apart = np.square(w[:, None] - w[None]).sum(-1)
    closeness = closeness + np.exp(-apart) / len(centres)
  theirs = KernelRidge(alpha=first.chosen['strength'], kernel='precomputed')
  theirs.fit(closeness, np.eye(3)[y] - 1 / 3)
  np.testing.assert_allclose(
    head.predict(after, features), theirs.predict(closeness), atol=2e-3
  )

"""Oracles: the heads of each map alone, and closed forms."""

import jax
import numpy as np
import pytest
from scipy import special
from sklearn.kernel_ridge import KernelRidge

from configs import table1 as table1_config
from micdiffrep_jax.heads import kernel, matrix, nets, table, trained
from micdiffrep_jax.heads.base import Problem
from micdiffrep_jax.heads.matrix import Map
from micdiffrep_jax.heads.trained import Cell, Options, Setting
from micdiffrep_jax.studies import imagenet, table1

N, K = 240, 3
MAPS = (Map(4, 2), Map(1, 5))


def problem(seed=0):
  """Two maps: the first tells class 0 from the others, the second class 1."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, K, N)
  x = rng.normal(size=(N, 13))
  x[:, :8] += 1.5 * (labels == 0)[:, None]
  x[:, 8:] += 1.5 * (labels == 1)[:, None]
  return matrix.standardise(x.astype(np.float16), maps=MAPS), labels


def test_maps_are_the_columns_of_the_layers_that_are_joined():
  rng = np.random.default_rng(0)
  layers = [rng.normal(size=(3, 4, 4, 2)), rng.normal(size=(3, 1, 1, 5))]
  maps = matrix.layout([x.shape for x in layers], 2)
  assert maps == MAPS
  joined = np.concatenate([matrix.pool(x, 2) for x in layers], axis=1)
  first, second = matrix.split(matrix.literal(joined, maps))
  cells = first.x.reshape(3, 4, 2)  # by rows of cells
  corner = layers[0][:, :2, 2:].mean((1, 2))
  np.testing.assert_allclose(cells[:, 1], corner, atol=1e-6)
  np.testing.assert_array_equal(second.x, layers[1].reshape(3, 5))


@pytest.fixture(scope='module')
def fitted():
  """An MLP per layer, trained, and what it was trained on."""
  features, labels = problem()
  options = Options('mlp_layers', hidden=6, epochs=2, batch_size=32)
  (found,) = trained.fit(
    [features],
    labels,
    K,
    [Cell(0, np.arange(160), 3)],
    [Setting(1e-2, 0.1)],
    np.arange(160, N),
    options,
    keep_params=True,
  )
  return features, labels, options, found


def test_each_mlp_of_a_committee_is_trained_as_if_alone(fitted, monkeypatch):
  features, labels, options, together = fitted
  key, _ = jax.random.split(jax.random.key(3))
  keys = jax.random.split(key, len(MAPS))
  mlp = nets.HEADS['mlp']
  for i, part in enumerate(matrix.split(features)):
    start = mlp.init(keys[i], MAPS[i].width, MAPS[i].width, 6, K, True)
    net = mlp._replace(init=lambda *_, start=start: start)
    monkeypatch.setitem(nets.HEADS, 'mlp', net)
    (alone,) = trained.fit(
      [part],
      labels,
      K,
      [Cell(0, np.arange(160), 3)],
      [Setting(1e-2, 0.1)],
      np.arange(160, N),
      options._replace(kind='mlp'),
      keep_params=True,
    )
    for name, value in alone.params.items():
      np.testing.assert_allclose(
        together.params[f'{i}.{name}'], value, atol=1e-5
      )


def test_it_says_the_mean_of_their_probabilities(fitted):
  features, _, _, found = fitted
  said = []
  for i, part in enumerate(matrix.split(features)):
    own = nets.member(found.params, i)
    x = matrix.as_float32(part, np.arange(N))
    hidden = np.maximum(x @ own['W'][0].T + own['W_bias'][0], 0)
    said.append(special.softmax(hidden @ own['M'][0].T + own['M_bias'][0], 1))
  got = table.HEADS['mlp_layers'].predict(found.params, features)
  np.testing.assert_allclose(np.exp(got), np.mean(said, 0), atol=1e-5)
  np.testing.assert_allclose(got[160:], found.logits[0], atol=1e-5)


def test_heads_of_other_maps_are_trained_apart():
  features, labels = problem()
  parts = [*matrix.split(features), features]
  cells = [Cell(i, np.arange(160)) for i in (2, 0, 1, 0)]
  options = Options('mlp_layers', hidden=4, epochs=1)
  run = lambda which: trained.fit(  # noqa: E731
    parts, labels, K, which, [Setting(1e-2)], np.arange(160, N), options
  )
  for cell, one in zip(cells, run(cells)):
    np.testing.assert_allclose(one.logits, run([cell])[0].logits, atol=1e-5)


def test_a_committee_of_kernels_is_ridge_regression_under_their_mean():
  features, y = problem()
  train, val = np.arange(160), np.arange(160, N)
  setting = {'gamma': (2.0,), 'strength': (0.05,)}
  got = kernel.fit_layers(Problem(features, y, K, train, val), **setting)
  closeness = 0.0
  for part in matrix.split(features):
    # A fit of one map projects it as the committee does.
    own = kernel.fit(Problem(part, y, K, train, val), **setting).params
    z = matrix.unit(matrix.as_float32(part, np.arange(N)))
    w = z @ own['W'][0].T + own['W_bias'][0]
    apart = np.square(w[:, None] - w[None, train]).sum(-1)
    closeness = closeness + np.exp(-apart) / len(MAPS)
  share = np.bincount(y[train], minlength=K) / len(train)
  theirs = KernelRidge(alpha=0.05, kernel='precomputed').fit(
    closeness[train], np.eye(K)[y[train]] - share
  )
  ours = table.HEADS['kernel_layers'].predict(got.params, features)
  np.testing.assert_allclose(ours, theirs.predict(closeness), atol=2e-3)
  right = (ours[val].argmax(1) == y[val]).mean()
  assert got.score == pytest.approx(right)
  assert right > 0.7


def test_a_committee_of_one_is_the_kernel_classifier():
  features, y = problem()
  rows = np.arange(160), np.arange(160, N)
  (first, _) = matrix.split(features)
  one = kernel.fit(Problem(first, y, K, *rows))
  committee = kernel.fit_layers(Problem(first, y, K, *rows))
  np.testing.assert_allclose(
    kernel.LAYERS.predict(committee.params, first),
    kernel.HEAD.predict(one.params, first),
    atol=1e-5,
  )
  assert committee.chosen == one.chosen


@pytest.fixture
def probes(tmp_path):
  """What two probes say of 30 images: their folders, and the labels."""
  rng = np.random.default_rng(0)
  label = rng.integers(0, K, 30)
  rows = {'a': ('kernel', 'floor/imagenet'), 'b': ('kernel',)}
  said = {}
  for name, own in rows.items():
    (tmp_path / name).mkdir()
    said |= {(name, row): rng.dirichlet(np.ones(K), 30) for row in own}
    np.savez(
      tmp_path / name / 'predictions.npz',
      **{'test.id': np.arange(30), 'test.label': label, 'test.group': label},
      **{f'test.probs.{row}': said[name, row] for row in own},
    )
  return tmp_path, said, label


@pytest.mark.parametrize('other', ['b', 'imagenet'])
def test_a_committee_of_probes_averages_what_they_say(
  probes, other, monkeypatch
):
  folder, said, label = probes
  monkeypatch.setattr(imagenet, 'left_out', lambda names: {})
  cells = {
    name: {
      'patient': table1.Cell(
        {'rows': {row: {} for of, row in said if of == name}},
        str(folder / name),
      )
    }
    for name in ('a', 'b')
  }
  costs = {name: table1.Cost(3, None, 3, 3) for name in cells}
  config = table1_config.get_config('test')
  config.methods, config.splits = ('a', 'b'), ('patient',)
  config.probe.floors = ('imagenet',)
  found, cost = table1.committee(
    config, f'a+{other}', cells, costs, str(folder)
  )
  second = ('a', 'floor/imagenet') if other == 'imagenet' else ('b', 'kernel')
  mean = (said['a', 'kernel'] + said[second]) / 2
  cell = found['patient']
  with np.load(f'{cell.folder}/predictions.npz') as z:
    np.testing.assert_allclose(z['test.probs.kernel'], mean)
  assert list(cell.found['rows']) == ['kernel']
  accuracy = cell.found['rows']['kernel']['test']['all']['accuracy']
  assert accuracy['value'] == pytest.approx((mean.argmax(1) == label).mean())
  assert cost.images_drawn == (3 if other == 'imagenet' else 6)
  assert cost.training_s is None
  assert ('external' in cost.flags) == (other == 'imagenet')
  table = table1.rows_of({'c': found}, {'c': cost}, 'kernel')
  assert [(line['method'], line['row']) for line in table] == [('c', 'kernel')]

"""Oracles: heads trained one at a time, numpy Adam, and separable data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micdiffrep_jax.heads import base, matrix, nets, trained
from micdiffrep_jax.heads.trained import Cell, Data, Options, Setting

N, K = 150, 3
ALONE = jax.jit(trained.train_head, static_argnums=0)
SETTINGS = (Setting(1e-2), Setting(1e-3, 0.1))


def problem(widths=(5, 12), seed=0, draws=0, dtype=np.float32):
  """Feature sets of several widths with a signal, and labels."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, K, N)
  sets = []
  for d in widths:
    shape = (draws, N, d) if draws else (N, d)
    x = rng.normal(size=shape) + 1.5 * rng.normal(size=(K, d))[labels]
    sets.append(matrix.standardise((3 + 2 * x).astype(dtype)))
  return sets, labels


def alone(features, labels, cell, setting, evaluate, options, rows_of_all):
  """One head, without vmap, padding or company."""
  steps = -(-rows_of_all // options.batch_size)
  shape = (options.epochs, steps, options.batch_size)
  order = trained.batch_rows(
    cell.rows, cell.seed, steps * options.epochs, options.batch_size
  )
  x = features.x[None] if features.x.ndim == 2 else features.x
  draws = np.empty(shape, int)
  for epoch in range(options.epochs):
    draws[epoch] = epoch % len(x)
  return ALONE(
    options,
    Data(
      jnp.asarray(x[None]),
      features.shift[None],
      features.scale[None],
      jnp.asarray(labels, jnp.int32),
      jnp.ones(K),
      jnp.asarray(evaluate, jnp.int32),
      jnp.ones(len(evaluate)),
    ),
    jnp.int32(0),
    jnp.int32(x.shape[-1]),
    (jnp.asarray(order.reshape(shape)), jnp.asarray(draws, jnp.int32)),
    jax.random.key(cell.seed),
    jnp.asarray(setting, jnp.float32),
  )


@pytest.mark.parametrize(
  'options',
  [
    Options('linear', epochs=2, batch_size=16),
    Options(
      'mlp',
      hidden=6,
      epochs=3,
      batch_size=16,
      dropout=0.2,
      feature_noise=0.1,
      label_smoothing=0.1,
      best_epoch=True,
    ),
  ],
  ids=lambda o: o.kind,
)
def test_heads_trained_together_equal_heads_trained_alone(options):
  # Both widths share the bucket of 16, so both are padded.
  sets, labels = problem(widths=(5, 12), draws=2)
  evaluate = np.arange(100, N)
  cells = [
    Cell(0, np.arange(100), 0),
    Cell(1, np.arange(100), 1),
    Cell(1, np.arange(0, 100, 9), 2),  # a tenth of the labels
  ]
  together = trained.fit(
    sets, labels, K, cells, SETTINGS, evaluate, options, keep_params=True
  )
  for cell, fitted in zip(cells, together):
    for a, setting in enumerate(SETTINGS):
      params, trace, logits = alone(
        sets[cell.features], labels, cell, setting, evaluate, options, 100
      )
      # Sums in another order: float32 rounding, grown over 7 to 21 updates.
      np.testing.assert_allclose(fitted.logits[a], logits, atol=2e-4)
      if options.best_epoch:
        np.testing.assert_allclose(fitted.trace[a], trace, atol=1e-6)
      for name, value in params.items():
        np.testing.assert_allclose(fitted.params[name][a], value, atol=2e-4)


def test_cells_are_split_over_the_devices(monkeypatch):
  sets, labels = problem()
  seen, train_cells = [], trained.train_cells

  def watch(*arguments):
    found = train_cells(*arguments)
    seen.append(jax.tree.leaves((arguments[2][0], found[0], found[2])))
    return found

  monkeypatch.setattr(trained, 'train_cells', watch)
  cells = [Cell(0, np.arange(90), seed) for seed in range(9)]
  fits = trained.fit(
    sets, labels, K, cells, SETTINGS, np.arange(90, N), Options(epochs=1)
  )
  assert len(fits) == 9
  for x in seen[0]:
    assert x.shape[0] == 16  # 9 cells on 8 devices
    assert {s.data.shape[0] for s in x.addressable_shards} == {2}


def test_chunks_do_not_change_the_heads():
  sets, labels = problem(widths=(5, 20, 6))
  cells = [Cell(s, np.arange(90), seed) for seed in (0, 1) for s in range(3)]
  options = Options('mlp', hidden=4, epochs=1, batch_size=16)
  run = lambda mb: trained.fit(  # noqa: E731
    sets, labels, K, cells, SETTINGS, np.arange(90, N), options, memory_mb=mb
  )
  for one, many in zip(run(0), run(1000)):
    np.testing.assert_allclose(one.logits, many.logits, atol=2e-5)


def test_plan_keeps_within_its_memory_and_loses_no_cell():
  sets, _ = problem(widths=(5, 20, 6, 300))
  which = list(range(4)) * 5
  chunks = trained.plan(sets, which, lambda d: 300_000, memory_mb=1)
  assert sorted(i for c in chunks for i in c) == list(range(20))
  for chunk in chunks:
    assert len(chunk) <= 3
    assert len({which[i] == 3 for i in chunk}) == 1
  assert len(chunks) < 20


def test_updates_are_adam_with_a_cosine_and_decoupled_decay():
  sets, labels = problem(widths=(4,))
  rows = np.arange(64)
  options = Options('linear', epochs=3, batch_size=64)
  (fitted,) = trained.fit(
    sets, labels, K, [Cell(0, rows)], [(0.01, 0.3)], rows, options, None, True
  )
  start, _, _ = alone(
    sets[0], labels, Cell(0, rows), (0.0, 0.0), rows, options, 64
  )
  p = {name: np.asarray(v, np.float64) for name, v in start.items()}
  x = (sets[0].x - sets[0].shift) * sets[0].scale
  x, y = x[rows].astype(np.float64), np.eye(K)[labels[rows]]
  m = {n: 0 * v for n, v in p.items()}
  v = {n: 0 * v for n, v in p.items()}
  for step in range(3):  # the batch is all rows, in some order
    z = np.exp(x @ p['M'].T + p['M_bias'])
    error = (z / z.sum(1, keepdims=True) - y) / len(x)
    grads = {'M': error.T @ x, 'M_bias': error.sum(0)}
    rate = 0.01 * 0.5 * (1 + np.cos(np.pi * step / 3))
    for name, g in grads.items():
      m[name] = 0.9 * m[name] + 0.1 * g
      v[name] = 0.999 * v[name] + 0.001 * g * g
      move = m[name] / (1 - 0.9 ** (step + 1))
      move /= np.sqrt(v[name] / (1 - 0.999 ** (step + 1))) + 1e-8
      decay = 0.3 if name == 'M' else 0.0
      p[name] = p[name] - rate * (move + decay * p[name])
  for name, value in p.items():
    np.testing.assert_allclose(fitted.params[name][0], value, atol=1e-5)


def test_a_head_learns_from_its_own_rows_only():
  # Labels outside the rows are wrong; a head that saw them would fail.
  sets, labels = problem(widths=(20,))
  rows = np.arange(0, N, 3)
  spoilt = (labels + 1) % K
  spoilt[rows] = labels[rows]
  (fitted,) = trained.fit(
    sets, spoilt, K, [Cell(0, rows)], [Setting(1e-2)], np.arange(N), Options()
  )
  right = fitted.logits[0].argmax(-1) == labels
  assert right.mean() > 0.75


def test_each_pass_holds_each_row_once():
  rows = np.array([3, 5, 8, 13, 21])
  order = trained.batch_rows(rows, 0, steps=5, batch_size=4).reshape(-1)
  assert (np.sort(order.reshape(4, 5), 1) == rows).all()
  assert (order.reshape(4, 5)[0] != order.reshape(4, 5)[1]).any()


def test_prediction_equals_the_logits_of_the_fit():
  sets, labels = problem(widths=(20,), draws=3, dtype=np.float16)
  evaluate = np.arange(100, N)
  options = Options('mlp', hidden=5, epochs=1)
  (fitted,) = trained.fit(
    sets,
    labels,
    K,
    [Cell(0, np.arange(100))],
    SETTINGS,
    evaluate,
    options,
    keep_params=True,
  )
  part = sets[0]._replace(x=sets[0].x[:, evaluate])
  logits = base.apply_all(nets.HEADS['mlp'].apply, fitted.params, part)
  np.testing.assert_allclose(logits, fitted.logits, atol=1e-5)


def test_best_epoch_is_the_best_of_the_trace():
  sets, labels = problem(widths=(2, 3))
  evaluate = np.arange(100, N)
  options = Options(epochs=6, batch_size=32, best_epoch=True)
  (fitted,) = trained.fit(
    sets,
    labels,
    K,
    [Cell(1, np.arange(100))],
    [Setting(0.5)],
    evaluate,
    options,
  )
  right = (fitted.logits[0].argmax(-1) == labels[evaluate]).mean()
  assert fitted.trace[0].max() == pytest.approx(right)
  assert fitted.trace[0].max() > fitted.trace[0].min()


def test_class_weights_move_the_decision():
  sets, labels = problem(widths=(2,))
  rows, options = np.arange(N), Options()
  shares = [
    (
      trained.fit(
        sets, labels, K, [Cell(0, rows)], [(0.1, 0)], rows, options, weights
      )[0]
      .logits[0]
      .argmax(-1)
      == 2
    ).mean()
    for weights in (np.array([1, 1, 1e-3]), np.array([1, 1, 1e3]))
  ]
  assert shares[0] < 0.25
  assert shares[1] > 0.75


def test_standardise_equals_numpy_and_floors_dead_columns():
  rng = np.random.default_rng(0)
  x = (100 + rng.normal(size=(3000, 7)) * np.arange(7)).astype(np.float16)
  rows = np.arange(1, 3000, 2)
  got = matrix.standardise(x, rows, block=256)
  want = x[rows].astype(np.float64)
  np.testing.assert_allclose(got.shift, want.mean(0), rtol=1e-6)
  np.testing.assert_allclose(got.scale[1:], 1 / want.std(0)[1:], rtol=1e-5)
  floor = 1e-3 * np.median(want.std(0))
  np.testing.assert_allclose(got.scale[0], 1 / floor, rtol=1e-4)


@pytest.mark.parametrize(
  ('rows', 'count', 'words'),
  [([], N, 'no rows'), ([0, 1], N, 'unlabelled'), ([1], 9, 'rows of features')],
)
def test_bad_cells_are_refused(rows, count, words):
  sets, labels = problem()
  labels = np.where(np.arange(N) == 0, -1, labels)[:count]
  cell = Cell(0, np.array(rows, np.int64))
  with pytest.raises(ValueError, match=words):
    trained.fit(sets, labels, K, [cell], SETTINGS, np.arange(3), Options())

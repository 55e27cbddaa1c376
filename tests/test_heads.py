"""Oracle: the paper's formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micdiffrep_jax.heads.matrix import Map
from micdiffrep_jax.heads.nets import HEADS, QUERIES


@pytest.mark.parametrize('bias', [False, True])
def test_msfa_is_eqs_4_to_6(bias):
  rng = np.random.default_rng(0)
  layers = [rng.normal(size=(9, d)) for d in (3, 5)]
  F = np.concatenate(layers, axis=1)  # eq. 4
  params = HEADS['mlp'].init(jax.random.key(0), 8, 8, 6, 4, bias)
  assert set(params) == {'W', 'M'} | ({'W_bias', 'M_bias'} if bias else set())
  params = {n: rng.normal(size=p.shape) for n, p in params.items()}
  aggregated = F @ params['W'].T + params.get('W_bias', 0)
  want = np.maximum(aggregated, 0) @ params['M'].T + params.get('M_bias', 0)
  got = HEADS['mlp'].apply(
    {n: jnp.asarray(p, jnp.float32) for n, p in params.items()},
    jnp.asarray(F, jnp.float32),
  )
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', ['linear', 'mlp'])
def test_weights_do_not_depend_on_the_padding(kind):
  first = 'W' if kind == 'mlp' else 'M'
  exact, padded = (
    HEADS[kind].init(jax.random.key(3), jnp.int32(5), d, 7, 4, True)
    for d in (5, 16)
  )
  np.testing.assert_array_equal(exact[first], padded[first][:, :5])
  spread = float(jnp.abs(exact[first]).max())
  assert 0.5 * 5**-0.5 < spread <= 5**-0.5


MAPS = (Map(4, 3), Map(1, 2))


def attention(queries, places):
  """Attention pooling with given queries and places, on random features."""
  rng = np.random.default_rng(0)
  net = HEADS['attention']
  params = net.init(jax.random.key(1), 14, 14, 6, 4, True, MAPS)
  for i, one in enumerate(MAPS):
    assert params[f'{i}.queries'].shape == (QUERIES, one.channels)
    assert params[f'{i}.places_bias'].shape == (QUERIES, one.cells)
  params['0.queries'] = jnp.asarray(queries, jnp.float32)
  params['0.places_bias'] = jnp.asarray(places, jnp.float32)
  x = rng.normal(size=(9, 14)).astype(np.float32)
  return params, x, net.apply(params, jnp.asarray(x), MAPS)


def msfa(params, gathered):
  params = {name: np.asarray(value) for name, value in params.items()}
  hidden = gathered @ params['W'].T + params['W_bias']
  return np.maximum(hidden, 0) @ params['M'].T + params['M_bias']


def test_attention_without_queries_is_mean_pooling():
  params, x, got = attention(np.zeros((QUERIES, 3)), np.zeros((QUERIES, 4)))
  mean = x[:, :12].reshape(9, 4, 3).mean(1)
  parts = np.concatenate([mean] * QUERIES + [x[:, 12:]] * QUERIES, axis=1)
  np.testing.assert_allclose(got, msfa(params, parts), atol=1e-5)


def test_attention_weighs_cells_by_query_and_place():
  rng = np.random.default_rng(1)
  queries, places = rng.normal(size=(QUERIES, 3)), rng.normal(size=(QUERIES, 4))
  params, x, got = attention(queries, places)
  parts = []
  for q, place in zip(queries, places):
    means = []
    for cells in x[:, :12].reshape(9, 4, 3):
      weight = np.exp(cells @ q + place)
      means.append((weight[:, None] * cells).sum(0) / weight.sum())
    parts.append(np.stack(means))
  parts = np.concatenate(parts + [x[:, 12:]] * QUERIES, axis=1)
  np.testing.assert_allclose(got, msfa(params, parts), atol=1e-5)

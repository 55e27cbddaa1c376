"""Oracle: the paper's formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micdiffrep_jax.heads.nets import HEADS


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

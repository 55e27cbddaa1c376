import jax
import pytest

from micdiffrep_jax.pretrain import state


@pytest.fixture(autouse=True)
def _forget():
  state.compiler_options.cache_clear()
  yield
  state.compiler_options.cache_clear()


def test_options_are_what_this_compiler_takes():
  double = jax.jit(lambda x: 2 * x, compiler_options=state.compiler_options())
  assert double(3.0) == 6.0
  if jax.default_backend() != 'cpu':
    assert state.compiler_options() == {}


@pytest.mark.parametrize(
  'wrong', [{'xla_no_such_option': '1'}, {next(iter(state._CPU)): 'none'}]
)
def test_options_of_another_compiler_are_left_out(monkeypatch, wrong):
  monkeypatch.setattr(state, '_CPU', wrong)
  assert state.compiler_options() == {}

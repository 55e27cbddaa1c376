import jax
import pytest

from micdiffrep_jax.pretrain import compiler


@pytest.fixture(autouse=True)
def _forget():
  compiler.options.cache_clear()
  yield
  compiler.options.cache_clear()


def test_options_are_what_this_compiler_takes():
  double = jax.jit(lambda x: 2 * x, compiler_options=compiler.options())
  assert double(3.0) == 6.0
  if jax.default_backend() != 'cpu':
    assert compiler.options() == {}


@pytest.mark.parametrize(
  'wrong', [{'xla_no_such_option': '1'}, {next(iter(compiler._CPU)): 'none'}]
)
def test_options_of_another_compiler_are_left_out(monkeypatch, wrong):
  monkeypatch.setattr(compiler, '_CPU', wrong)
  assert compiler.options() == {}

"""Eight CPU devices and strict checks for every test."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

from absl import flags
import jax
import pytest
import trees

from micdiffrep_jax.data import prepare

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_debug_key_reuse', True)
# Compiles in half the time; results move by about 1e-5.
jax.config.update('jax_disable_most_optimizations', True)
# Compiled functions are kept between runs of the suite.
jax.config.update(
  'jax_compilation_cache_dir',
  os.path.expanduser('~/.cache/micdiffrep_jax/tests'),
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
# ArrayRecord and grain's workers read absl flags, which pytest does not parse.
flags.FLAGS.mark_as_parsed()


@pytest.fixture
def tree(tmp_path):
  """Class folders of pictures."""
  root = tmp_path / 'pictures'
  trees.class_tree(root)
  return root


@pytest.fixture(scope='session', autouse=True)
def small_phantom():
  """The data of the test presets: a task opens them, main prepares them."""
  prepare.prepared_phantom('size_px=16,patients=60')

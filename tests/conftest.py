"""Eight CPU devices and strict checks for every test."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

from absl import flags
import jax
from optional import require
import pytest
import trees

from micdiffrep_jax.data import prepare
from micdiffrep_jax.run import log

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


def pytest_xdist_auto_num_workers(config):
  """Two processes share the files; a single file needs no other process."""
  files = {argument.split('::')[0] for argument in config.args}
  return 0 if len(files) == 1 and files.pop().endswith('.py') else 2


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  """Skips a test before its fixtures where a package it needs is missing."""
  for mark in item.iter_markers('needs'):
    require(*mark.args)


@pytest.fixture
def tree(tmp_path):
  """Class folders of pictures."""
  root = tmp_path / 'pictures'
  trees.class_tree(root)
  return root


@pytest.fixture(scope='session', autouse=True)
def captured_log():
  """The package's lines reach caplog, which listens at the root logger."""
  log.get_logger().propagate = True


@pytest.fixture(scope='session', autouse=True)
def small_phantom():
  """The data of the test presets: a task opens them, main prepares them."""
  prepare.prepared_phantom('size_px=16,patients=60')

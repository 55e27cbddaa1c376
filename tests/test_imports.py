"""What a command loads, and so how long a user waits before it begins."""

import os
import pathlib
import subprocess
import sys

from PIL import Image
import pytest

ROOT = pathlib.Path(__file__).parent.parent
# Each of these takes a second or more to import.
HEAVY = {
  'jax',
  'flax',
  'optax',
  'orbax.checkpoint',
  'grain',
  'tensorflow_datasets',
  'matplotlib',
  'scipy',
  'sklearn',
  'pandas',
  'tensorboardX',
  'torch',
}
NAMES = "print('LOADED', *sys.modules)"
# The program as from a command line, and what it has loaded at its end.
COMMAND = f"""
import runpy, sys
try:
  runpy.run_module('micdiffrep_jax.main', run_name='__main__', alter_sys=True)
except SystemExit as e:
  print('STATUS', e.code)
{NAMES}
"""


def loaded(code, *arguments, status=None):
  """The names of all modules that a fresh process has loaded at its end."""
  done = subprocess.run(
    [sys.executable, '-c', code, *arguments],
    cwd=ROOT,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': '',
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      'JAX_COMPILATION_CACHE_DIR': os.path.expanduser(
        '~/.cache/micdiffrep_jax/tests-runs'
      ),
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  if status is not None:
    assert f'STATUS {status}\n' in done.stdout, done.stderr
  (line,) = [x for x in done.stdout.splitlines() if x.startswith('LOADED ')]
  return set(line.split()[1:])


def test_the_package_alone_loads_nothing_heavy():
  names = loaded(f'import sys, micdiffrep_jax; {NAMES}')
  assert 'micdiffrep_jax' in names
  assert not names & HEAVY


def test_help_is_shown_before_anything_heavy_is_loaded():
  names = loaded(COMMAND, '--help', status=1)  # absl's status after --help
  assert 'ml_collections' in names
  assert not names & HEAVY


@pytest.mark.slow
def test_a_prediction_loads_neither_data_sets_nor_plots_nor_training(tmp_path):
  Image.new('L', (64, 64), 99).save(tmp_path / 'grey.png')
  names = loaded(
    COMMAND,
    '--config=configs/predict.py',
    '--config.bundle=results/bundle.npz',
    f'--config.source={tmp_path}/grey.png',
    f'--workdir={tmp_path}/out',
    status=0,
  )
  assert (tmp_path / 'out' / 'predictions.csv').exists()
  assert 'jax' in names
  assert not names & {
    'tensorflow_datasets',
    'matplotlib',
    'optax',
    'grain',
    'sklearn',
    'tensorboardX',
  }

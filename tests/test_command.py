"""What is said to a mistyped command, and what --help tells."""

import os
import subprocess
import sys

import pytest
from test_configs import FILES, ROOT, presets

from micdiffrep_jax.run import command

RUN = 'micdiffrep_jax.main'


def said(*arguments):
  """Exit status and lines of the program."""
  done = subprocess.run(
    [sys.executable, '-m', RUN, *arguments],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--config=configs/predikt.py'], 'configs/predict.py'),
    (['--config=configs/pretrain.py:tset'], 'paper, small, tiny, test'),
    (
      ['--config=configs/predict.py', '--config.sorce=x'],
      'Did you mean --config.source?',
    ),
    (
      ['--config=configs/pretrain.py', '--config.lr=1'],
      'Did you mean --config.optim.lr?',
    ),
    (
      ['--config=configs/pretrain.py', '--config.model.chanels=1'],
      'Did you mean --config.model.channels?',
    ),
    (['--config=configs/predict.py', '--config.workers=two'], "'two'"),
    (['--config=configs/predict.py', '--workdri=x'], 'workdir'),
    (['--config=configs/predict.py', '--config.seed.x=1'], 'no fields'),
    ([], '--config=configs/NAME.py'),
  ],
)
def test_a_slip_gets_a_line_or_two_that_name_the_nearest(arguments, words):
  status, lines = said(*arguments)
  assert status == 2
  assert 1 <= len(lines) <= 2
  assert lines[0].startswith('ERROR ')
  assert words in lines[0]


def test_a_config_from_elsewhere_is_not_told_to_be_one_of_ours(tmp_path):
  (tmp_path / 'mine.py').write_text('def get_config(:\n')
  status, lines = said(f'--config={tmp_path}/mine.py')
  assert status == 2
  assert 'mine.py' in lines[0]
  assert 'SyntaxError' in lines[0] or 'invalid syntax' in lines[0]


def test_help_names_every_config_and_its_presets():
  text = ' '.join(command.overview().split())
  for path in FILES:
    assert f'configs/{path.name} ' in text
  for path in FILES:
    if path.stem == 'baselines':
      continue  # pairs of a method and a size
    for name in presets(path):
      assert name in text
  assert 'paper, small, tiny, test' in text

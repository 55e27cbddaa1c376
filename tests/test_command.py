"""What is said to a mistyped command, and what --help tells."""

import os
import re
import subprocess
import sys

import pytest
from test_configs import FILES, ROOT, load, presets

from micdiffrep_jax import sweep
from micdiffrep_jax.run import command, fields

RUN = 'micdiffrep_jax.main'


def said(*arguments, cwd=ROOT):
  """Exit status and lines of the program."""
  done = subprocess.run(
    [sys.executable, '-m', RUN, *arguments],
    cwd=cwd,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--config=configs/predikt.py'], 'configs/predict.py'),
    (['--config=pretrain:tset'], 'Did you mean configs/pretrain.py:test?'),
    (['--config=baselines:mea,tiny'], 'baselines.py:mae,tiny?'),
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
  ],
)
def test_a_slip_gets_a_line_that_names_the_nearest(arguments, words):
  status, lines = said(*arguments)
  assert status == 2
  assert len(lines) == 1
  assert lines[0].startswith('ERROR ')
  assert words in lines[0]


def test_an_empty_config_is_told_with_those_that_there_are(capsys):
  for words in (['--config='], ['--config'], ['--config', '']):
    with pytest.raises(SystemExit) as stopped:
      command.parse(['main', *words])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith('ERROR --config is empty; --config=NAME')
    assert any(line.startswith('  pretrain ') for line in lines)


def test_a_config_from_elsewhere_is_not_told_to_be_one_of_ours(tmp_path):
  (tmp_path / 'mine.py').write_text('def get_config(:\n')
  status, lines = said(f'--config={tmp_path}/mine.py')
  assert status == 2
  assert 'mine.py' in lines[0]
  assert 'SyntaxError' in lines[0] or 'invalid syntax' in lines[0]


def test_without_a_config_all_are_listed_a_line_each():
  status, lines = said()
  assert status == 2
  assert lines[0].startswith('ERROR No config given')
  for path in FILES:
    first = load(path).__doc__.splitlines()[0]
    (line,) = [x for x in lines if x.startswith(f'  {path.stem} ')]
    assert line.endswith(first)


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_a_config_tells_its_docstring_presets_sweeps_and_fields(path):
  text = command.describe(os.path.relpath(path))
  assert load(path).__doc__.splitlines()[0] in text
  for name in presets(path):
    assert all(word in text for word in name.split(','))
  told = re.findall(
    r'^  --config\.([\w.]+)=', text.partition('\nFields, ')[2], re.MULTILINE
  )
  known = command.all_fields(load(path).get_config())
  assert sorted(told) == [
    x for x in sorted(known) if x.split('.')[-1] != 'task'
  ]


def test_fields_have_the_values_of_the_preset_and_the_words_beside_them():
  found = {x.name: x for x in fields.read('configs/pretrain.py:tiny')}
  assert found['model.patch'].value == 4
  assert found['batch_size'].comments == ('over all devices',)
  # Of lines before, of a statement of several lines, and of what a preset says.
  assert found['recipe.self_condition'].comments[0].endswith('the pictures).')
  assert found['data.split'].comments[0].endswith('test is never read')
  assert len(found['model.multipliers'].comments) == 2
  # Put together from other files.
  made = {x.name: x for x in fields.read('configs/label_efficiency.py')}
  assert made['online.augment.shift'].comments == ('share of the side',)
  assert made['timesteps'].comments == ('several: chosen on validation',)


def test_help_of_a_config_is_shown_and_the_sweep_of_pretrain_is_explained():
  status, lines = said('--config=pretrain:tiny', '--help')
  assert status == 0
  assert '  --config.batch_size=32          over all devices' in lines
  assert any(line.startswith('--sweep=lr ') for line in lines)
  assert said('--list', '--config=pretrain:tiny') == (0, lines)


def test_the_sweep_of_pretrain_changes_the_learning_rate():
  path = 'configs/pretrain.py'
  names = list(sweep.read_sweeps(path))
  assert list(command.sweeps(path)) == names == ['lr', 'recipe']
  config = load(ROOT / path).get_config('tiny').lock()
  found = sweep.units(path, 'lr', config, 'runs')
  rates = [unit.config.optim.lr for unit in found]
  assert rates == sorted(set(rates))
  assert 1e-4 in rates


def test_a_config_is_found_by_name_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  there = str(ROOT / 'configs' / 'probe.py')
  for word in ('probe', 'configs/probe.py', 'probe.py'):
    want = [f'--config={there}:tiny', '--config.seed=1', '--config', there]
    words = [f'--config={word}:tiny', '--config.seed=1', '--config', word]
    assert command.found_by_name(words) == want
  # Its imports of other configs too.
  status, lines = said('--config=quickstart:test', '--list', cwd=tmp_path)
  assert status == 0
  assert any('--config.pretrain.optim.lr=' in line for line in lines)
  (tmp_path / 'probe.py').write_text('')  # one's own comes first
  assert command.found_by_name(['--config=probe.py']) == ['--config=probe.py']

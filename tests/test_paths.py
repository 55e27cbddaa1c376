"""Paths as users write them, and places where nothing can be written."""

import errno
import fcntl
import importlib
import json
import os
import re

from ml_collections import ConfigDict
import pytest
from test_configs import FILES

from micdiffrep_jax import tasks
from micdiffrep_jax.data import store
from micdiffrep_jax.data.sources import folder
from micdiffrep_jax.run import files, guard, log, paths

# What the comment behind a field says where it holds a path.
_SAYS_PATH = re.compile(
  r"(?:config|data)\.(?:\w+\.)*(\w+) = (?:''|\(\))  # [^']*?"
  r'(?:\bfolders?\b|\bfile\b|\btable\b|\bbundle, for\b)'
)


_NO_PATHS = set(
  'group_by class_map spare sha256 classes layout given_split push_to'.split()
)


def test_home_is_spelt_out_and_all_else_is_left(monkeypatch):
  monkeypatch.setattr(paths, 'BUCKET_PACKAGES', ('json',))
  monkeypatch.setenv('HOME', '/home/someone')
  for given, meant in {
    '~': '/home/someone',
    '~/x/~y': '/home/someone/x/~y',
    '@~/list.txt': '@/home/someone/list.txt',
    '~root/x': os.path.expanduser('~root/x'),
    'runs/~x': 'runs/~x',
    './~x': './~x',
    '/a/b': '/a/b',
    'gs://bucket/~x': 'gs://bucket/~x',
    'tfds:cifar10:train': 'tfds:cifar10:train',
    'phantom:patients=3': 'phantom:patients=3',
    '': '',
  }.items():
    assert paths.expand(given) == meant


def test_a_bucket_without_its_packages_says_which_to_install(monkeypatch):
  monkeypatch.setattr(paths, 'BUCKET_PACKAGES', ('json', 'no_such.package'))
  config = ConfigDict({'checkpoint': 'gs://bucket/run'})
  with pytest.raises(ValueError, match=r'--config.checkpoint=.gs://') as said:
    paths.expand_config(config)
  assert 'no_such.package' in str(said.value)
  assert 'json' not in str(said.value)
  assert '[gcs]' in str(said.value)


def test_a_user_who_is_not_known_makes_no_folder():
  with pytest.raises(ValueError, match='--workdir=.~nobody_here/x'):
    paths.expand('~nobody_here/x', '--workdir')


def test_every_field_that_holds_a_path_is_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/h')
  config = ConfigDict(
    {
      'bundle': '~/b.npz',
      'normal_class': '~',
      'runs': ('~/a', 'b'),
      'checkpoints': {'mae': '~/m', 'ddpm': ''},
      'probe': {'data': {'path': '~/d', 'group_csv': '~/g.csv'}},
      'data': {'group_regex': '~/x', 'unlabelled': ('tfds:x', '~/u')},
    }
  ).lock()
  assert paths.expand_config(config).to_dict() == {
    'bundle': '/h/b.npz',
    'normal_class': '~',
    'runs': ('/h/a', 'b'),
    'checkpoints': {'mae': '/h/m', 'ddpm': ''},
    'probe': {'data': {'path': '/h/d', 'group_csv': '/h/g.csv'}},
    'data': {'group_regex': '~/x', 'unlabelled': ('tfds:x', '/h/u')},
  }


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_no_config_has_a_path_that_is_not_known_as_one(path):
  """By what the comments beside the fields say."""
  said = set(_SAYS_PATH.findall(path.read_text()))
  assert said - _NO_PATHS <= paths.FIELDS


def test_configs_say_of_paths_that_they_are_paths():
  said = {x for p in FILES for x in _SAYS_PATH.findall(p.read_text())}
  assert {'checkpoint', 'bundle', 'source', 'out', 'group_csv', 'runs'} <= said


def test_names_that_are_no_utf8_go_into_tables_and_back(tmp_path):
  raw = b'p03_\xb2\xa1\xc0\xed.png'
  name = os.fsdecode(raw)
  shown = paths.printable(name)
  assert shown == r'p03_\xb2\xa1\xc0\xed.png'
  back = re.sub(
    rb'\\x([0-9a-f]{2})',
    lambda m: bytes([int(m[1], 16)]),
    shown.encode(),
  )
  assert back == raw
  assert paths.printable('Schädel_07.png') == 'Schädel_07.png'
  files.write_json(tmp_path / 'r.json', {name: [name]})
  assert json.loads((tmp_path / 'r.json').read_text()) == {shown: [shown]}


def test_a_folder_with_such_names_is_read(tree, tmp_path):
  known = {p.name: p.read_bytes() for p in (tree / 'sick').iterdir()}
  raw = os.fsencode(tree / 'sick') + b'/\xb2\xa1.png'
  os.rename(tree / 'sick' / 'S_3.png', raw)
  source = folder.open_folder(str(tree))
  (odd,) = [f for f in source.files if '\\x' in f]
  assert odd == r'sick/\xb2\xa1.png'
  assert len(source.files) == 48
  with open(raw, 'rb') as f:
    assert f.read() == known['S_3.png']
  want = source.read('sick/S_4.png', 1)[0].pixels
  got = source.read(odd, 1)[0].pixels
  assert got.shape == want.shape
  assert (got != want).any()


def refusing(monkeypatch, number):
  def flock(handle, how):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, 'flock', flock)


@pytest.mark.parametrize('name', ['ENOSYS', 'ENOLCK', 'ENOTSUP'])
def test_a_file_system_without_locks_is_told_and_used(
  tmp_path, monkeypatch, caplog, name
):
  refusing(monkeypatch, getattr(errno, name))
  with guard.lock(str(tmp_path / 'run')):
    assert (tmp_path / 'run' / '.lock').read_text() == str(os.getpid())
  (line,) = caplog.messages
  assert 'has no locks' in line


def test_a_lock_that_another_run_holds_is_still_refused(tmp_path):
  with (
    guard.lock(str(tmp_path)),
    pytest.raises(ValueError, match='Another run'),
    guard.lock(str(tmp_path)),
  ):
    pass


def test_a_workdir_that_cannot_be_written_is_told_before_any_work(tmp_path):
  (tmp_path / 'file').write_text('x')
  config = importlib.import_module('configs.predict').get_config()
  config.source = '/nowhere'
  with pytest.raises(ValueError, match=r'cannot be written.*--workdir'):
    tasks.run_task(config, str(tmp_path / 'file' / 'run'))


def test_a_home_that_cannot_be_written_names_the_setting(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('x')
  monkeypatch.setenv('MICDIFFREP_CACHE', str(tmp_path / 'file' / 'cache'))
  with pytest.raises(ValueError, match='Set MICDIFFREP_CACHE=DIR'):
    store.check_salt()
  (tmp_path / 'cache').mkdir()
  monkeypatch.setenv('MICDIFFREP_CACHE', str(tmp_path / 'cache'))
  store.check_salt()
  assert os.listdir(tmp_path / 'cache') == []


def test_the_cache_may_lie_in_the_home(monkeypatch):
  monkeypatch.setenv('HOME', '/h')
  monkeypatch.setenv('MICDIFFREP_CACHE', '~/mine')
  assert paths.user_cache() == '/h/mine'


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(capsys, number):
  guard.report(OSError(number, os.strerror(number), '/runs/x'))
  said = capsys.readouterr().err
  assert len(said.splitlines()) == 1
  assert 'The disk is full: free some space' in said
  assert '/runs/x' in said


def test_events_that_cannot_be_written_end_a_run_and_do_not_hang_it(
  tmp_path, monkeypatch
):
  monkeypatch.setattr('threading.excepthook', guard.report_of_thread)
  writer = log.Writer(str(tmp_path))
  events = writer._events.file_writer.event_writer

  def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(events._ev_writer, 'write_event', full)
  writer.scalars(1, {'loss': 1.0})
  events._worker.join(10)
  with pytest.raises(OSError, match='No space left'):
    writer.scalars(2, {'loss': 1.0})
  writer.close()
  assert '"step": 1' in (tmp_path / 'metrics.jsonl').read_text()


@pytest.mark.parametrize('task', ['pretrain', 'probe', 'audit'])
def test_a_task_without_data_says_so(tmp_path, monkeypatch, caplog, task):
  config = importlib.import_module(f'configs.{task}').get_config()
  monkeypatch.setitem(tasks.TASKS, task, lambda config, workdir: {})
  tasks.run_task(config, str(tmp_path))
  assert 'NO DATA GIVEN' in caplog.text
  caplog.clear()
  config.data.path = str(tmp_path)
  tasks.run_task(config, str(tmp_path))
  assert not caplog.text
  config.data.path = 'phantom:patients=60'
  for words in (
    ['--config.data.path=phantom:patients=60'],
    ['--config.data.path', 'phantom:patients=60'],
  ):
    monkeypatch.setattr('sys.argv', ['main', *words])
    tasks.run_task(config, str(tmp_path))
  assert not caplog.text

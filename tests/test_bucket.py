"""A run in a bucket: Google's own clients, and a server on this machine."""

import os

from etils import epath
import pytest
from spawn import free_port, metrics, pretrain, spawner, state, text

from micdiffrep_jax.run import log

WORKDIR = 'gs://bucket/run'


@pytest.fixture
def bucket(monkeypatch):
  """The variables under which clients find the server."""
  from gcp_storage_emulator.server import create_server

  port = free_port()
  url = f'http://127.0.0.1:{port}'
  variables = {
    'STORAGE_EMULATOR_HOST': url,
    'TENSORSTORE_GCS_HTTP_URL': url,  # of the arrays of a checkpoint
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',
    'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # the server has no such
    'NO_PROXY': '127.0.0.1',
    'no_proxy': '127.0.0.1',
  }
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  server = create_server(
    '127.0.0.1', port, in_memory=True, default_bucket='bucket'
  )
  server.start()
  yield variables
  server.stop()


@pytest.mark.slow
@pytest.mark.needs('gcsfs', 'google.cloud.storage', 'gcp_storage_emulator')
def test_a_run_in_a_bucket_is_killed_and_goes_on_bit_for_bit(tmp_path, bucket):
  def start(workdir, name):
    arguments = pretrain(workdir, eval_every=12)
    return spawner().start(*arguments, output=tmp_path / name, **bucket)

  local = start(tmp_path / 'run', 'local')
  killed = start(WORKDIR, 'killed')
  seal = epath.Path(WORKDIR) / 'checkpoints/seals/4.json'
  spawner().wait_for(seal, killed, timeout_s=1200)
  spawner().kill(killed)
  again = start(WORKDIR, 'again')
  for run, name in ((local, 'local'), (again, 'again')):
    assert spawner().wait(run) == 0, text(tmp_path / name)
  assert 'Goes on from step' in text(tmp_path / 'again')
  lines = log.read_metrics(WORKDIR)
  for line in lines:
    line.pop('images_per_s', None)  # validation has none
  assert lines == metrics(tmp_path / 'run')
  want, have = state(tmp_path / 'run'), state(WORKDIR)
  assert want.keys() == have.keys()
  assert all((have[name] == want[name]).all() for name in want)
  names = {path.name for path in epath.Path(WORKDIR).iterdir()}
  assert names >= {'results.json', 'config.json', 'tensorboard', 'checkpoints'}
  assert not os.path.exists('gs:')

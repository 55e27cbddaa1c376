"""What a run leaves under gs://, with a local folder in place of the bucket."""

import contextlib
import json
import os
import threading
import types

from etils import epath
from ml_collections import ConfigDict
import pytest
import tensorboardX

from micdiffrep_jax import tasks
from micdiffrep_jax.pretrain import monitor
from micdiffrep_jax.run import files, log

WORKDIR = 'gs://bucket/run'


class Silent:
  """In place of TensorBoard's writer, which needs Google's own client."""

  def __init__(self, *args, **kwargs):
    pass

  def add_scalar(self, *args):
    pass

  close = add_scalar
  # What is asked for signs of life.
  file_writer = types.SimpleNamespace(
    event_writer=types.SimpleNamespace(_worker=threading.main_thread())
  )


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """Local files for every gs:// path."""
  monkeypatch.setattr(tensorboardX, 'SummaryWriter', Silent)
  monkeypatch.chdir(tmp_path)

  def local(path):
    text = os.fspath(path)
    return text.replace('gs://', f'{tmp_path}/store/')

  def open_object(_, path, mode, **kwargs):
    # A bucket has no folders: an object is written whatever its name.
    os.makedirs(os.path.dirname(local(path)), exist_ok=True)
    return open(local(path), mode)

  with contextlib.ExitStack() as stack:
    stack.enter_context(
      epath.testing.mock_epath(
        exists=lambda _, p: os.path.exists(local(p)),
        makedirs=lambda _, p, *a, **k: os.makedirs(local(p), exist_ok=True),
        mkdir=lambda _, p, *a, **k: os.makedirs(local(p), exist_ok=True),
        open=open_object,
        remove=lambda _, p: os.remove(local(p)),
      )
    )
    yield tmp_path / 'store' / 'bucket' / 'run'


def test_metrics_are_appended_and_cut_back_on_a_resume(bucket):
  writer = log.Writer(WORKDIR)
  for step in (1, 2, 3):
    writer.scalars(step, {'loss': step / 2})
  writer.close()
  writer = log.Writer(WORKDIR, resume_step=2)
  writer.scalars(3, {'loss': 9.0})
  writer.close()
  lines = (bucket / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(x)['loss'] for x in lines] == [0.5, 1.0, 9.0]
  assert monitor.last_metrics(WORKDIR) == {'loss': 9.0}
  # Nothing went to a local folder of that name.
  assert not os.path.exists('gs:')


def test_results_of_a_finished_run_are_found(bucket):
  config = ConfigDict({'task': 'x'})
  assert tasks.finished(WORKDIR, config) is None
  files.write_results(WORKDIR, {'loss': 1.0}, config)
  assert tasks.finished(WORKDIR, config)['loss'] == 1.0
  assert os.listdir(bucket) == ['results.json']


def test_a_remote_folder_keeps_its_name():
  assert files.absolute(WORKDIR) == WORKDIR
  assert files.absolute('runs/x') == os.path.abspath('runs/x')

"""What a log says of progress, on a terminal and in a file."""

import io
import sys

import pytest

from micdiffrep_jax.run import log


class Stream(io.StringIO):
  """Stands for stderr."""

  def __init__(self, terminal):
    super().__init__()
    self._terminal = terminal

  def isatty(self):
    return self._terminal


@pytest.fixture(params=[False, True], ids=['file', 'terminal'])
def stderr(request):
  return Stream(request.param)


def test_a_file_gets_whole_lines_and_a_terminal_a_bar(stderr, monkeypatch):
  monkeypatch.setattr(sys, 'stderr', stderr)
  monkeypatch.setattr(log, 'LINE_EVERY_S', 0.0)
  with log.progress(total=4, desc='train', unit='img') as bar:
    for loss in (3.0, 2.0):
      bar.set_postfix(loss=loss, refresh=False)
      bar.update(2)
      log.get_logger().info('between')
  text = stderr.getvalue()
  assert ('\r' in text) == stderr.isatty()
  if not stderr.isatty():
    assert '\x1b' not in text
    told = [line.split(' ', 2)[1:] for line in text.splitlines()]
    assert [kind for kind, _ in told] == ['INFO'] * 4
    assert [x.split(',')[0] for _, x in told] == [
      'train: 2 of 4 img',
      'between',
      'train: 4 of 4 img',
      'between',
    ]
    assert 'loss=3' in told[0][1]


def test_a_loop_that_is_over_at_once_says_one_line(stderr, monkeypatch):
  monkeypatch.setattr(sys, 'stderr', stderr)
  assert list(log.progress(range(3), desc='floors', unit='row')) == [0, 1, 2]
  if not stderr.isatty():
    (line,) = stderr.getvalue().splitlines()
    assert 'floors: 3 of 3 row, 100 %' in line

import os
import signal

import jax
import numpy as np
import pytest

from micdiffrep_jax.run import devices, guard


def test_a_folder_has_one_holder_at_a_time(tmp_path):
  with (
    guard.lock(str(tmp_path)),
    pytest.raises(ValueError, match=f'process {os.getpid()}.*--workdir'),
    guard.lock(str(tmp_path)),
  ):
    pass
  with guard.lock(str(tmp_path)):
    pass


def test_an_object_store_has_no_lock():
  with guard.lock('gs://bucket/run'), guard.lock('gs://bucket/run'):
    pass


def test_other_processes_leave_the_lock_to_the_first(tmp_path, monkeypatch):
  with guard.lock(str(tmp_path)):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    with guard.lock(str(tmp_path)):
      pass


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_once_and_the_second_acts(number):
  before = signal.getsignal(number)
  heard = []
  signal.signal(number, lambda *_: heard.append(number))
  try:
    with guard.StopSignal() as stop:
      assert stop.number == 0
      os.kill(os.getpid(), number)
      assert stop.number == number
      assert not heard
      os.kill(os.getpid(), number)
      assert heard == [number]
    os.kill(os.getpid(), number)
    assert len(heard) == 2
  finally:
    signal.signal(number, before)


def test_a_process_alone_answers_at_once():
  mesh = devices.make_mesh()
  with guard.StopSignal() as stop:
    assert stop.agreed(1, mesh) == 0
    stop.number = 15
    assert stop.agreed(1, mesh) == 15


def test_several_processes_ask_now_and_then_and_answer_a_step_later(
  monkeypatch,
):
  mesh = devices.make_mesh()
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  asked = []

  def maximum(value, mesh):
    asked.append(value)
    return np.int32(15)  # the other one was told to stop

  monkeypatch.setattr(devices, 'maximum', maximum)
  stop = guard.StopSignal()
  answers = {
    step: stop.agreed(step, mesh) for step in range(1, guard.ASK_EVERY + 2)
  }
  assert asked == [0]
  assert answers == {
    **dict.fromkeys(range(1, guard.ASK_EVERY + 1), 0),
    guard.ASK_EVERY + 1: 15,
  }


def test_the_maximum_is_that_of_all_devices():
  mesh = devices.make_mesh()
  assert mesh.size == 8
  found = devices.maximum(15, mesh)
  assert int(found) == 15
  assert found.sharding.is_fully_replicated


@pytest.mark.parametrize(
  ('error', 'status'),
  [
    (ValueError(), 2),
    (FloatingPointError(), 2),
    (OSError(), 2),
    (RuntimeError(), 1),
    (KeyError(), 1),
  ],
)
def test_what_a_user_can_mend_has_a_status_of_its_own(error, status):
  assert guard.exit_status(error) == status

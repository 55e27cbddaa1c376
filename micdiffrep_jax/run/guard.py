"""Keeps a run's folder its own, and turns signals into a clean stop."""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import os
import signal
import threading
from types import FrameType

import jax

from micdiffrep_jax.run import devices, files, log

ASK_EVERY = 4  # steps between two questions whether any process should stop
# What a user can mend: the message suffices, and the exit status is 2.
EXPECTED = (ValueError, FloatingPointError, OSError)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
# What a file system says that has no locks (Lustre without -o flock, some NFS
# and FUSE). ENOTSUP has the number of EOPNOTSUPP.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


def exit_status(error: BaseException) -> int:
  """2 for what the message explains, 1 for anything else."""
  return 2 if isinstance(error, EXPECTED) else 1


def report(error: BaseException, place: str = '') -> None:
  """Logs an error in one line; with its traceback if that is needed.

  $MICDIFFREP_TRACEBACK asks for the traceback of every error. place is said
  before it.
  """
  number = getattr(error, 'errno', None)
  if number in files.FULL:
    error = OSError(
      f'{error}. The disk is full: free some space, or give another --workdir. '
      'Then give the same command again: training goes on from its last good '
      'checkpoint.'
    )
  elif number in _READ_ONLY:
    error = OSError(
      f'{error}. This user has no right to that: change its rights, or where '
      'it is to be written, give another --workdir or --config.data.out.'
    )
  full = exit_status(error) == 1 or os.environ.get('MICDIFFREP_TRACEBACK')
  log.get_logger().error(
    '%s%s: %s',
    place,
    type(error).__name__,
    error,
    exc_info=error if full else None,
  )


def report_of_thread(failure: threading.ExceptHookArgs) -> None:
  """Logs what ended a thread as `report` does; for threading.excepthook.

  The thread is named: while a run fails, those beside it fail after it.
  """
  if failure.exc_value is not None:
    name = failure.thread.name if failure.thread else '?'
    report(failure.exc_value, f'In thread {name}: ')


@contextlib.contextmanager
def lock(workdir: str) -> Iterator[None]:
  """Holds the folder while the block runs; the kernel frees it on any death.

  The first process holds it for all of a run. Raises ValueError where another
  living run does. Where the file system has no locks, that is said, and the run
  goes on without.
  """
  if '://' in workdir or jax.process_index():
    # Object stores have no locks; their runs are started by a scheduler.
    yield
    return
  os.makedirs(workdir, exist_ok=True)
  with open(os.path.join(workdir, '.lock'), 'a+') as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      f.seek(0)
      raise ValueError(
        f'Another run (process {f.read().strip() or "unknown"}) is writing to '
        f'{workdir}. Wait for it, stop it, or give another --workdir.'
      ) from None
    except OSError as e:
      if e.errno not in _NO_LOCKS:
        raise
      log.get_logger().warning(
        'The file system of %s has no locks (%s): nothing keeps a second run '
        'from writing there. Start one at a time.',
        workdir,
        e.strerror,
      )
    f.truncate(0)
    f.write(str(os.getpid()))
    f.flush()
    yield


class StopSignal:
  """Notes SIGTERM and SIGINT; the loop stops where it is safe to.

  A second signal acts at once, as without this.
  """

  def __init__(self) -> None:
    self.number = 0
    self._before: dict[int, object] = {}
    self._asked: jax.Array | None = None

  def agreed(self, step: int, mesh: jax.sharding.Mesh) -> int:
    """The signal for which all processes stop after this step; 0 for none.

    A process alone answers at once. Several ask each other every few steps and
    read the answer a step later, so that no device waits for it; each must call
    this at every step.
    """
    if jax.process_count() == 1:
      return self.number
    if self._asked is not None:
      answer, self._asked = self._asked, None
      return int(answer)
    if step % ASK_EVERY == 0:
      self._asked = devices.maximum(self.number, mesh)
    return 0

  def __enter__(self) -> 'StopSignal':
    for number in (signal.SIGTERM, signal.SIGINT):
      self._before[number] = signal.signal(number, self._note)
    return self

  def _note(self, number: int, frame: FrameType | None) -> None:
    del frame
    self.number = number
    self._restore()

  def _restore(self) -> None:
    for number, handler in self._before.items():
      # None is a handler from outside Python, which cannot be put back.
      signal.signal(number, handler or signal.SIG_DFL)  # type: ignore[arg-type]
    self._before = {}

  def __exit__(self, *_: object) -> None:
    self._restore()

"""What a run says while it runs: log lines, progress, metrics, pictures."""

from collections.abc import Iterable, Mapping
import errno
import io
import json
import logging
import os
import sys
from typing import IO, Any

from etils import epath
import jax
import numpy as np
from tqdm import tqdm

from micdiffrep_jax.run import files

LINE_EVERY_S = 30.0  # of progress, in a log that is no terminal
_LINE = (
  '{desc}: {n_fmt} of {total_fmt} {unit}, {percentage:.0f} %, {elapsed} gone, '
  '{remaining} left, {rate_fmt}{postfix}'
)


class _Handler(logging.Handler):
  """Writes lines to stderr without tearing a progress bar."""

  def emit(self, record: logging.LogRecord) -> None:
    tqdm.write(self.format(record), file=sys.stderr)


def get_logger() -> logging.Logger:
  """The package's logger; it speaks on the first process only."""
  logger = logging.getLogger('micdiffrep_jax')
  if not logger.handlers:
    handler = _Handler()
    handler.setFormatter(
      logging.Formatter('%(asctime)s %(levelname)s %(message)s', '%H:%M:%S')
    )
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
  return logger


def speak_on_first_process() -> None:
  """Silences the log of all processes but the first."""
  if jax.process_index():
    get_logger().setLevel(logging.ERROR)


class _Lines(tqdm):
  """Says in a line of the log, now and then, what a bar would show."""

  _told = 0

  def display(self, msg: str | None = None, pos: int | None = None) -> None:
    """Logs where it is; tqdm calls this after mininterval and at the end."""
    del pos
    if self.n > max(self._told, self.initial) and msg is None:
      self._told = self.n
      get_logger().info('%s', self)


def progress(iterable: Iterable | None = None, **kwargs: Any) -> tqdm:
  """A progress bar on stderr; off on all processes but the first.

  Where stderr is no terminal, lines of the log that grep can read.
  """
  kwargs |= {'disable': jax.process_index() != 0}
  if sys.stderr.isatty():
    return tqdm(iterable, dynamic_ncols=True, mininterval=0.5, **kwargs)
  return _Lines(
    iterable,
    mininterval=LINE_EVERY_S,
    maxinterval=LINE_EVERY_S,
    bar_format=_LINE,
    file=io.StringIO(),  # where tqdm's line feeds go
    **kwargs,
  )


def read_metrics(workdir: str) -> list[dict[str, float]]:
  """The lines of metrics.jsonl, as far as they are whole; [] without one."""
  path = epath.Path(workdir) / 'metrics.jsonl'
  found: list[dict[str, float]] = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      found.append(json.loads(line))
    except ValueError:
      break  # cut by a kill
  return found


class Writer:
  """metrics.jsonl and TensorBoard events of a run; silent off process 0.

  On a resumed run, lines after `resume_step` are dropped first: the steps they
  speak of are done again.
  """

  def __init__(self, workdir: str, resume_step: int = 0):
    self._active = jax.process_index() == 0
    if not self._active:
      return
    # It imports torch where that is installed, which takes seconds.
    from tensorboardX import SummaryWriter

    self._path = epath.Path(workdir) / 'metrics.jsonl'
    self._lines = [
      json.dumps(line) + '\n'
      for line in read_metrics(workdir)
      if line['step'] <= resume_step
    ]
    files.write_whole(self._path, ''.join(self._lines).encode())
    # Object stores cannot append: there the file, which is small, is put anew.
    self._file: IO[str] | None = None
    if '://' not in workdir:
      self._file = open(self._path, 'a', buffering=1)  # noqa: SIM115
    self._events = SummaryWriter(
      os.path.join(workdir, 'tensorboard'), purge_step=resume_step + 1
    )

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Appends one line for `step` and one event per value."""
    if not self._active:
      return
    if self._events_broken():
      raise OSError(
        errno.ENOSPC,
        f'{os.strerror(errno.ENOSPC)}: TensorBoard events were not written',
        str(self._path.parent),
      )
    values = {k: float(v) for k, v in values.items()}
    line = json.dumps(files.plain({'step': step, **values})) + '\n'
    if self._file:
      self._file.write(line)
    else:
      self._lines.append(line)
      files.write_whole(self._path, ''.join(self._lines).encode())
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """image (h, w, c) uint8."""
    if self._active and not self._events_broken():
      if image.shape[-1] == 1:
        image = np.repeat(image, 3, axis=-1)
      self._events.add_image(name, image, step, dataformats='HWC')

  def close(self) -> None:
    """Flushes both files."""
    if self._active:
      try:
        if self._file:
          self._file.close()
      finally:
        if not self._events_broken():
          self._events.close()

  def _events_broken(self) -> bool:
    """Whether the thread that writes events has died, of a full disk.

    It is not replaced: the next few events would wait for it for ever.
    """
    return not self._events.file_writer.event_writer._worker.is_alive()

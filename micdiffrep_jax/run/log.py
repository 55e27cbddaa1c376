"""What a run leaves behind: log lines, metrics, pictures, results."""

from collections.abc import Iterable, Mapping
import importlib.metadata
import io
import json
import logging
import os
import platform
import sys
import time
from typing import IO, Any

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

PACKAGES = (
  'micdiffrep_jax jax jaxlib flax optax orbax-checkpoint grain '
  'tensorflow-datasets array_record numpy scikit-learn pillow '
  'opencv-python-headless'
).split()


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


def progress(iterable: Iterable | None = None, **kwargs: Any) -> tqdm:
  """A progress bar on stderr; off on all processes but the first."""
  return tqdm(
    iterable,
    dynamic_ncols=True,
    mininterval=0.5 if sys.stderr.isatty() else 10.0,
    disable=jax.process_index() != 0,
    **kwargs,
  )


def plain(x: Any) -> Any:
  """Numpy scalars and arrays, tuples and configs -> what JSON knows."""
  if isinstance(x, ConfigDict):
    return plain(x.to_dict())
  if isinstance(x, Mapping):
    return {str(k): plain(v) for k, v in x.items()}
  if isinstance(x, list | tuple):
    return [plain(v) for v in x]
  if isinstance(x, np.ndarray):
    return plain(x.tolist())
  if isinstance(x, np.generic):
    x = x.item()
  if isinstance(x, float) and not np.isfinite(x):
    return None  # NaN is not JSON.
  return x


def absolute(path: str) -> str:
  """The absolute path of a local folder; gs:// and its like as they are."""
  return path if '://' in path else os.path.abspath(path)


def write_json(path: str | os.PathLike, record: Any) -> None:
  """Writes a file that is either whole or absent."""
  write_whole(path, (json.dumps(plain(record), indent=2) + '\n').encode())


def write_whole(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file that is either whole or absent, whoever else writes it."""
  whole = epath.Path(path)
  whole.parent.mkdir(parents=True, exist_ok=True)
  partial = whole.parent / f'.{whole.name}.{os.getpid()}.partial'
  try:
    partial.write_bytes(content)
    partial.replace(whole)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise


def write_arrays(
  path: str | os.PathLike, arrays: Mapping[str, np.ndarray]
) -> None:
  """Writes an .npz, readable without pickle, that is either whole or absent."""
  content = io.BytesIO()
  np.savez(content, **arrays)  # type: ignore[arg-type]
  write_whole(path, content.getvalue())


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


def versions() -> dict[str, str]:
  """Installed versions of what a result depends on."""
  found = {'python': platform.python_version()}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def write_results(
  workdir: str, results: dict[str, Any], config: ConfigDict
) -> dict[str, Any]:
  """Completes `results` with their circumstances; writes results.json.

  Returns what was written: results, config, versions, device, command, time.
  """
  device = jax.devices()[0]
  record = {
    **results,
    'config': config,
    'versions': versions(),
    'device': f'{jax.device_count()} x {device.device_kind}',
    'host': platform.machine(),
    'host_cores': os.cpu_count(),
    'command': sys.argv,
    'finished': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
  }
  record = plain(record)
  if jax.process_index() == 0:
    write_json(os.path.join(workdir, 'results.json'), record)
  return record


class Writer:
  """metrics.jsonl and TensorBoard events of a run; silent off process 0.

  On a resumed run, lines after `resume_step` are dropped first: the steps they
  speak of are done again.
  """

  def __init__(self, workdir: str, resume_step: int = 0):
    self._active = jax.process_index() == 0
    if not self._active:
      return
    from tensorboardX import SummaryWriter  # imports torch where that is

    self._path = epath.Path(workdir) / 'metrics.jsonl'
    self._lines = self._kept(resume_step)
    write_whole(self._path, ''.join(self._lines).encode())
    # Object stores cannot append: there the file, which is small, is put anew.
    self._file: IO[str] | None = None
    if '://' not in workdir:
      self._file = open(self._path, 'a', buffering=1)  # noqa: SIM115
    self._events = SummaryWriter(
      os.path.join(workdir, 'tensorboard'), purge_step=resume_step + 1
    )

  def _kept(self, resume_step: int) -> list[str]:
    kept: list[str] = []
    if self._path.exists():
      for line in self._path.read_text().splitlines(keepends=True):
        try:
          if json.loads(line)['step'] <= resume_step:
            kept.append(line)
        except ValueError:
          break  # A line cut by a kill; nothing whole comes after it.
    return kept

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Appends one line for `step` and one event per value."""
    if not self._active:
      return
    values = {k: float(v) for k, v in values.items()}
    line = json.dumps(plain({'step': step, **values})) + '\n'
    if self._file:
      self._file.write(line)
    else:
      self._lines.append(line)
      write_whole(self._path, ''.join(self._lines).encode())
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """image (h, w, c) uint8."""
    if self._active:
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
        self._events.close()

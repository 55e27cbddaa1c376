"""Files that are whole or absent, and the results of a task among them."""

from collections.abc import Mapping
import errno
import importlib.metadata
import io
import json
import os
import platform
import shutil
import sys
import time
from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.run import paths
from micdiffrep_jax.run.records import Record

Results = dict[str, Any]  # of a task, by the names that results.json has
FULL = (errno.ENOSPC, errno.EDQUOT)  # what a system says of a full disk
PACKAGES = (
  'micdiffrep_jax jax jaxlib flax optax orbax-checkpoint grain '
  'tensorflow-datasets array_record numpy scikit-learn pillow '
  'opencv-python-headless'
).split()


def plain(x: Any) -> Any:
  """Numpy values, tuples, records and configs -> what JSON knows.

  Names of files that are not UTF-8 are escaped, see paths.printable.
  """
  if isinstance(x, str):
    return paths.printable(x)
  if isinstance(x, ConfigDict):
    return plain(x.to_dict())
  if isinstance(x, Record):
    return plain(x.to_json())
  if hasattr(x, '_asdict'):  # of a NamedTuple
    return plain(x._asdict())
  if isinstance(x, Mapping):
    return {paths.printable(str(k)): plain(v) for k, v in x.items()}
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


def check_room(
  folder: str | os.PathLike, n_bytes: int, what: str, advice: str
) -> None:
  """Raises ValueError where the disk of a folder has less than that free.

  what: is to be written; advice: how a user gets along with less.
  """
  free = shutil.disk_usage(folder).free
  if free < n_bytes:
    raise ValueError(
      f'No room for {what} in {str(folder)!r}: {in_bytes(n_bytes)} are needed, '
      f'{in_bytes(free)} are free. {advice}'
    )


def in_bytes(n: int) -> str:
  """'24,576 bytes (0.00 GiB)'."""
  return f'{n:,} bytes ({n / 2**30:.2f} GiB)'


def write_whole(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file that is either whole or absent, whoever else writes it."""
  whole = epath.Path(path)
  if '://' in os.fspath(whole):  # an object appears once it is all there
    whole.write_bytes(content)
    return
  whole.parent.mkdir(parents=True, exist_ok=True)
  partial = whole.parent / f'.{whole.name}.{os.getpid()}.partial'
  try:
    partial.write_bytes(content)
    partial.replace(whole)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise


def write_json(path: str | os.PathLike, record: Any) -> None:
  """Writes a file that is either whole or absent."""
  write_whole(path, (json.dumps(plain(record), indent=2) + '\n').encode())


def write_arrays(
  path: str | os.PathLike,
  arrays: Mapping[str, np.ndarray],
  compressed: bool = False,
) -> None:
  """Writes an .npz, readable without pickle, that is either whole or absent."""
  content = io.BytesIO()
  save = np.savez_compressed if compressed else np.savez
  save(content, **arrays)  # type: ignore[arg-type]
  write_whole(path, content.getvalue())


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
  workdir: str, results: Mapping[str, Any], config: ConfigDict
) -> Results:
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

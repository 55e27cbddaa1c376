"""A finished folder takes its name, or an equal one is already there."""

import os
import shutil
from typing import Any

from micdiffrep_jax.data import store
from micdiffrep_jax.run import log


def already_there(
  out: str, stamp: str, overwrite: bool
) -> dict[str, Any] | None:
  """The description of a finished equal preparation, None to write anew.

  Raises ValueError where something else is in the way: without `overwrite`
  anything, with it whatever is not a prepared dataset.
  """
  if not os.path.exists(out):
    return None
  try:
    info = store.read_info(out)
    store.check_unchanged(out, info)
  except (ValueError, KeyError, NotADirectoryError):
    info = {}
  if info.get('stamp') == stamp:
    log.get_logger().info('%s already holds this preparation.', out)
    return {**info, 'path': out}
  if not overwrite:
    raise ValueError(
      f'{out!r} exists and holds something else. Choose another '
      'config.data.out, or replace it with --config.data.overwrite=True.'
    )
  if not os.path.isfile(os.path.join(out, store.INFO)):
    raise ValueError(
      f'{out!r} is no prepared dataset, and config.data.overwrite replaces '
      'nothing else. Choose another config.data.out.'
    )
  return None


def publish(folder: str, out: str, overwrite: bool, stamp: str) -> None:
  """Renames `folder` to `out`, in place of an older one where it may.

  Where another process was faster, its folder stands if it is the same
  preparation; raises ValueError if not.
  """
  os.chmod(folder, 0o777 & ~_umask())
  old = f'{folder}.old'
  if overwrite and os.path.exists(out):
    os.rename(out, old)
  try:
    os.rename(folder, out)
  except OSError:
    if os.path.exists(old) and not os.path.exists(out):
      os.rename(old, out)
    if already_there(out, stamp, False) is None:
      raise
  shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask

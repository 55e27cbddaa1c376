"""Paths as users write them: `~` is spelt out in one place, for every field.

Relative paths stay as they are: they mean the folder that a command was started
in, and records that hold them can be moved with it.
"""

import importlib.util
import os
import tempfile

from ml_collections import ConfigDict

# Names of config fields that hold a path, a tuple of paths, or paths by name.
# What else they may hold (phantom, tfds:NAME, gs://...) begins with no ~.
FIELDS = frozenset(
  'path source unlabelled data_dir out group_csv csv checkpoint checkpoints '
  'bundle probe runs others columns features hub'.split()
)

# What a path in a bucket needs: the first reads and writes files, the other
# TensorBoard's events.
BUCKET_PACKAGES = ('gcsfs', 'google.cloud.storage')
CACHE_VARIABLE = 'MICDIFFREP_CACHE'


def expand(path: str, flag: str = '') -> str:
  """Spells out `~` and `~user` at the start of a path; all else stays.

  So it does behind the @ of a list.

  Raises ValueError for a user that is not known: a folder named ~ is never
  meant; and for a path in a bucket where what reads those is not installed.
  flag: that gave the path.
  """
  if path.startswith('gs://'):
    check_bucket(path, flag)
  sign, name = ('@', path[1:]) if path.startswith('@~') else ('', path)
  if not name.startswith('~'):
    return path
  spelt = os.path.expanduser(name)
  if spelt.startswith('~'):
    user = name[1:].partition('/')[0]
    given = f'{flag}={path!r}' if flag else f'{path!r}'
    raise ValueError(
      f'{given}: the home of {user or "this user"!r} is not known. Write the '
      'path in full, or ./~... for a name that begins with ~.'
    )
  return sign + spelt


def check_bucket(path: str, flag: str = '') -> None:
  """Raises ValueError that names the packages a gs:// path lacks."""
  lacking = [name for name in BUCKET_PACKAGES if not _installed(name)]
  if lacking:
    given = f'{flag}={path!r}' if flag else f'{path!r}'
    raise ValueError(
      f'{given} lies in a bucket, and {" and ".join(lacking)} of the packages '
      "that read one are not installed: pip install 'micdiffrep_jax[gcs]', or "
      'in a checkout -e .[gcs].'
    )


def _installed(name: str) -> bool:
  try:
    return importlib.util.find_spec(name) is not None
  except ModuleNotFoundError:  # of what stands before the dot
    return False


def expand_config(config: ConfigDict, place: str = '--config') -> ConfigDict:
  """Expands, in place, every field of a config that holds paths.

  Raises ValueError as `expand` does. Returns the config.
  """
  for name, value in config.items():
    flag = f'{place}.{name}'
    if isinstance(value, ConfigDict):
      expand_config(value, flag)
      if name in FIELDS:  # checkpoints by name
        for key, path in value.items():
          if isinstance(path, str):
            value[key] = expand(path, f'{flag}.{key}')
    elif name in FIELDS and isinstance(value, str):
      config[name] = expand(value, flag)
    elif name in FIELDS and isinstance(value, tuple | list):
      config[name] = tuple(
        expand(v, flag) if isinstance(v, str) else v for v in value
      )
  return config


def printable(name: str) -> str:
  r"""A file's name in characters that every table and log can hold.

  A name is bytes, and those that are not UTF-8 (an archive packed elsewhere)
  come as lone surrogates, which no encoder takes. Each such byte becomes \xNN:
  b'p\xb2.png' is written p\xb2.png, and back it goes by the same rule.
  """
  try:
    name.encode()
  except UnicodeEncodeError:
    raw = name.encode('utf-8', 'surrogateescape')
    return raw.decode('utf-8', 'backslashreplace')
  return name


def user_cache() -> str:
  """This user's folder for what can be made again: $MICDIFFREP_CACHE."""
  return os.path.expanduser(
    os.environ.get(CACHE_VARIABLE) or '~/.cache/micdiffrep_jax'
  )


def check_user_cache(purpose: str) -> None:
  """Raises ValueError that names the setting where user_cache() is read-only.

  purpose: what is kept there.
  """
  folder = user_cache()
  reason = why_not_writable(folder)
  if reason:
    raise ValueError(
      f'{folder!r} cannot be written ({reason}), and {purpose} is kept there. '
      f'Set {CACHE_VARIABLE}=DIR to a folder of your own.'
    )


def why_not_writable(folder: str) -> str:
  """Why no file can be made in a folder, which is made where it is not there.

  '' where one can be made. A folder in an object store is not tried.
  """
  if '://' in folder:
    return ''
  try:
    os.makedirs(folder, exist_ok=True)
    handle, probe = tempfile.mkstemp(prefix='.writable.', dir=folder)
    os.close(handle)
    os.remove(probe)
  except OSError as e:
    return e.strerror or str(e)
  return ''


def check_workdir(workdir: str) -> None:
  """Raises ValueError before any work where results could not be written."""
  reason = why_not_writable(workdir)
  if reason:
    raise ValueError(
      f'The folder of the run {workdir!r} cannot be written: {reason}. Give '
      'another with --workdir=DIR.'
    )

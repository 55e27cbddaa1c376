"""Pictures on their way into a finished classifier: files to uint8 arrays.

The decoder and its rules are those of preparation, so that a picture is the
same to a classifier as it was in training.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import functools
import os
from typing import NamedTuple

import numpy as np

from micdiffrep_jax.data import decode, sources
from micdiffrep_jax.run import log

_CHUNK = 128  # files that are held in memory at once


class Item(NamedTuple):
  """One picture, or the reason why there is none.

  file: as it was given; image (s, s, c) uint8; rules: what was done to get it,
  and what is odd about it.
  """

  file: str
  image: np.ndarray | None
  rules: tuple[str, ...] = ()
  reason: str = ''


def list_files(
  source: str | Sequence[str], flag: str = '--config.source'
) -> tuple[str, list[str]]:
  """A root and the files below it, in their order.

  source: a folder (all pictures below, in natural order), a file, '@LIST' (a
  text file with one path per line) or a sequence of paths. Raises ValueError
  where that names nothing.
  """
  if not source:
    raise ValueError(
      f'Nothing to read. Set {flag} to a folder, a file or @LIST.'
    )
  if not isinstance(source, str):
    return '', list(source)
  path = os.path.expanduser(source)
  if source.startswith('@'):
    try:
      with open(os.path.expanduser(source[1:]), encoding='utf-8') as f:
        files = [line.strip() for line in f if line.strip()]
    except OSError as e:
      raise ValueError(f'{flag}={source!r}: {e.strerror}.') from e
    if not files:
      raise ValueError(f'{flag}={source!r} lists no file.')
    return '', files
  if os.path.isdir(path):
    return path, sources.open_folder(path).files
  if os.path.exists(path):
    return '', [path]
  raise ValueError(
    f'{flag}={source!r} does not exist. Give a folder, a file, or @LIST '
    'for a text file with one path per line.'
  )


def read(
  root: str,
  files: Sequence[str],
  size_px: int,
  channels: int,
  workers: int = 0,
  desc: str = 'read',
) -> Iterator[list[Item]]:
  """Decodes files in chunks, in order; a file that fails becomes a reason."""
  work = functools.partial(_read_one, root, size_px, channels)
  with (
    ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool,
    log.progress(total=len(files), desc=desc, unit='file') as bar,
  ):
    for start in range(0, len(files), _CHUNK):
      chunk = files[start : start + _CHUNK]
      yield [item for found in pool.map(work, chunk) for item in found]
      bar.update(len(chunk))


def _read_one(root: str, size_px: int, channels: int, file: str) -> list[Item]:
  path = os.path.expanduser(os.path.join(root, file))
  try:
    with open(path, 'rb') as f:
      pictures = [decode.read_image(f.read(), channels)]
  except OSError as e:
    return [Item(file, None, reason=e.strerror or str(e))]
  except (ValueError, MemoryError) as e:
    return [Item(file, None, reason=str(e) or type(e).__name__)]
  return [
    Item(
      file + (f'#{picture.part}' if picture.part else ''),
      decode.to_square(picture.pixels, size_px, channels),
      picture.rules + decode.shape_rules(picture.pixels, size_px),
    )
    for picture in pictures
  ]

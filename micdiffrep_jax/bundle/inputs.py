"""What a classifier is given: the same files, read in the same way, as in
preparation.

A folder, a single file and a list of files all go through data/sources, with
the settings that the classifier's data were prepared with. So a picture, a
DICOM slice or a slice of a volume is to it what it was in training.

Letters: s the side of an image, c its channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import contextlib
import functools
import os
import tempfile
from typing import Any, NamedTuple
import warnings

import numpy as np

from micdiffrep_jax.bundle.classifier import Meta
from micdiffrep_jax.data import decode, identity, sources, volumes
from micdiffrep_jax.run import log, paths

_CHUNK = 128  # files that are held in memory at once
NO_PICTURE = 'no picture, DICOM or NIfTI file'


class Item(NamedTuple):
  """One picture, or the reason why there is none.

  number: of its file in the source; part: tells the slices of a file apart, ''
  where there is one; image (s, s, c) uint8; rules: what was done to get it, and
  what is odd about it; group: whose the file itself says it is.
  """

  number: int
  file: str
  part: str
  image: np.ndarray | None
  rules: tuple[str, ...] = ()
  reason: str = ''
  group: str = ''

  @property
  def name(self) -> str:
    """The file with its part, as ids of a data set are written."""
    return f'{self.file}#{self.part}' if self.part else self.file

  @property
  def failed(self) -> bool:
    """Whether this should have been a picture and cannot be read."""
    return self.image is None and self.reason not in ('', NO_PICTURE)


def request(preparation: Mapping[str, Any] | None) -> sources.Request:
  """What a source is asked, by the settings of a prepared data set.

  Settings that an older data set does not have are the usual ones.
  """
  known: dict[str, Any] = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in (preparation or {}).items()
  }
  options, asked = volumes.Options, sources.Request
  return asked(
    **{k: v for k, v in known.items() if k in asked._fields},
    options=options(**{k: v for k, v in known.items() if k in options._fields}),
  )


@contextlib.contextmanager
def open_inputs(
  given: str | Sequence[str], meta: Meta, flag: str
) -> Iterator[sources.Source]:
  """Lists what is to be read; the source works while the block runs.

  given: a folder (all pictures below, in natural order), another source that
  preparation takes, a file, '@LIST' (a text file with one path per line) or a
  sequence of paths, whose order is kept. flag: that gave it. Raises ValueError
  where that names nothing.
  """
  if not given:
    raise ValueError(
      f'Nothing to read. Set {flag} to a folder, a file or @LIST.'
    )
  asked = request(meta.preparation)
  if not isinstance(given, str) or given.startswith('@'):
    files = read_list(given, flag) if isinstance(given, str) else list(given)
    with _listed(files, asked, flag) as source:
      yield source
  elif os.path.isfile(given):
    with _listed([given], asked, flag) as source:
      if source.junk:
        raise ValueError(f'{flag}={given!r} is {NO_PICTURE}.')
      yield source
  elif os.path.isdir(given) or ':' in given:
    yield sources.open_source(given, asked)
  else:
    raise ValueError(
      f'{flag}={given!r} does not exist. Give a folder, a file, or @LIST '
      'for a text file with one path per line.'
    )


def read_list(given: str, flag: str) -> list[str]:
  """The paths in the text file that '@LIST' names; ValueError for none."""
  try:
    # Names of files are bytes: what is not UTF-8 comes back as it was.
    with open(given[1:], encoding='utf-8-sig', errors='surrogateescape') as f:
      lines = [line.strip('\r\n') for line in f]
  except OSError as e:
    raise ValueError(f'{flag}={given!r}: {e.strerror}.') from e
  files = [paths.expand(line, flag) for line in lines if line.strip()]
  if not files:
    raise ValueError(f'{flag}={given!r} lists no file.')
  return files


@contextlib.contextmanager
def _listed(
  files: Sequence[str], asked: sources.Request, flag: str
) -> Iterator[sources.Source]:
  """A source of single files, in their order.

  They are linked into an empty folder, so that they pass the same door as
  those in a folder: the same rules say what is a picture and how it is read.
  """
  with tempfile.TemporaryDirectory(prefix='micdiffrep-') as folder:
    names: dict[str, str] = {}  # of the links, by path
    missing: dict[str, str] = {}  # reasons, by path
    for number, file in enumerate(dict.fromkeys(files)):
      if not os.path.isfile(file):
        there = os.path.isdir(file)
        missing[file] = 'is a folder' if there else 'No such file or directory'
        continue
      names[file] = f'{number:08d}/{os.path.basename(file)}'
      link = os.path.join(folder, names[file])
      os.mkdir(os.path.dirname(link))
      os.symlink(os.path.abspath(file), link)
    inner, junk = _open_links(folder, asked, flag) if names else (None, {})
    known = dict(zip(inner.files, inner.groups)) if inner else {}
    refused = dict(inner.refused) if inner else {}
    shown = {paths.printable(file): file for file in files}

    def read(name: str, channels: int) -> list[decode.Picture]:
      file = shown[name]
      if file in missing:
        raise ValueError(missing[file])
      link = paths.printable(names[file])
      if link in refused:
        raise ValueError(refused[link])
      if inner is None or link not in known:
        raise ValueError(NO_PICTURE)
      return inner.read(link, channels)

    yield sources.Source(
      origin='list',
      files=[paths.printable(file) for file in files],
      labels=None,
      groups=[known.get(paths.printable(names.get(f, '')), '') for f in files],
      junk=junk,
      stamp='',
      read=read,
    )


def _open_links(
  folder: str, asked: sources.Request, flag: str
) -> tuple[sources.Source | None, dict[str, int]]:
  """The source of a folder of links, or what is there where no picture is."""
  there = sum(len(names) for _, _, names in os.walk(folder))
  try:
    source = sources.open_source(folder, asked)
  except ValueError as e:
    if 'holds no' in str(e):
      return None, {'other': there}
    raise ValueError(str(e).replace(folder, flag)) from None
  return source, source.junk


def read(
  source: sources.Source, meta: Meta, workers: int = 0, desc: str = 'read'
) -> Iterator[list[Item]]:
  """Decodes files in chunks, in order; a file that fails becomes a reason."""
  work = functools.partial(
    _read_one, source, dict(source.refused), meta.size_px, meta.channels
  )
  numbers = range(len(source.files))
  with (
    ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool,
    log.progress(total=len(numbers), desc=desc, unit='file') as bar,
  ):
    for start in range(0, len(numbers), _CHUNK):
      chunk = numbers[start : start + _CHUNK]
      with warnings.catch_warnings():
        # Decoders warn of tags that no pixel depends on, once per file.
        warnings.simplefilter('ignore')
        found = list(pool.map(work, chunk))
      yield [item for items in found for item in items]
      bar.update(len(chunk))


def _read_one(
  source: sources.Source,
  refused: Mapping[str, str],
  size_px: int,
  channels: int,
  number: int,
) -> list[Item]:
  file = source.files[number]
  if file in refused:  # its header said why
    return [Item(number, file, '', None, reason=refused[file])]
  try:
    pictures = source.read(file, channels)
  except OSError as e:
    return [Item(number, file, '', None, reason=e.strerror or str(e))]
  except (ValueError, MemoryError) as e:
    reason = str(e) or type(e).__name__
    return [Item(number, file, '', None, reason=reason)]
  return [
    Item(
      number,
      file,
      picture.part,
      decode.to_square(picture.pixels, size_px, channels),
      picture.rules + decode.shape_rules(picture.pixels, size_px),
      group=picture.group or source.groups[number],
    )
    for picture in pictures
  ]


def patients(items: Sequence[Item]) -> list[str]:
  """Whose each picture is: by its file, or by a folder sub-XX; '' unknown."""
  return [
    identity.tidy(item.group) or identity.subject(item.file) for item in items
  ]


def tell_ignored(found: Mapping[str, int], ignored: int = 0) -> dict[str, int]:
  """Says how many files are no pictures; returns how many, by kind."""
  junk = dict(found) or ({'other': ignored} if ignored else {})
  if junk:
    log.get_logger().info(
      'Ignored, as no pictures: %s.',
      ', '.join(f'{n} {kind}' for kind, n in sorted(junk.items())),
    )
  return junk

"""Where sources lie and a dataset goes: names, nesting, room on the disk."""

from collections.abc import Iterator, Sequence
import contextlib
import os

from micdiffrep_jax.data.sources import Source
from micdiffrep_jax.run import files, paths


def check(listed: Sequence[Source], out: str) -> None:
  """Raises ValueError where one folder is, or lies in, another.

  out: absolute path of the dataset to write.
  """
  places = [s.place for s in listed if s.place]
  for i, place in enumerate(places):
    for other in places[i + 1 :]:
      if _same(place, other):
        raise ValueError(
          f'{other!r} is given twice, as {place!r}: its pictures would repeat '
          'each other. Leave one out of config.data.source and '
          'config.data.unlabelled.'
        )
      if _inside(place, other) or _inside(other, place):
        raise ValueError(
          f'{place!r} and {other!r} lie in one another, so pictures would be '
          'read twice. Move one out of the other (config.data.source, '
          'config.data.unlabelled).'
        )
    if _same(place, out) or _inside(out, place) or _inside(place, out):
      raise ValueError(
        f'config.data.out={out!r} and the source {place!r} are one folder or '
        'lie in one another. Choose a config.data.out elsewhere.'
      )


def tell_apart(listed: Sequence[Source]) -> list[Source]:
  """Names sources of one name by more of their paths: site1/images."""
  names = [s.origin for s in listed]
  named = []
  for source in listed:
    alike = [s for s in listed if s.origin == source.origin and s is not source]
    origin = source.origin
    if names.count(origin) > 1 and source.place:
      parts = source.place.strip(os.sep).split(os.sep)
      for n in range(2, len(parts) + 1):
        origin = '/'.join(parts[-n:])
        ends = ['/'.join(s.place.split(os.sep)[-n:]) for s in alike]
        if origin not in ends:
          break
    named.append(source._replace(origin=origin))
  twice = [s.origin for s in named if names.count(s.origin) > 1]
  if twice and len({s.origin for s in named}) < len(named):
    raise ValueError(
      f'Two sources are called {twice[0]!r}; leave one out, or rename it.'
    )
  return named


def check_writable(out: str) -> None:
  """Raises ValueError where a new folder of that absolute path cannot be made.

  One that is there may be what is asked for, wherever it lies.
  """
  folder = os.path.dirname(out)
  while not os.path.exists(folder):
    folder = os.path.dirname(folder)
  reason = 'it is a file'
  if os.path.isdir(folder):
    reason = '' if os.path.exists(out) else paths.why_not_writable(folder)
  if reason:
    raise ValueError(
      f'config.data.out={out!r} cannot be made in {folder!r}: {reason}. Choose '
      'another config.data.out.'
    )


def check_room(folder: str, n_bytes: int) -> None:
  """Raises ValueError where the disk of a folder has less than that free."""
  files.check_room(
    folder,
    n_bytes,
    'the dataset',
    'Free some, choose another config.data.out, or a smaller '
    'config.data.size_px.',
  )


@contextlib.contextmanager
def disk_full_told(out: str, n_bytes: int) -> Iterator[None]:
  """Turns the system's error of a full disk into one that says what to do."""
  try:
    yield
  except OSError as e:
    if e.errno not in files.FULL:
      raise
    raise ValueError(
      f'The disk filled up while {out!r} was written, which needs about '
      f'{files.in_bytes(n_bytes)} in {os.path.dirname(out)!r}. Nothing was '
      'left behind. Free some room, or choose another config.data.out.'
    ) from None


def _same(a: str, b: str) -> bool:
  return os.path.realpath(a) == os.path.realpath(b)


def _inside(a: str, b: str) -> bool:
  return os.path.realpath(a).startswith(os.path.join(os.path.realpath(b), ''))

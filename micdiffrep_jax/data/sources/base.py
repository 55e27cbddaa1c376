"""What every kind of source gives, and what it may be asked."""

from collections.abc import Callable, Mapping, Sequence
import types
from typing import NamedTuple

from micdiffrep_jax.data import decode, volumes
from micdiffrep_jax.run import paths


class Source(NamedTuple):
  """Files of one origin; labels and groups are '' where nothing is known."""

  origin: str
  files: list[str]  # unique within the origin
  labels: list[str] | None  # None: the folders of the files tell
  groups: list[str]  # what the source itself says; else ''
  junk: dict[str, int]  # what was ignored, by kind
  stamp: str  # changes when a file is added, removed or rewritten
  read: Callable[[str, int], list[decode.Picture]]  # file, channels
  refused: Sequence[tuple[str, str]] = ()  # of files: those whose header says
  # already that they cannot be read, and why
  # Paths of what was ignored, by kind; folders end in '/'.
  left_out: Mapping[str, Sequence[str]] = types.MappingProxyType({})
  place: str = ''  # absolute path, where the source is a folder


class Request(NamedTuple):
  """Fields of config.data that a source may need; it ignores the others."""

  data_dir: str = ''  # where data sets with a name lie
  group_field: str = ''  # feature that names the group
  options: volumes.Options = volumes.Options()
  skip_masks: bool = True  # leave out masks of pictures, told by their names


DEFAULT = Request()


def with_printable_names(source: Source) -> Source:
  """The same files under names that tables can hold, see paths.printable.

  Raises ValueError where two files would then have one name.
  """
  named = {paths.printable(file): file for file in source.files}
  origin = paths.printable(source.origin)
  if (origin, list(named)) == (source.origin, source.files):
    return source
  if len(named) != len(source.files):
    raise ValueError(
      f'Names below {source.origin!r} that are not UTF-8 look like others once '
      'they are written out. Rename these files.'
    )
  return source._replace(
    origin=origin,
    files=list(named),
    refused=[(paths.printable(file), why) for file, why in source.refused],
    read=lambda file, channels: source.read(named[file], channels),
  )

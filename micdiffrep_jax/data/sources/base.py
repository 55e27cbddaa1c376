"""What every kind of source gives, and what it may be asked."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from micdiffrep_jax.data import decode, volumes


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


class Request(NamedTuple):
  """Fields of config.data that a source may need; it ignores the others."""

  data_dir: str = ''  # where data sets with a name lie
  group_field: str = ''  # feature that names the group
  options: volumes.Options = volumes.Options()


DEFAULT = Request()

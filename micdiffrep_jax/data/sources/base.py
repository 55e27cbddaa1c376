"""What every kind of source gives, and what it may be asked."""

from collections.abc import Callable, Mapping, Sequence
import types
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
  groups_on_read: bool = False  # a picture may name its group when read
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

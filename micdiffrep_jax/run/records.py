"""Records that write themselves to JSON and read themselves from it."""

from collections.abc import Mapping
import dataclasses
import math
import types
from typing import (
  Any,
  ClassVar,
  NoReturn,
  Self,
  Union,
  get_args,
  get_origin,
  get_type_hints,
)

import numpy as np


class Damaged(LookupError, ValueError):
  """A file lacks what belongs into it."""


class Content(dict[str, Any]):
  """What a JSON file holds: a key that it lacks raises Damaged.

  So do its parts; the error says which file, and which part of it.
  """

  def __init__(self, content: Mapping[str, Any], where: str):
    super().__init__((k, _part(x, f'{where}: {k}')) for k, x in content.items())
    self._where = where

  def __missing__(self, key: str) -> NoReturn:
    raise Damaged(f'{self._where} has no {key!r}')

  def of(self, kind: Any) -> 'Content':
    """The same, each value read as `kind`."""
    found = Content({}, self._where)
    found.update({k: read(kind, x) for k, x in self.items()})
    return found


def _part(value: Any, where: str) -> Any:
  if isinstance(value, list):
    return [_part(x, f'{where}: {i}') for i, x in enumerate(value)]
  return Content(value, where) if isinstance(value, dict) else value


@dataclasses.dataclass(frozen=True)
class Record:
  """A record by the names of its fields.

  A field whose default is None is left out of the file where it is None: not
  known. REST names the field, a mapping, that holds all keys of other names;
  without it they are not read.
  """

  REST: ClassVar[str] = ''

  def to_json(self) -> dict[str, Any]:
    """What files.plain makes the file's content of."""
    told = {
      f.name: value
      for f in dataclasses.fields(self)
      if (value := getattr(self, f.name)) is not None or f.default is not None
    }
    rest = told.pop(self.REST, {})
    return {**told, **rest}

  @classmethod
  def from_json(cls, record: Mapping[str, Any]) -> Self:
    """The inverse, lists as tuples; Damaged for a field that is not there."""
    kinds = _kinds(cls)
    told = {k: read(kinds[k], v) for k, v in record.items() if k in kinds}
    if cls.REST:
      rest = {k: v for k, v in record.items() if k not in told}
      told[cls.REST] = read(get_type_hints(cls)[cls.REST], rest)
    return _made(cls, told)


def _made(kind: Any, told: Mapping[str, Any]) -> Any:
  """A record or NamedTuple; Damaged for a field that is not there."""
  try:
    return kind(**told)
  except TypeError as e:
    raise Damaged(str(e).partition('() ')[2]) from e


def _kinds(cls: type[Record]) -> dict[str, Any]:
  hints = get_type_hints(cls)
  names = {f.name for f in dataclasses.fields(cls)} - {cls.REST}
  return {name: hints[name] for name in names}


def read(kind: Any, value: Any) -> Any:
  """A value of JSON as a field of this type holds it."""
  origin, args = get_origin(kind), get_args(kind)
  if origin in (Union, types.UnionType):
    kinds = [x for x in args if x is not types.NoneType]
    return value if value is None or kinds[1:] else read(kinds[0], value)
  if kind is float and value is None:
    return math.nan  # which is not JSON
  if kind is np.ndarray:
    return np.array(value, float)
  if origin is tuple:
    return tuple(read(args[0], x) for x in value)
  if origin is Mapping and isinstance(value, Content):
    return value.of(args[1])
  if origin is Mapping:
    return {k: read(args[1], x) for k, x in value.items()}
  if isinstance(kind, type) and issubclass(kind, Record):
    return kind.from_json(value)
  if hasattr(kind, '_fields'):  # of a NamedTuple
    hints = get_type_hints(kind)
    told = {k: read(hints[k], x) for k, x in value.items() if k in hints}
    return _made(kind, told)
  return value

"""Records and JSON."""

from collections.abc import Mapping
import dataclasses
import json
from typing import NamedTuple

import pytest

from micdiffrep_jax.run import files
from micdiffrep_jax.run.records import Damaged, Record


class Point(NamedTuple):
  x: float
  y: float


@dataclasses.dataclass(frozen=True)
class Inner(Record):
  name: str
  seen: int | None = None


@dataclasses.dataclass(frozen=True)
class Outer(Record):
  REST = 'more'
  names: tuple[str, ...]
  inner: Inner
  each: Mapping[str, Inner]
  point: Point | None
  several: tuple[Inner, ...] = ()
  more: Mapping[str, object] = dataclasses.field(default_factory=dict)


def test_a_record_is_read_as_it_was_written():
  record = Outer(
    ('a', 'b'),
    Inner('c', 1),
    {'d': Inner('e')},
    Point(1.0, 2.0),
    (Inner('f'),),
    {'g': [1, {'h': 2}]},
  )
  text = json.dumps(files.plain(record))
  assert json.loads(text) == {
    'names': ['a', 'b'],
    'inner': {'name': 'c', 'seen': 1},
    'each': {'d': {'name': 'e'}},
    'point': {'x': 1.0, 'y': 2.0},
    'several': [{'name': 'f'}],
    'g': [1, {'h': 2}],
  }
  assert Outer.from_json(json.loads(text)) == record


def test_null_is_written_where_a_field_has_no_default():
  record = Outer((), Inner('a'), {}, None)
  assert files.plain(record)['point'] is None
  assert Outer.from_json(files.plain(record)) == record


def test_keys_without_a_field_are_left_out():
  assert Inner.from_json({'name': 'a', 'new': 1}) == Inner('a')


def test_the_error_names_the_field_that_lacks():
  with pytest.raises(Damaged, match="'name'"):
    Inner.from_json({'seen': 1})


def test_a_tuple_by_names_that_lacks_one_is_damaged_too():
  record = {'names': [], 'inner': {'name': 'a'}, 'each': {}, 'point': {'x': 1}}
  with pytest.raises(Damaged, match="'y'"):
    Outer.from_json(record)

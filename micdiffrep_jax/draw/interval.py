"""A value with its bounds, from memory or from a file."""

from collections.abc import Mapping
import math
from typing import Any, Protocol


class Bounded(Protocol):
  """A value with its bounds: a bootstrap.Score or OverDraws."""

  @property
  def value(self) -> float: ...
  @property
  def low(self) -> float: ...
  @property
  def high(self) -> float: ...


Interval = Bounded | Mapping[str, Any] | None  # the second as JSON holds it


def bounds(x: Interval) -> list[float | None]:
  """Value, low and high; None for what is not known, and for nan."""
  names = ('value', 'low', 'high')
  if x is None or isinstance(x, Mapping):
    found = [(x or {}).get(k) for k in names]
  else:
    found = [getattr(x, k) for k in names]
  return [None if one is None or math.isnan(one) else one for one in found]

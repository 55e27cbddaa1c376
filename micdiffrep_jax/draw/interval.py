"""A value with its bounds, from memory or from a file."""

from collections.abc import Mapping
import math
from typing import Any

# A value with its bounds: a bootstrap.Score, or what JSON holds of one.
Interval = tuple[float, float, float] | Mapping[str, Any] | None


def bounds(x: Interval) -> list[float | None]:
  """Value, low and high; None for what is not known, and for nan."""
  names = ('value', 'low', 'high')
  found = x if isinstance(x, tuple) else [(x or {}).get(k) for k in names]
  return [None if one is None or math.isnan(one) else one for one in found]

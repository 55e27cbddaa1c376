"""Checks of what a user has set: ValueErrors that name the flag to mend."""

from collections.abc import Collection, Mapping
import difflib
import numbers
from typing import TypeVar

T = TypeVar('T')


def lookup(table: Mapping[str, T], name: str, what: str, flag: str = '') -> T:
  """Returns table[name].

  Raises ValueError that names the nearest entry, all entries and, where given,
  the flag that sets the name.
  """
  if name in table:
    return table[name]
  near = difflib.get_close_matches(str(name), list(table), n=1, cutoff=0.5)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  mend = f' Set it with {flag}.' if flag else ''
  raise ValueError(
    f'Unknown {what} {name!r}; one of {sorted(table)}.{hint}{mend}'
  )


def one_of(names: Collection[str], name: str, what: str, flag: str = '') -> str:
  """Returns `name`; raises as `lookup` where it is none of `names`."""
  return lookup(dict.fromkeys(names, name), name, what, flag)


def not_empty(value: Collection, flag: str) -> None:
  """Raises ValueError for an empty list of choices."""
  if not value:
    raise ValueError(f'{flag} is empty; give at least one.')


def in_range(
  value: float, low: float, high: float, flag: str, note: str = ''
) -> None:
  """Raises ValueError unless low <= value <= high; `note` explains the range.

  An infinite bound is no bound.
  """
  name = flag.removeprefix('--config.')
  mend = f' Set it with {flag}.'
  if not isinstance(value, numbers.Real):
    raise ValueError(f'{name}={value!r} is not a number.{mend}')
  if not low <= value <= high:
    raise ValueError(
      f'{name}={value} is outside [{low:g}, {high:g}]. {note}'.rstrip() + mend
    )


def whole_number(
  value: int, low: float, high: float, flag: str, note: str = ''
) -> None:
  """As `in_range`, and raises ValueError for what is no whole number."""
  in_range(value, low, high, flag, note)
  if not isinstance(value, numbers.Integral):
    name = flag.removeprefix('--config.')
    raise ValueError(f'{name}={value} is not whole. Set it with {flag}.')

"""Finds an entry of an explicit table, or says what there is."""

from collections.abc import Mapping
import difflib
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

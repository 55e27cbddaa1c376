"""The class of a file, told by its folders; slips that make one too many."""

from collections.abc import Mapping, Sequence
import difflib
import re

_LETTERS = re.compile(r'[\W_]+')


def parse_class_map(pairs: Sequence[str]) -> dict[str, str]:
  """('old=new', ...) -> {'old': 'new'}; raises ValueError for another form."""
  table = {}
  for pair in pairs:
    old, sign, new = pair.partition('=')
    if not sign or not old or not new:
      raise ValueError(
        f'config.data.class_map has {pair!r}; each entry is "old=new".'
      )
    table[old] = new
  return table


def label_files(
  files: Sequence[str],
  classes: Sequence[str] = (),
  class_map: Mapping[str, str] | None = None,
  parent_is_group: bool = False,
) -> list[str]:
  """The class of each relative path 'a/b/file.png'.

  Without `classes` it is the last folder, or the one before it where the last
  folder is a patient's. With `classes` it is the deepest folder that is one of
  them. `class_map` renames a folder first. Raises ValueError for a file outside
  any class and for a folder that is nearly another class.
  """
  class_map = class_map or {}
  labels: dict[str, str] = {}
  for file in files:
    folder = file.rpartition('/')[0]
    if folder not in labels:
      parts = [class_map.get(p, p) for p in folder.split('/')] if folder else []
      labels[folder] = _class_of(folder, parts, classes, parent_is_group)
  if classes:
    absent = sorted(set(classes) - set(labels.values()))
    if absent:
      raise ValueError(
        f'No file belongs to {absent} of config.data.classes='
        f'{tuple(classes)}; the folders hold {sorted(set(labels.values()))}.'
      )
  else:
    _check_names(set(labels.values()))
  return [labels[file.rpartition('/')[0]] for file in files]


def _class_of(
  folder: str,
  parts: Sequence[str],
  classes: Sequence[str],
  parent_is_group: bool,
) -> str:
  if classes:
    for part in reversed(parts):
      if part in classes:
        return part
    raise unknown_class(parts[-1] if parts else '', classes)
  if parent_is_group:
    parts = parts[:-1]
  if not parts:
    raise ValueError(
      f'Files in {folder or "the top folder"!r} have no class folder'
      + (' above their group folder' if parent_is_group else '')
      + '. Move them into one, or give an unlabelled folder as '
      'config.data.unlabelled.'
    )
  return parts[-1]


def unknown_class(name: str, classes: Sequence[str]) -> ValueError:
  """The error for a class that config.data.classes does not have."""
  folded = {_fold(n): n for n in classes}
  near = difflib.get_close_matches(_fold(name), list(folded), n=1, cutoff=0.5)
  return ValueError(
    f'Unknown class {name!r}; config.data.classes has {tuple(classes)}.'
    + (f' Did you mean {folded[near[0]]!r}?' if near else '')
    + ' Rename the folder, map it with '
    f'--config.data.class_map="(\'{name}=CLASS\',)", or add it to the classes.'
  )


def _check_names(names: set[str]) -> None:
  """Raises ValueError where two class names look like one misspelt name.

  Names count as one when they agree in letters and digits but for case and
  signs, or differ by one edit (two in long names) that touches no digit.
  """
  ordered = sorted(names)
  for i, a in enumerate(ordered):
    for b in ordered[i + 1 :]:
      if _looks_alike(_fold(a), _fold(b)):
        raise ValueError(
          f'Classes {a!r} and {b!r} look like one class misspelt. Rename a '
          f'folder, map it with --config.data.class_map="(\'{b}={a}\',)", or, '
          'if they are two, name all classes in config.data.classes.'
        )


def _fold(name: str) -> str:
  return _LETTERS.sub('', name).lower()


def _looks_alike(a: str, b: str) -> bool:
  if a == b:
    return True
  if re.sub(r'\d', '', a) == re.sub(r'\d', '', b):
    return False  # grade1 and grade2
  shorter = min(len(a), len(b))
  allowed = 2 if shorter >= 8 else 1 if shorter >= 4 else 0
  return abs(len(a) - len(b)) <= allowed and _edits(a, b) <= allowed


def _edits(a: str, b: str) -> int:
  """Edit distance with swaps of neighbours (optimal string alignment)."""
  rows = [list(range(len(b) + 1))]
  for i, x in enumerate(a, 1):
    row = [i]
    for j, y in enumerate(b, 1):
      cost = min(row[j - 1] + 1, rows[-1][j] + 1, rows[-1][j - 1] + (x != y))
      if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
        cost = min(cost, rows[-2][j - 2] + 1)
      row.append(cost)
    rows.append(row)
  return rows[-1][-1]

"""The class of a file, told by its folders; classes too many or too few."""

from collections.abc import Iterable, Mapping, Sequence
import difflib
import re
import unicodedata

from micdiffrep_jax.data import layout as layouts
from micdiffrep_jax.data import listing
from micdiffrep_jax.run import log

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
    table[unicodedata.normalize('NFC', old)] = new
  return table


def warn_of_unused_map(table: Mapping[str, str], names: Iterable[str]) -> None:
  """Says so where config.data.class_map renames what is not there."""
  there = {unicodedata.normalize('NFC', name) for name in set(names)}
  unused = sorted(set(table) - there)
  if unused:
    log.get_logger().warning(
      'config.data.class_map renames %s, and nothing is called so.', unused
    )


def label_files(
  files: Sequence[str],
  classes: Sequence[str] = (),
  class_map: Mapping[str, str] | None = None,
  parent_is_group: bool = False,
  layout: str = '',
) -> list[str]:
  """The class of each relative path 'a/b/file.png'.

  With `layout` it is the folder that this names, see data/layout.py. Without,
  it is the last folder, or the one before it where the last folder is a
  patient's; folders of a given split (train, test) are passed over. With
  `classes` it is the deepest folder that is one of them. `class_map` renames a
  folder first. Raises ValueError for a file outside any class, for folders
  that look like patients or series, and for one that is nearly another
  class.
  """
  class_map = class_map or {}
  if layout:
    named = layouts.read(files, layout, 'class')
    short = [f'{name}/' for name in named]
  else:
    short = layouts.without_split(files)
  labels: dict[str, str] = {}
  for file, path in zip(files, short, strict=True):
    folder = path.rpartition('/')[0]
    if folder not in labels:
      # macOS takes letters and accents apart.
      whole = unicodedata.normalize('NFC', folder)
      parts = [class_map.get(p, p) for p in whole.split('/')] if folder else []
      by_parent = parent_is_group and not layout
      where = file.rpartition('/')[0]
      labels[folder] = _class_of(where, parts, classes, by_parent)
  if classes:
    absent = sorted(set(classes) - set(labels.values()))
    if absent:
      raise ValueError(
        f'No file belongs to {absent} of config.data.classes='
        f'{tuple(classes)}; the folders hold {sorted(set(labels.values()))}.'
      )
  else:
    found = [labels[path.rpartition('/')[0]] for path in short]
    layouts.check_levels(files, found, layout)
    _check_names(set(found))
  return [labels[path.rpartition('/')[0]] for path in short]


def check_none_lost(
  files: Sequence[str],
  labels: Sequence[str],
  left_out: Mapping[str, Sequence[str]],
  class_map: Mapping[str, str] | None = None,
) -> None:
  """Raises ValueError where all files of a class were left out of a listing.

  files and their labels (n,); left_out: paths by kind, see data/listing.py.
  Folders of text files alone are no classes.
  """
  class_map = class_map or {}
  kept = set(labels)
  level = _common_level(files, labels, class_map)
  lost: dict[str, dict[str, list[str]]] = {}
  for kind, paths in left_out.items():
    if kind in listing.NO_LOSS:
      continue
    for path in paths:
      parts = [class_map.get(p, p) for p in path.split('/')[:-1]]
      if len(parts) > (level or 0) and parts:
        name = parts[-1 if level is None else level]
        if name not in kept and not layouts.part_of(name):
          lost.setdefault(name, {}).setdefault(kind, []).append(path)
  if lost:
    told = [
      f'{name!r} ({"; ".join(listing.describe(kinds))})'
      for name, kinds in lost.items()
    ]
    raise ValueError(
      f'{len(told)} classes would be left without a picture: '
      f'{", ".join(told[:8])}. Convert the files, mend the folders, move them '
      'away where they are no classes, or name those that count in '
      '--config.data.classes.'
    )


def check_none_refused(
  label_of: Mapping[str, str],
  left: Iterable[str],
  rejected: Sequence[tuple[str, str]],
) -> None:
  """Raises ValueError where all files of a class were refused.

  label_of: classes by file; left: classes of files that can be read; rejected:
  files and reasons.
  """
  lost = set(label_of.values()) - set(left) - {''}
  if lost:
    told = [f'{f}: {why}' for f, why in rejected if label_of.get(f) in lost]
    raise ValueError(
      f'No file of the classes {sorted(lost)} can be read, of {len(told)}: '
      f'{"; ".join(told[:3])}. Mend the files, or move their folders away.'
    )


def _common_level(
  files: Sequence[str], labels: Sequence[str], class_map: Mapping[str, str]
) -> int | None:
  """The level of folders, from the top, that all classes lie in; or None."""
  found: set[int] | None = None
  for file, label in zip(files, labels, strict=True):
    parts = [class_map.get(p, p) for p in file.split('/')[:-1]]
    here = {i for i, part in enumerate(parts) if part == label}
    found = here if found is None else found & here
  return max(found) if found else None


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
      + '. Move them into one, say with config.data.layout which folder is '
      'the class (train, val and test are none), or give an unlabelled folder '
      'as config.data.unlabelled.'
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

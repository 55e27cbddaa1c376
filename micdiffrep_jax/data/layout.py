"""What the folders of a source mean: class, patient, series, part of a split.

A layout is said as 'class/patient/...', one word a level. Where none is said,
the last folder is the class, and what looks like another layout is refused
with the layout to say.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
import functools
import re
from typing import NamedTuple

WORDS = ('class', 'patient', 'split', 'series', '*')
REST = '...'
GIVEN = ('', 'keep', 'ignore')  # choices of config.data.given_split
_PARTS = {
  'train': 'train training trn tr trainset trainingset',
  'val': 'val valid validation dev valset validationset',
  'test': 'test testing tst ts testset testingset',
}
_PART_OF = {word: p for p, words in _PARTS.items() for word in words.split()}
_FILLERS = frozenset(
  'set sets data dataset image images img imgs picture pictures split folder '
  'files cases'.split()
)
_CAMEL = re.compile(r'(?<=[a-z])(?=[A-Z])|[\W_]+')
_UID = re.compile(r'[\d.]{12,}|[0-9a-fA-F-]{16,}|sub-\w+')
_FEW = 5  # names that may be patients
_SMALL_CLASS = 10  # files, on average, below which many classes are none
_MANY_PARENTS = 4  # of a name that may be a series
_SHOWN = 3


class Layout(NamedTuple):
  """Words of the levels from the top, and of those from the last folder."""

  text: str
  top: tuple[str, ...]
  last: tuple[str, ...]
  rest: bool  # any number of folders lies between them

  def find(self, word: str, parts: Sequence[str]) -> str | None:
    """The folder with that meaning; None where the folders do not fit."""
    fixed = len(self.top) + len(self.last)
    if len(parts) < fixed or (len(parts) > fixed and not self.rest):
      return None
    if word in self.top:
      return parts[self.top.index(word)]
    if word in self.last:
      return parts[len(parts) - len(self.last) + self.last.index(word)]
    return ''


def parse(text: str) -> Layout:
  """Reads 'class/patient/...'; raises ValueError for another form."""
  words = [w for w in text.strip('/').split('/') if w]
  if words and re.fullmatch(r'\*?\.[\w.*]+', words[-1]) and words[-1] != REST:
    words = words[:-1]  # of the files: '*.dcm'
  named = [w for w in words if w not in ('*', REST, 'series')]
  odd = [w for w in words if w not in (*WORDS, REST)]
  twice = [w for w, n in Counter(named).items() if n > 1]
  if odd or twice or words.count(REST) > 1 or 'class' not in words:
    why = (
      f'{odd[0]!r} is no such word'
      if odd
      else f'{twice[0]!r} stands there twice'
      if twice
      else f'{REST!r} stands there twice'
      if words.count(REST) > 1
      else "no level is the 'class'"
    )
    raise ValueError(
      f'config.data.layout={text!r}: {why}. Write one word for each level of '
      f'folders, of {WORDS}, {REST!r} for any number of levels; as '
      "--config.data.layout='class/patient/...'."
    )
  at = words.index(REST) if REST in words else len(words)
  return Layout(text, tuple(words[:at]), tuple(words[at + 1 :]), REST in words)


def read(files: Sequence[str], text: str, word: str) -> list[str]:
  """The folder that `word` names, for each file; '' where no level does.

  Raises ValueError for files that lie in other levels of folders.
  """
  if not text:
    return [''] * len(files)
  layout = parse(text)
  found = [layout.find(word, file.split('/')[:-1]) for file in files]
  odd = [file for file, name in zip(files, found, strict=True) if name is None]
  if odd:
    raise ValueError(
      f'{len(odd)} of {len(files)} files do not lie in '
      f'config.data.layout={text!r}: {odd[:_SHOWN]}. Use {REST!r} for levels '
      'that differ, or move these files away.'
    )
  return [name or '' for name in found]


@functools.lru_cache(1 << 16)  # of few folders with many files
def part_of(folder: str) -> str:
  """train, val or test for a folder that is called so; else ''."""
  words = [w.lower() for w in _CAMEL.split(folder) if w]
  left = [w for w in words if w not in _FILLERS]
  return _PART_OF.get(left[0], '') if len(left) == 1 else ''


def given_parts(files: Sequence[str], text: str = '') -> list[str]:
  """The part of a split that a folder of each file names, '' for none.

  All '' where the folders name fewer than two parts: one called 'test' alone
  may be a class. Raises ValueError where `text` has a level of the split and a
  folder of that level names no part.
  """
  if 'split' in text.split('/'):
    names = read(files, text, 'split')
    parts = [part_of(name) for name in names]
    odd = sorted({n for n, p in zip(names, parts, strict=True) if not p})
    if odd:
      raise ValueError(
        f'config.data.layout={text!r}: the folders {odd[:_SHOWN]} name no part '
        'of a split (train, val, test).'
      )
    return parts
  parts = [part_of(split_folder(file)) for file in files]
  return parts if len(set(parts) - {''}) > 1 else [''] * len(files)


def split_folder(file: str) -> str:
  """The first folder of a path that is called as a part of a split, or ''."""
  return next((x for x in file.split('/')[:-1] if part_of(x)), '')


def without_split(files: Sequence[str]) -> list[str]:
  """Paths without the folder of a given split, where there is one."""
  parts = given_parts(files)
  short = []
  for file, part in zip(files, parts, strict=True):
    levels = file.split('/')
    if part:
      levels.remove(split_folder(file))
    short.append('/'.join(levels))
  return short


def check_levels(
  files: Sequence[str], labels: Sequence[str], text: str = ''
) -> None:
  """Raises ValueError where the folders taken for classes look like others.

  files are paths of the labelled source, labels (n,) its classes as found. The
  message says what each level holds and which layout to say.
  """
  names = sorted(set(labels))
  if text:
    return
  if all(part_of(name) for name in names):
    raise ValueError(
      f'The folders {names} are parts of a split and no classes.'
      f'{_levels(files)}'
    )
  short = without_split(files)
  at = _level_of(short, labels)
  if at is None:
    return
  tree = [file.split('/')[:-1] for file in short]
  if _are_patients(tree, at):
    raise ValueError(
      f'The {len(names)} classes {names[:_SHOWN]} ... look like patients.'
      f'{_levels(files)}'
    )
  if _are_series(tree, at):
    raise ValueError(
      f'The classes {names[:8]} lie below many patients each and may be '
      f'series.{_levels(files)} If they are classes, say so with "*" for the '
      'first level.'
    )


def check_two_classes(files: Sequence[str], labels: Sequence[str]) -> None:
  """Raises ValueError where all files are of one class."""
  names = set(labels) - {''}
  if len(names) == 1:
    raise ValueError(
      f'All {len(files)} files are of one class, {names.pop()!r}; a labelled '
      f'source needs two.{_levels(files)} A folder without classes goes into '
      'config.data.unlabelled.'
    )


def suggest(files: Sequence[str]) -> str:
  """The layout that folders look like, '' where they look like none."""
  tree = [file.split('/')[:-1] for file in without_split(files)]
  depths = {len(x) for x in tree}
  depth = min(depths)
  if depth < 1:
    return ''
  levels = [{x[i] for x in tree} for i in range(depth)]
  people = [i for i, n in enumerate(levels) if _patient_names(n)]
  people = people or [i for i, n in enumerate(levels) if len(n) >= 2 * _FEW]
  patient = people[0] if people else -1
  free = [i for i, n in enumerate(levels) if i != patient and len(n) > 1]
  if not free:
    return ''
  above = [i for i in free if i < patient]
  label = (above or free)[0]
  words = ['*'] * depth
  words[label] = 'class'
  if people:
    words[patient] = 'patient'
    deepest = max(label, patient) + 1
    words[deepest:] = ['series'] * (depth - deepest)
  if len(depths) > 1:
    words.append(REST)
  parts = given_parts(files)
  if all(parts):
    words.insert(
      min(f.split('/').index(split_folder(f)) for f in files), 'split'
    )
  return '/'.join(words)


def _levels(files: Sequence[str]) -> str:
  """What the levels of folders hold, and the flag that says what they are."""
  tree = [file.split('/')[:-1] for file in files]
  depth = max(len(x) for x in tree)
  shown = []
  for i in range(depth):
    names = sorted({x[i] for x in tree if len(x) > i})
    more = ', ...' if len(names) > _SHOWN else ''
    shown.append(
      f'{len(names)} at level {i + 1} ({", ".join(names[:3])}{more})'
    )
  text = suggest(files) or 'class/patient/...'
  return (
    f' Folders: {"; ".join(shown) or "none"}. Say which level is the class '
    f"with --config.data.layout='{text}' (words: {', '.join((*WORDS, REST))})."
  )


def _level_of(files: Sequence[str], labels: Sequence[str]) -> int | None:
  """The level, from the last folder (-1), that the labels are; or None."""
  for level in (-1, -2):
    if all(
      len(x) >= -level and x[level] == label
      for file, label in zip(files, labels, strict=True)
      for x in [file.split('/')[:-1]]
    ):
      return level
  return None


def _patient_names(names: set[str]) -> bool:
  """Whether names are those of patients: numbered alike, or ids."""
  if len(names) < _FEW:
    return False
  ids = sum(bool(_UID.fullmatch(x)) for x in names)
  numbered = [x for x in names if re.search(r'\d', x)]
  stems = {re.sub(r'\d+', '#', x).lower() for x in numbered}
  alike = len(numbered) >= 0.8 * len(names) and len(stems) <= len(names) / 2
  return ids >= 0.8 * len(names) or alike


def _are_patients(tree: Sequence[Sequence[str]], at: int) -> bool:
  """Classes of a level are patients: each is below one folder of few."""
  names = {x[at] for x in tree}
  small = len(names) >= 2 * _FEW and len(tree) < _SMALL_CLASS * len(names)
  if not small and not _patient_names(names):
    return False
  above: Mapping[str, set[str]] = defaultdict(set)
  for x in tree:
    above[x[at]].add('/'.join(x[: len(x) + at]))
  parents = set().union(*above.values())
  if all(len(p) == 1 for p in above.values()) and len(parents) > 1:
    return True
  # patient/class, where the class was taken for a folder of a patient
  below = {x[-1] for x in tree} if at < -1 else set()
  return 1 < len(below) < len(above)


def _are_series(tree: Sequence[Sequence[str]], at: int) -> bool:
  """Classes of a level recur below many patients, which lie in few folders."""
  if at != -1 or min(len(x) for x in tree) < 3:
    return False
  parents: Mapping[str, set[str]] = defaultdict(set)
  for x in tree:
    parents[x[-1]].add('/'.join(x[:-1]))
  patients = {x[-2] for x in tree}
  top = {x[-3] for x in tree}
  many = sorted(len(p) for p in parents.values())[len(parents) // 2]
  return 1 < len(top) < len(patients) and many >= _MANY_PARENTS

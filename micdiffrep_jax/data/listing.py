"""What lies below a folder: files, and what is left out, by kind.

Nothing vanishes: a path is among the files or in `left_out`. Paths are those
below the folder, with '/'; those of folders end in '/'.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
import os
import re
from typing import NamedTuple

HIDDEN = 'hidden files'
HIDDEN_FOLDERS = 'hidden or system folders'
EMPTY = 'empty folders'
LINKED = 'linked folders that lead to what is listed already'
SPECIAL = 'special files'
UNREADABLE = 'unreadable folders'  # and why, after a colon
_SYSTEM = (
  '__macosx',
  '$recycle.bin',
  'system volume information',
  'lost+found',
  '@eadir',
)


class Listing(NamedTuple):
  """Files in natural order; paths left out by kind."""

  files: list[str]
  left_out: dict[str, list[str]]


def natural_key(name: str) -> tuple[list, str]:
  """Sorts 'G_2' before 'G_10'."""
  parts = re.split(r'(\d+)', name)
  return [int(p) if i % 2 else p for i, p in enumerate(parts)], name


def walk(root: str) -> Listing:
  """Lists a folder. Links are followed last, each folder is listed once.

  So it does not depend on the order of a directory what is listed under which
  name. A link to a folder above the root is not followed.
  """
  files: list[str] = []
  left_out: dict[str, list[str]] = defaultdict(list)
  top = os.path.realpath(root)
  seen: set[str] = set()
  waiting = [root]
  while waiting:
    start = waiting.pop(0)
    links: list[str] = []
    real = os.path.realpath(start)
    if real in seen or top.startswith(os.path.join(real, '')):
      left_out[LINKED].append(_below(root, start) + '/')
      continue
    _walk_one(root, start, files, left_out, seen, links)
    waiting += sorted(links, key=natural_key)
  return Listing(
    sorted(files, key=natural_key),
    {k: sorted(left_out[k], key=natural_key) for k in sorted(left_out)},
  )


def _walk_one(
  root: str,
  start: str,
  files: list[str],
  left_out: dict[str, list[str]],
  seen: set[str],
  links: list[str],
) -> None:
  """Adds what lies below `start` without following links, which it collects."""

  def note(error: OSError) -> None:
    path = _below(root, os.fspath(error.filename or start)) + '/'
    left_out[f'{UNREADABLE}: {error.strerror}'].append(path)

  for folder, folders, names in os.walk(start, onerror=note):
    real = os.path.realpath(folder)
    if real in seen:  # a link has led there before
      left_out[LINKED].append(_below(root, folder) + '/')
      folders.clear()
      continue
    seen.add(real)
    if not folders and not names and folder != root:
      left_out[EMPTY].append(_below(root, folder) + '/')
    for name in sorted(folders, key=natural_key):
      path = os.path.join(folder, name)
      if name.startswith('.') or name.lower() in _SYSTEM:
        left_out[HIDDEN_FOLDERS].append(_below(root, path) + '/')
        folders.remove(name)
      elif os.path.islink(path):
        links.append(path)
        folders.remove(name)
    folders.sort(key=natural_key)
    here = '' if folder == root else _below(root, folder) + '/'
    for name in names:
      path = os.path.join(folder, name)
      kind = _odd_file(name, path)
      (left_out[kind] if kind else files).append(here + name)


def _odd_file(name: str, path: str) -> str:
  """What a file is that nobody reads; '' for the others, and for dead links."""
  if name.startswith('.'):
    return HIDDEN
  # Reading a pipe or a device may never end.
  there = os.path.exists(path) and not os.path.isfile(path)
  return SPECIAL if there else ''


def _below(root: str, path: str) -> str:
  return os.path.relpath(path, root).replace(os.sep, '/')


def ending(file: str) -> str:
  """How files of a kind that nobody reads are called: by their ending."""
  suffix = os.path.splitext(file)[1].lower()
  return f'{suffix} files' if suffix else 'files without an ending'


# What lies beside pictures in any folder.
HARMLESS = frozenset(
  [HIDDEN, HIDDEN_FOLDERS]
  + [
    f'.{x} files'
    for x in (
      'txt md rst csv tsv xls xlsx ods json jsonl xml yaml yml toml html htm '
      'css js pdf doc docx rtf odt tex bib ppt pptx py ipynb m r sh bat exe '
      'dll ini cfg log db lnk url svg bval bvec sql sqlite pkl pt pth ckpt '
      'onnx'
    ).split()
  ]
)
# Of these kinds a folder may hold nothing else without being a class that lost
# its pictures.
NO_LOSS = HARMLESS | {SPECIAL, 'masks', 'derivatives'}


def describe(left_out: Mapping[str, Sequence[str]]) -> list[str]:
  """One line for each kind: how many, and an example."""
  return [
    f'{len(paths)} {kind}, e.g. {paths[0]}'
    for kind, paths in left_out.items()
    if paths
  ]

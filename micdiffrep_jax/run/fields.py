"""Tells the fields of a config, each with the comment beside it in its file.

A config is put together by several files. Which line sets a field is noted
while they run, so that nothing is written twice.
"""

import ast
from collections.abc import Iterator
import contextlib
import functools
import io
import os
import shlex
import sys
import textwrap
import tokenize
from typing import Any, NamedTuple

import ml_collections
from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

WIDTH = 80
INDENT = 34  # where comments begin
Line = tuple[str, int]  # a file and a line of it, from 1
_LIBRARY = os.path.dirname(ml_collections.__file__)


class Field(NamedTuple):
  """A field of a config, or a group of them.

  name: dotted. value: a ConfigDict for a group. comments: of the lines that set
  it, in their order; the first says what it is, the rest why it is changed.
  """

  name: str
  value: Any
  comments: tuple[str, ...]


def read(path: str) -> list[Field]:
  """The fields of a config file, a preset behind a colon allowed.

  Raises what the file raises, ValueError for a preset that it has not.
  """
  with _lines_noted() as lines:
    config = ConfigFileFlagParser('config').parse(path)
  return _fields(config, lines, '')


def _fields(
  config: ConfigDict, lines: dict[tuple[int, str], list[Line]], prefix: str
) -> list[Field]:
  found = []
  written = [name for node, name in lines if node == id(config)]
  for name in sorted(config, key=written.index):
    if f'{prefix}{name}'.split('.')[-1] == 'task':
      continue  # it is what the config is
    told = (comment(*line) for line in lines[id(config), name])
    comments = tuple(dict.fromkeys(text for text in told if text))
    value = config[name]
    found.append(Field(prefix + name, value, comments))
    if isinstance(value, ConfigDict):
      found += _fields(value, lines, f'{prefix}{name}.')
  return found


@contextlib.contextmanager
def _lines_noted() -> Iterator[dict[tuple[int, str], list[Line]]]:
  """Notes which lines set which fields while the block runs.

  The keys are the id of a ConfigDict and the name of its field.
  """
  lines: dict[tuple[int, str], list[Line]] = {}
  alive = []  # an id stands for one object as long as that lives
  usual = ConfigDict.__setitem__

  def noting(self: ConfigDict, name: str, value: Any) -> None:
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(_LIBRARY):
      frame = frame.f_back
    where = (frame.f_code.co_filename, frame.f_lineno)
    lines.setdefault((id(self), name), []).append(where)
    alive.append(self)
    usual(self, name, value)

  ConfigDict.__setitem__ = noting
  try:
    yield lines
  finally:
    ConfigDict.__setitem__ = usual


def comment(file: str, line: int) -> str:
  """What the comments of the statement on this line say; '' for none.

  Those of the whole lines just above, then those behind its own lines.
  """
  statements, behind, alone = _source(file)
  around = [s for s in statements if s[0] <= line <= s[1]]
  if not around:
    return ''
  first, last = min(around, key=lambda s: s[1] - s[0])
  told = [behind[i] for i in range(first, last + 1) if i in behind]
  above = first - 1
  while above in alone:
    told.insert(0, alone[above])
    above -= 1
  return ' '.join(told)


@functools.cache
def _source(
  file: str,
) -> tuple[list[tuple[int, int]], dict[int, str], dict[int, str]]:
  """First and last lines of statements, comments behind code, and alone."""
  if not os.path.isfile(file):
    return [], {}, {}
  with tokenize.open(file) as f:
    text = f.read()
  behind: dict[int, str] = {}
  alone: dict[int, str] = {}
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type == tokenize.COMMENT:
      found = alone if token.line.lstrip().startswith('#') else behind
      found[token.start[0]] = token.string.lstrip('# ')
  statements = [
    (node.lineno, node.end_lineno or node.lineno)
    for node in ast.walk(ast.parse(text))
    if isinstance(node, ast.Assign | ast.Expr | ast.AugAssign)
  ]
  return statements, behind, alone


def show(field: Field) -> str:
  """Lines for a terminal: the flag, and what it is."""
  comments = [text.rstrip('.') for text in field.comments]
  told = '. '.join(comments[:1] + [f'Here: {text}' for text in comments[1:]])
  if isinstance(field.value, ConfigDict):
    return f'  {field.name}: {told}'.rstrip(': ')
  flag = f'  --config.{field.name}={_typed(field.value)}'
  if not told:
    return flag
  margin = ' ' * INDENT
  start = flag.ljust(INDENT) if len(flag) < INDENT else f'{flag}\n{margin}'
  return start + f'\n{margin}'.join(textwrap.wrap(told, WIDTH - INDENT))


def _typed(value: Any) -> str:
  """A value as it can be typed behind a flag."""
  if isinstance(value, tuple):
    return f'"{value}"' if value else '"()"'
  return shlex.quote(str(value)) if value != '' else ''

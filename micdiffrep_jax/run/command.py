"""Reads the command line: what is mistyped gets a line, not a traceback.

Imports nothing that takes time: --help answers at once.
"""

import ast
from collections.abc import Sequence
import difflib
import glob
import os
import re
import sys
import textwrap
import types
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from micdiffrep_jax.run import fields

MISTYPED = 2  # exit status, as for all that a user can mend
_HELP = ('help', 'helpshort', 'helpfull', 'h', '?')
_NO_PRESET = '?'  # every config refuses it and names those that it has
_PACKAGE = os.path.dirname(os.path.dirname(__file__))


def parse(argv: Sequence[str]) -> list[str]:
  """Reads the flags and returns what is left; for app.run(flags_parser=...).

  Exits with status 2 and one or two lines for a config file, a preset, a field
  or a flag that does not exist, and for a value of another type. Where help is
  asked for, that is told: of all configs, or of the one that is given.
  $MICDIFFREP_TRACEBACK shows where in a config file an error arose.
  """
  share_configs()
  argv = [argv[0], *found_by_name(argv[1:])]
  asked = {word.lstrip('-').split('=')[0] for word in argv[1:]}
  given = config_argument(argv)
  empty = not given and bool(asked & {'config'})
  try:
    if given:
      check_file(given)
    if given and asked & {*_HELP, 'list'}:
      print(describe(given), flush=True)
      sys.exit(0)
    if 'list' in asked:
      print(overview(), flush=True)
      sys.exit(0)
    if asked & {*_HELP}:
      print(f'{overview()}\n')  # absl goes on with the flags of the program
    if empty:
      raise ValueError('--config is empty; --config=NAME says what to do.')
    return flags.FLAGS(list(argv))
  except BrokenPipeError:  # --help | head
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)
  except Exception as e:
    if os.environ.get('MICDIFFREP_TRACEBACK'):
      raise
    print(f'ERROR {explain(e, argv, given)}', file=sys.stderr)
    if len(argv) == 1 or empty:
      print(f'\n{overview()}', end='', file=sys.stderr)
    sys.exit(MISTYPED)


def home() -> str:
  """The folder of the project's configs: of a wheel, or of a clone."""
  inside = os.path.join(_PACKAGE, 'configs')
  return (
    inside
    if os.path.isdir(inside)
    else os.path.join(os.path.dirname(_PACKAGE), 'configs')
  )


def share_configs() -> None:
  """Lets config files say `from configs import pretrain` in any folder.

  A folder `configs` where the program is called is looked through after ours.
  """
  if 'configs' not in sys.modules:
    shared = types.ModuleType('configs')
    shared.__path__ = [home(), os.path.abspath('configs')]
    sys.modules['configs'] = shared


def found_by_name(words: Sequence[str]) -> list[str]:
  """The words of a command, --config=pretrain made --config=PATH/pretrain.py.

  `configs/pretrain.py` too where it is not in the folder of that name.
  """
  ours = {_stem(path): path for path in config_files()}
  done = list(words)
  for i, word in enumerate(words):
    before = words[i - 1] if i else ''
    if before in ('--config', '-config'):
      flag, sign, value = '', '', word
    elif not re.match('--?config=', word):
      continue
    else:
      flag, sign, value = word.partition('=')
    file, colon, preset = value.partition(':')
    named = os.path.dirname(file) in ('', 'configs') and _stem(file) in ours
    if named and not os.path.isfile(file):
      done[i] = f'{flag}{sign}{ours[_stem(file)]}{colon}{preset}'
  return done


def config_argument(argv: Sequence[str]) -> str:
  """What --config is set to; '' where it is not."""
  for word, following in zip(argv[1:], (*argv[2:], '')):
    name, sign, value = word.partition('=')
    if name in ('--config', '-config'):
      return value if sign else following
  return ''


def check_file(given: str) -> None:
  """Raises ValueError with the nearest names where there is no such config."""
  file = given.partition(':')[0]
  if os.path.isfile(file):
    return
  known = config_files()
  near = nearest(_stem(file), [_stem(path) for path in known], 2)
  there = 'is a folder' if os.path.isdir(file) else 'does not exist'
  told = ' or '.join(f'--config=configs/{name}.py' for name in near)
  raise ValueError(
    f'The config file {file!r} {there}. '
    + (f'Did you mean {told}? ' if told else '')
    + '--list names all configs.'
  )


def explain(error: Exception, argv: Sequence[str], given: str) -> str:
  """A line or two for what went wrong while the flags were read."""
  if isinstance(error, AttributeError | KeyError | TypeError) and given:
    config = ConfigFileFlagParser('config').parse(given)
    for word in argv[1:]:
      path = re.match(r'--?(?:no)?config\.([\w.]+)', word)
      said = path and unknown_field(config, path.group(1))
      if said:
        return said
  text = str(error).strip()
  if 'Traceback' in text:  # of a config file: its last line says what is wrong
    text = re.sub(r'^\w+Error: ', '', text.splitlines()[-1])
    return f'{given}: {text}' + near_preset(given)
  if not given and 'must have a value' in text:
    return (
      'No config given: --config=NAME says what to do. --list names them all, '
      '--config=NAME --help tells of one.'
    )
  kind = '' if isinstance(error, flags.Error | ValueError) else _kind(error)
  return kind + ' '.join(text.split())


def unknown_field(config: ConfigDict, path: str) -> str:
  """What is wrong with a dotted field, '' where it exists."""
  at: Any = config
  done = 'config'
  for name in path.split('.'):
    if not isinstance(at, ConfigDict):
      return f'--config.{path}: {done} is a value and has no fields.'
    if name not in at:
      last = path.rpartition('.')[2]
      elsewhere = [p for p in all_fields(config) if p.split('.')[-1] == last]
      told = [f'config.{p}' for p in elsewhere] or [
        f'{done}.{found}' for found in nearest(name, list(at))
      ]
      wrong = f'--config.{path}: {done} has no field {name!r}.'
      if told:
        return f'{wrong} Did you mean --{" or --".join(told[:3])}?'
      return f'{wrong} It has: {", ".join(sorted(at))}.'
    at, done = at[name], f'{done}.{name}'
  return ''


def near_preset(given: str) -> str:
  """A question after the preset that may have been meant; '' for none."""
  path, _, preset = given.partition(':')
  known = re.findall(r'\w+', presets(path))
  words = preset.split(',')
  meant = [
    word if word in known else (*nearest(word, known), word)[0]
    for word in words
  ]
  return f' Did you mean {path}:{",".join(meant)}?' if meant != words else ''


def nearest(name: str, known: Sequence[str], count: int = 1) -> list[str]:
  """The names that a mistyped one is like."""
  return difflib.get_close_matches(name, known, n=count, cutoff=0.5)


def all_fields(config: ConfigDict, prefix: str = '') -> list[str]:
  """Dotted names of all values of a config."""
  found = []
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      found += all_fields(value, f'{prefix}{name}.')
    else:
      found.append(prefix + name)
  return found


def config_files() -> list[str]:
  """The config files of the project, as seen from the current folder."""
  found = sorted(glob.glob(os.path.join(home(), '*.py')))
  near = [os.path.relpath(path) for path in found]
  return found if any(path.startswith('..') for path in near) else near


def overview() -> str:
  """A line for each config, and how to learn more."""
  names = [_stem(path) for path in config_files()]
  width = max(map(len, names))
  lines = ['--config=NAME or NAME:PRESET says what to do:', '']
  for name, path in zip(names, config_files()):
    lines.append(f'  {name:{width}}  {_docstring(path).splitlines()[0]}')
  lines += [
    '',
    '--config=NAME --help tells its presets, its sweeps and its fields, which',
    'are flags: --config.seed=1. A file of your own will do: --config=FILE.',
    f'Those above lie in {os.path.dirname(path)}.',
  ]
  return '\n'.join(lines)


def describe(given: str) -> str:
  """What a config is for, its presets, its sweeps and its fields.

  given: its file, a preset behind a colon allowed. The values are those of that
  preset. Raises ValueError for one that it has not.
  """
  path = given.partition(':')[0]
  told = fields.read(given)
  lines = [given, '', _docstring(path), '']
  if presets(path):
    lines += textwrap.wrap(
      f'Presets, as --config={path}:PRESET: {presets(path)}.',
      fields.WIDTH,
      subsequent_indent='  ',
    )
    lines.append('')
  for name, doc in sweeps(path).items():
    lines.append(f'--sweep={name}  {doc}')
  if sweeps(path):
    lines += [
      'One run after another; side by side on several devices or under Slurm:',
      'launch/sweep.sh in a clone. --sweep_list shows what became of them.',
      '',
    ]
  lines.append('Fields, with the values that they have without a flag:')
  return '\n'.join([*lines, '', *map(fields.show, told)])


def sweeps(path: str) -> dict[str, str]:
  """The sweeps of a config file and the first lines of their docstrings."""
  with open(path, encoding='utf-8') as f:
    tree = ast.parse(f.read())
  return {
    node.name.removeprefix('sweep').removeprefix('_'): (
      ast.get_docstring(node) or ''
    ).partition('\n')[0]
    for node in tree.body
    if isinstance(node, ast.FunctionDef)
    and (node.name == 'sweep' or node.name.startswith('sweep_'))
  }


def _docstring(path: str) -> str:
  with open(path, encoding='utf-8') as f:
    return ast.get_docstring(ast.parse(f.read())) or '-'


def presets(path: str) -> str:
  """The presets that a config says it has; '' for none."""
  parser = ConfigFileFlagParser('config')
  try:
    parser.parse(f'{path}:{_NO_PRESET}')
  except Exception as e:
    told = str(e).strip().splitlines()[-1].partition('; ')[2].rstrip('.')
    return '' if 'has none' in told else told.removeprefix('one of ')
  return ''


def _stem(path: str) -> str:
  return os.path.splitext(os.path.basename(path.rstrip('/')))[0]


def _kind(error: Exception) -> str:
  return f'{type(error).__name__}: '

"""Reads the command line: what is mistyped gets a line, not a traceback.

Imports nothing that takes time: --help answers at once.
"""

from collections.abc import Sequence
import difflib
import glob
import os
import re
import sys
import textwrap
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

MISTYPED = 2  # exit status, as for all that a user can mend
_HELP = ('help', 'helpshort', 'helpfull', 'h', '?')
_NO_PRESET = '?'  # every config refuses it and names those that it has
_CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def parse(argv: Sequence[str]) -> list[str]:
  """Reads the flags and returns what is left; for app.run(flags_parser=...).

  Exits with status 2 and one or two lines for a config file, a preset, a field
  or a flag that does not exist, and for a value of another type.
  $MICDIFFREP_TRACEBACK shows where in a config file an error arose.
  """
  if any(word.lstrip('-').split('=')[0] in _HELP for word in argv[1:]):
    print(overview())
  given = config_argument(argv)
  try:
    if given:
      check_file(given)
    return flags.FLAGS(list(argv))
  except Exception as e:
    if os.environ.get('MICDIFFREP_TRACEBACK'):
      raise
    print(f'ERROR {explain(e, argv, given)}', file=sys.stderr)
    sys.exit(MISTYPED)


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
  stems = {_stem(path): path for path in known}
  near = difflib.get_close_matches(_stem(file), list(stems), n=2, cutoff=0.5)
  there = 'is a folder' if os.path.isdir(file) else 'does not exist'
  told = ' or '.join(f'--config={stems[name]}' for name in near)
  raise ValueError(
    f'The config file {file!r} {there}. '
    + (f'Did you mean {told}? ' if told else '')
    + '--help lists all configs.'
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
    return f'{given}: {text}'
  if not given and 'must have a value' in text:
    return (
      'No config given: --config=configs/NAME.py says what to do. --help lists '
      'them.'
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
      near = difflib.get_close_matches(name, list(at), n=1, cutoff=0.5)
      told = [f'config.{p}' for p in elsewhere] or [
        f'{done}.{found}' for found in near
      ]
      hint = f' Did you mean --{" or --".join(told[:3])}?' if told else ''
      return (
        f'--config.{path}: {done} has no field {name!r}.{hint}\n'
        f'{done} has: {", ".join(sorted(at))}.'
      )
    at, done = at[name], f'{done}.{name}'
  return ''


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
  folder = 'configs'
  if not os.path.isdir(folder):
    folder = os.path.join(_CHECKOUT, 'configs')
  return sorted(glob.glob(os.path.join(folder, '*.py')))


def overview() -> str:
  """A line for each config: its path, what it does, its presets."""
  lines = ['--config=FILE or FILE:PRESET, with FILE one of these:', '']
  for path in config_files():
    with open(path, encoding='utf-8') as f:
      doc = re.search(r'"""(.*)', f.read())
    lines.append(f'{path}  {doc.group(1) if doc else ""}')
    names = presets(path)
    if names:
      told = textwrap.wrap(f'presets: {names}', 74)
      lines += [f'    {line}' for line in told]
  lines += [
    '',
    'Fields of a config are flags: --config.seed=1. Its file tells them all,',
    'with units and ranges. --sweep=NAME runs what sweep_NAME() of a config',
    'file lists.',
    '',
  ]
  return '\n'.join(lines)


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

"""Writes the references when the pages are built, from the code itself.

That of the configs is what `--config=NAME --help` prints, read from their own
comments; that of the Python API is the docstrings of its public names.
"""

from collections.abc import Iterator
import inspect
import os
from typing import Any

from mkdocs.structure.files import File, Files

import micdiffrep_jax
from micdiffrep_jax.run import command


def on_files(files: Files, config: dict) -> Files:
  """Adds configs.md and api.md; for mkdocs, which calls it by this name."""
  os.chdir(os.path.dirname(config['config_file_path']))
  command.share_configs()
  files.append(File.generated(config, 'configs.md', content=page()))
  files.append(File.generated(config, 'api.md', content=api_page()))
  return files


def page() -> str:
  """A heading and the help of each config, as Markdown."""
  lines = [
    '# Configs and their fields',
    '',
    'What `python -m micdiffrep_jax.main --config=NAME --help` prints of each.',
    '',
  ]
  for path in command.config_files():
    name = os.path.splitext(os.path.basename(path))[0]
    lines += [f'## {name}', '', '```text', command.describe(path), '```', '']
  return '\n'.join(lines)


def api_page() -> str:
  """A heading, signature and docstring of each public name, as Markdown."""
  lines = [
    '# The Python API',
    '',
    'All that `import micdiffrep_jax as mdr` offers, from its docstrings.',
    '',
    *_text(micdiffrep_jax),
  ]
  for name in micdiffrep_jax.__all__:
    found = getattr(micdiffrep_jax, name)
    lines += [f'## {name}', '', *_text(found, f'mdr.{name}')]
    if inspect.isclass(found):
      for method, function in public_methods(found):
        title = f'{name}.{method}'
        lines += [f'### {title}', '', *_text(function, title)]
  return '\n'.join(lines)


def public_methods(cls: type) -> Iterator[tuple[str, Any]]:
  """The methods of a class that this package wrote and describes, in order."""
  for base in cls.__mro__:
    if base.__module__.startswith(micdiffrep_jax.__name__):
      for name, function in vars(base).items():
        if inspect.isfunction(function) and not name.startswith('_'):
          yield name, function


def _text(found: Any, title: str = '') -> list[str]:
  """A signature, where there is one to title, and the docstring as it is."""
  signature = [f'{title}{inspect.signature(found)}', ''] if title else []
  return ['```text', *signature, inspect.getdoc(found) or '', '```', '']

"""Writes the reference of the configs when the pages are built.

It is what `--config=NAME --help` prints, read from the configs' own comments.
"""

import os

from mkdocs.structure.files import File, Files

from micdiffrep_jax.run import command


def on_files(files: Files, config: dict) -> Files:
  """Adds configs.md; for mkdocs, which calls it by this name."""
  os.chdir(os.path.dirname(config['config_file_path']))
  command.share_configs()
  files.append(File.generated(config, 'configs.md', content=page()))
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

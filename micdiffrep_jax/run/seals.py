"""Seals of checkpoints: the sha256 of every file of a step, kept beside it.

Orbax restores a data file with a flipped bit without a word, and takes an empty
folder for a step; a seal tells both from what was saved.
"""

import hashlib
import json

from etils import epath

from micdiffrep_jax.run import log

FOLDER = 'seals'


def _sha256(path: epath.Path) -> str:
  digest = hashlib.sha256()
  with path.open('rb') as f:
    while chunk := f.read(2**20):
      digest.update(chunk)
  return digest.hexdigest()


def _files(folder: epath.Path) -> list[epath.Path]:
  found = []
  for path in folder.iterdir():
    found += _files(path) if path.is_dir() else [path]
  return sorted(found)


def hashes(folder: epath.Path) -> dict[str, str]:
  """sha256 of every file under a folder, by its relative path."""
  return {
    str(path.relative_to(folder)): _sha256(path) for path in _files(folder)
  }


def damage(directory: epath.Path, step: int) -> str:
  """Why a step cannot be trusted; '' if it can."""
  seal = directory / FOLDER / f'{step}.json'
  folder = directory / str(step)
  if not seal.exists():
    return 'was not finished'
  try:
    sealed = json.loads(seal.read_text())
  except ValueError:
    return 'has a damaged seal'
  found = hashes(folder) if folder.exists() else {}
  wrong = [
    name
    for name in sorted(sealed | found)
    if sealed.get(name) != found.get(name)
  ]
  return f'is damaged in {wrong[:3]}' if wrong else ''


def steps(directory: str) -> list[int]:
  """Steps under a checkpoint folder, ascending, sound or not."""
  path = epath.Path(directory)
  if not path.exists():
    return []
  return sorted(int(p.name) for p in path.iterdir() if p.name.isdigit())


def sealed_steps(directory: str) -> list[int]:
  """Steps that have a seal, ascending."""
  path = epath.Path(directory)
  return [s for s in steps(directory) if (path / FOLDER / f'{s}.json').exists()]


def seal(directory: epath.Path, step: int) -> None:
  """Seals a step that is whole, and drops the seals of steps that are gone."""
  log.write_json(
    directory / FOLDER / f'{step}.json', hashes(directory / str(step))
  )
  present = set(steps(str(directory)))
  for path in (directory / FOLDER).iterdir():
    if path.stem.isdigit() and int(path.stem) not in present:
      path.unlink()

"""Committees of encoders: the mean of what their heads say.

Each member has heads of its own on features of its own, with a temperature of
its own, so a committee reads no feature and fits nothing.
"""

from collections.abc import Mapping, Sequence
import os

import numpy as np

from micdiffrep_jax.draw.result import FLOOR
from micdiffrep_jax.run import files
from micdiffrep_jax.run.checks import one_of
from micdiffrep_jax.scores import bootstrap
from micdiffrep_jax.studies import imagenet

FLAG = '--config.committees'


def parse(
  text: str, encoders: Sequence[str], floors: Sequence[str]
) -> tuple[str, ...]:
  """The members of 'a+b', each one of the encoders or the floor imagenet.

  Raises ValueError for others, for fewer than two, for a floor that is not
  asked for or cannot be computed, and where there is no encoder.
  """
  members = tuple(part.strip() for part in text.split('+'))
  for name in members:
    one_of((*encoders, imagenet.NAME), name, 'member', FLAG)
  if len(set(members)) < max(2, len(members)):
    raise ValueError(
      f'{text!r} is no committee of several; write "(\'A+B\',)" in {FLAG}.'
    )
  if imagenet.NAME in members:
    one_of(floors, imagenet.NAME, 'floor', '--config.floors')
    for why in imagenet.left_out(floors).values():
      raise ValueError(f'{text!r} has a member that is left out: {why}.')
  return members


def row_of(member: str, row: str) -> str:
  """The row of a member that speaks in a row: the floor has but one."""
  return FLOOR + imagenet.NAME if member == imagenet.NAME else row


def average(each: Sequence[np.ndarray]) -> np.ndarray:
  """The mean of the members' probabilities (n, k)."""
  return np.mean(np.stack(each), axis=0)


def join(
  members: Mapping[str, str],
  rows: Sequence[str],
  folder: str,
  resamples: int,
  seed: int,
) -> files.Results:
  """What probes say together of test images; writes predictions.npz too.

  members: the folder of each member's probe, or of one that has its floor.
  Returns results of the form of a probe's, with the accuracy of each row.
  """
  said: dict[str, list[np.ndarray]] = {row: [] for row in rows}
  told: dict[str, np.ndarray] = {}
  for name, place in members.items():
    with np.load(os.path.join(place, 'predictions.npz')) as z:
      own = {k: z[f'test.{k}'] for k in ('id', 'label', 'group')}
      told = told or own
      assert (own['id'] == told['id']).all()
      for row in rows:
        said[row].append(z[f'test.probs.{row_of(name, row)}'])
  probs = {row: average(each) for row, each in said.items()}
  files.write_arrays(
    os.path.join(folder, 'predictions.npz'),
    {f'test.{k}': x for k, x in told.items()}
    | {f'test.probs.{row}': p for row, p in probs.items()},
  )
  return {
    'rows': {
      row: {'test': {'all': {'accuracy': _accuracy(told, p, resamples, seed)}}}
      for row, p in probs.items()
    }
  }


def _accuracy(
  told: Mapping[str, np.ndarray], probs: np.ndarray, resamples: int, seed: int
) -> dict[str, float]:
  found = bootstrap.resample(
    told['label'],
    probs.argmax(1)[None],
    told['group'],
    probs.shape[1],
    resamples,
    seed,
  )
  return bootstrap.score(found['accuracy'].mean)._asdict()

"""Named splits of a manifest into train, val and test.

`patient`: patients joined where their pictures nearly repeat, stratified by
class; the honest one. The others show what leaks are worth. `grouped`: sources
with their variants, joined where they nearly repeat. `paper`: a share of the
sources of each class, rounded up, is test. `leaky`: single images drawn at
random. `given`: the folders of the source say. Validation is drawn from the
training units of a split in the same manner.
"""

from collections.abc import Mapping
import itertools
import math
from typing import NamedTuple
import warnings
import zlib

import numpy as np

from micdiffrep_jax.data.groups import by_appearance

NAMES = ('patient', 'grouped', 'paper', 'leaky')  # from honest to leaky
GIVEN = 'given'  # that of the source's folders, where it was kept
ALL = (*NAMES, GIVEN)
PARTS = ('train', 'val', 'test')
EXCLUDED = 'excluded'
_TRIES = 20  # draws of folds before a share is given up
_MANY = 100_000  # groups from which those of one image are dealt out at once


class Units(NamedTuple):
  """What stays together in which split, (n,) each, of any type."""

  unit: np.ndarray  # a source with its variants, or a volume: `paper`
  near: np.ndarray  # units joined where they nearly repeat: `grouped`
  group: np.ndarray  # those joined where a patient is one: `patient`


def make_splits(
  labels: np.ndarray,
  units: Units,
  usable: np.ndarray,
  test_share: float = 0.2,
  val_share: float = 0.15,
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """Assigns each labelled row to a part, in every named split.

  labels (n,) of any type; usable (n,) bool, False rows become `excluded`.
  val_share is a share of what test leaves. `patient` and `grouped` cut in
  folds, so their shares are the nearest 1 / k; they are equal where no patient
  is known. Returns {name: (n,) parts}. Raises ValueError where a class has too
  few units to be in every part.
  """
  for name, share in (('test_share', test_share), ('val_share', val_share)):
    if not 0 < share < 1:
      raise ValueError(
        f'config.data.{name}={share}; a share lies between 0 and 1.'
      )
  labels = np.asarray(labels)
  # What units are called is no part of the draw: names may be hashed with a
  # machine's secret.
  units = Units(*(by_appearance(x) for x in units))
  check_enough_units(labels[usable], units.group[usable])
  single = np.arange(len(labels))
  cutters = {
    'patient': (_by_group, units.group),
    'grouped': (_by_group, units.near),
    'paper': (_by_unit, units.unit),
    'leaky': (_by_unit, single),
  }
  splits = {}
  for name, (cut_by, unit) in cutters.items():
    # One seed for both, so that they are equal where no patient is known.
    drawn_as = 'grouped' if name == 'patient' else name
    rng = np.random.default_rng([seed, zlib.crc32(drawn_as.encode())])
    part = np.full(len(labels), EXCLUDED, dtype='<U8')
    rows = np.flatnonzero(usable)
    is_test = cut_by(labels[rows], unit[rows], test_share, rng, 2)
    rest = rows[~is_test]
    is_val = cut_by(labels[rest], unit[rest], val_share, rng, 1)
    part[rows[is_test]] = 'test'
    part[rest[is_val]] = 'val'
    part[rest[~is_val]] = 'train'
    check_parts(name, part, labels)
    splits[name] = part
  for name, (_, unit) in cutters.items():
    check_disjoint(name, splits[name], unit)
  return splits


def keep_given(
  labels: np.ndarray,
  given: np.ndarray,
  group: np.ndarray,
  usable: np.ndarray,
  shares: Mapping[str, float],
  seed: int = 0,
) -> np.ndarray:
  """The split of the source's folders: (n,) parts, `excluded` among them.

  labels (n,) of any type; given (n,) parts; group (n,), usable (n,) bool. A
  part that is not given is drawn from the groups that train, `shares` saying
  how much of them. Raises ValueError for a row without a part, and for a class
  that is missing from a part.
  """
  check_given(labels[usable], given[usable])
  rng = np.random.default_rng([seed, zlib.crc32(GIVEN.encode())])
  part = np.where(usable, given, EXCLUDED).astype('<U8')
  group = by_appearance(group)
  absent = [p for p in ('test', 'val') if not (given == p).any()]
  for left, name in zip(range(len(absent), 0, -1), absent):
    train = np.flatnonzero(part == 'train')
    drawn = _by_group(labels[train], group[train], shares[name], rng, left)
    part[train[drawn]] = name
  check_given(labels[usable], part[usable])
  return part


def check_given(labels: np.ndarray, given: np.ndarray) -> None:
  """Raises ValueError where a given split cannot be kept.

  labels and given (n,): an image without a part, no training images, and a
  class that is missing from a part.
  """
  n_odd = int((~np.isin(given, PARTS)).sum())
  if n_odd or not (given == 'train').any():
    raise ValueError(
      f'{n_odd} of {len(given)} images lie in no part of the given split, '
      f'{int((given == "train").sum())} train. Name their folders train, val '
      'or test, or take --config.data.given_split=ignore.'
    )
  for label in np.unique(labels):
    for p in np.unique(given):
      if not (given[labels == label] == p).any():
        raise ValueError(
          f'The given split leaves class {str(label)!r} without a {p} image. '
          'Add some, or take --config.data.given_split=ignore.'
        )


def _by_unit(
  labels: np.ndarray,
  units: np.ndarray,
  share: float,
  rng: np.random.Generator,
  left: int,
) -> np.ndarray:
  """Draws a share of the units of each class, rounded up: (n,) bool.

  At least `left` units of a class are not drawn. A unit that holds several
  classes counts for its most frequent one.
  """
  names, unit = np.unique(units, return_inverse=True)
  classes, label = np.unique(labels, return_inverse=True)
  votes = np.zeros((len(names), len(classes)), int)
  np.add.at(votes, (unit, label), 1)
  class_of_unit = votes.argmax(1)
  drawn = np.zeros(len(names), bool)
  for k in range(len(classes)):
    members = rng.permutation(np.flatnonzero(class_of_unit == k))
    # 1e-9: 0.2 x 15 is 3.0000000000000004 in floats.
    count = math.ceil(share * len(members) - 1e-9)
    drawn[members[: min(count, len(members) - left)]] = True
  return drawn[unit]


def _by_group(
  labels: np.ndarray,
  groups: np.ndarray,
  share: float,
  rng: np.random.Generator,
  left: int,
) -> np.ndarray:
  """Draws whole groups, keeping the classes' proportions: (n,) bool.

  Takes the first fold that has every class, and leaves `left` groups of every
  class; where a class has fewer groups than there are folds, fewer and larger
  folds are tried too.
  """
  classes, label = np.unique(labels, return_inverse=True)
  drawn = np.zeros(len(labels), bool)
  most = min(max(2, round(1 / share)), len(np.unique(groups)))
  for folds, _ in itertools.product(range(most, 1, -1), range(_TRIES)):
    if folds > np.bincount(label).max():
      continue
    for drawn in _folds(label, groups, folds, int(rng.integers(2**31))):
      kept = np.unique(np.stack([label, groups])[:, ~drawn], axis=1)[0]
      enough = np.bincount(kept, minlength=len(classes)).min() >= left
      if enough and len(np.unique(label[drawn])) == len(classes):
        return drawn
  return drawn  # check_parts says what is missing


def _folds(
  label: np.ndarray, groups: np.ndarray, folds: int, seed: int
) -> list[np.ndarray]:
  """Masks (n,) of folds that tear no group and keep the classes' proportions.

  Of very many groups, those of a single image are dealt out by class alone:
  StratifiedGroupKFold weighs one group after another, minutes for a million.
  """
  # Imported on use: who opens a dataset needs only the names of its splits.
  from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

  _, index, size = np.unique(groups, return_inverse=True, return_counts=True)
  lone = (size[index] == 1) & (len(size) > _MANY)
  masks = [np.zeros(len(label), bool) for _ in range(folds)]
  for kind, at in (
    (StratifiedGroupKFold, np.flatnonzero(~lone)),
    (StratifiedKFold, np.flatnonzero(lone)),
  ):
    # A handful is held out by no fold.
    if len(at) and np.bincount(label[at]).max() >= folds:
      cutter = kind(folds, shuffle=True, random_state=seed)
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of few members: that is dealt with
        cuts = list(cutter.split(at, label[at], groups[at]))
      for mask, (_, held_out) in zip(masks, cuts):
        mask[at[held_out]] = True
  return masks


def check_enough_units(labels: np.ndarray, groups: np.ndarray) -> None:
  """Raises ValueError where a class has fewer groups than there are parts."""
  for label in np.unique(labels):
    n = len(np.unique(groups[labels == label]))
    if n < len(PARTS):
      raise ValueError(
        f'Class {str(label)!r} has {n} group{"s" * (n != 1)} of pictures that '
        f'belong together; a split into {"/".join(PARTS)} needs at least '
        f'{len(PARTS)}. Add data, drop the class, or check how config.data '
        'groups (group_csv, group_regex, group_by, variant_regex).'
      )


def check_parts(name: str, part: np.ndarray, labels: np.ndarray) -> None:
  """Raises ValueError where a class is missing from a part of a split."""
  for label in np.unique(labels[part != EXCLUDED]):
    for p in PARTS:
      if not (part[labels == label] == p).any():
        raise ValueError(
          f'Split {name!r} leaves class {str(label)!r} without a {p} image. '
          'Change config.seed, config.data.test_share or '
          'config.data.val_share, or add groups to that class.'
        )


def check_disjoint(name: str, part: np.ndarray, groups: np.ndarray) -> None:
  """Raises ValueError, with examples, where a group lies in two parts."""
  seen: dict[str, str] = {}
  torn = {}
  for group, p in zip(groups.tolist(), part.tolist(), strict=True):
    if p != EXCLUDED and seen.setdefault(group, p) != p:
      torn[group] = (seen[group], p)
  if torn:
    examples = [f'{g}: {a} and {b}' for g, (a, b) in list(torn.items())[:10]]
    raise ValueError(
      f'Split {name!r} has {len(torn)} groups in two parts: '
      + '; '.join(examples)
    )


def exclude_seen(
  part: np.ndarray, unlabelled: np.ndarray, seen: np.ndarray, group: np.ndarray
) -> np.ndarray:
  """Gives unlabelled rows a part: train, unless they show a held-out picture.

  part (n,), '' at unlabelled rows; unlabelled (n,) bool; seen (m, 2) pairs of
  an unlabelled row and a labelled one that shows the same; group (n,). A pair
  with any member of a group that val or test holds excludes. Returns a new
  (n,).
  """
  part = part.astype('<U8')  # as long as the longest name
  held_out = np.unique(group[np.isin(part, ('val', 'test'))])
  part[unlabelled] = 'train'
  repeats = np.isin(group[seen[:, 1]], held_out)
  part[seen[repeats, 0]] = EXCLUDED
  return part

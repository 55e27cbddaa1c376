"""Near-duplicates of a manifest: joined groups, label conflicts, a summary.

n: rows of the manifest; m: pairs of rows.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import duplicates, groups, nearest
from micdiffrep_jax.run import log

POLICIES = ('error', 'drop', 'keep')
_LARGE = 0.01  # share of the sources from which a group is suspicious


class Summary(NamedTuple):
  """What dataset.json says of near-duplicates."""

  sources: int  # untouched labelled pictures
  groups: int  # of them, where those that nearly repeat are one
  pairs: int
  equal_pairs: int  # of equal pixels
  sources_with_a_partner: int
  largest_group: int  # sources in it
  largest_group_ids: list[str]  # at most 20
  unlabelled_that_repeat_labelled: int
  conflicts: Sequence[str] = ()  # pairs that show one picture under two labels
  dropped: int = 0  # rows that are in no split for that reason


class Near(NamedTuple):
  """What the search found."""

  group: np.ndarray  # (n,) int32: units joined where they nearly repeat
  same: np.ndarray  # (n,) int32: rows that show one picture
  pairs: np.ndarray  # (m, 2) labelled rows that nearly repeat
  seen: np.ndarray  # (m, 2) an unlabelled row, a labelled one it repeats
  summary: Summary


def find(
  table: Mapping[str, np.ndarray],
  crops: np.ndarray,
  constant: np.ndarray,
  config: ConfigDict,
) -> Near:
  """Searches sources against sources, and unlabelled rows against labelled.

  table: columns (n,) of the manifest; crops (n, 32, 32) uint8; constant (n,)
  bool, pictures of one colour; config: config.data.near_duplicates. Variants
  are not searched among each other: they follow their source. Pictures with
  equal pixels always count.
  """
  labelled = table['class'] != ''
  untouched = np.flatnonzero(labelled & (table['variant'] == ''))
  others = np.flatnonzero(~labelled)
  equal = duplicates.equal_pairs(table['sha256'], ~constant & labelled)
  pairs = [equal]
  shown = others[~constant[others]]
  seen = [_equal_between(table['sha256'], shown, np.flatnonzero(labelled))]
  if config.enabled:
    limits = duplicates.Thresholds(
      config.full, config.detail, config.detail_alone
    )
    pairs.append(untouched[nearest.within(crops[untouched], limits)])
    if len(others):
      # They may repeat a variant, so all labelled rows are asked.
      rows = np.flatnonzero(labelled)
      i, j = nearest.between(crops[others], crops[rows], limits).T
      seen.append(np.stack([others[i], rows[j]], axis=1))
  joined = np.unique(np.concatenate(pairs), axis=0)
  same = groups.join(table['source'], joined)
  all_seen = np.unique(np.concatenate(seen), axis=0)
  group = groups.join(table['unit'], joined)
  _warn_of_chains(table, group, untouched)
  summary = _summary(table, same, joined, len(equal), all_seen, untouched)
  return Near(group, same, joined, all_seen, summary)


def usable(
  table: Mapping[str, np.ndarray], near: Near, policy: str
) -> tuple[np.ndarray, Summary]:
  """Rows (n,) bool that splits may use; settles pictures with two labels.

  `policy` says what becomes of them: error lists the pairs, drop leaves out
  all rows that show the picture, keep trusts the labels. The summary returned
  says what was found and done.
  """
  label = np.unique(table['class'], return_inverse=True)[1]
  shown = np.unique(np.stack([near.same, label]), axis=1)[0]  # per label once
  torn = (np.bincount(shown) > 1)[near.same]
  if not torn.any():
    return ~torn, near.summary
  i, j = near.pairs.T
  clash = near.pairs[table['class'][i] != table['class'][j]]
  listing = [
    f'{table["id"][i]} ({table["class"][i]}) and '
    f'{table["id"][j]} ({table["class"][j]})'
    for i, j in clash
  ]
  summary = near.summary._replace(conflicts=listing)
  if policy == 'error':
    raise ValueError(
      f'{len(clash)} pairs show one picture under two labels:\n  '
      + '\n  '.join([*listing[:10], *['...'] * (len(listing) > 10)])
      + '\nCorrect them, or leave them out with --config.data.conflicts=drop, '
      'or accept them with --config.data.conflicts=keep.'
    )
  if policy == 'keep':
    return np.ones(len(torn), bool), summary
  log.get_logger().warning(
    '%d images of pictures with two labels are in no part of a split.',
    torn.sum(),
  )
  return ~torn, summary._replace(dropped=int(torn.sum()))


def _equal_between(
  hashes: np.ndarray, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
  """Pairs (row of a, first row of b of equal hash), (m, 2)."""
  first = dict(zip(hashes[b[::-1]].tolist(), b[::-1]))
  pairs = [(i, first[hashes[i]]) for i in a if hashes[i] in first]
  return np.array(pairs, np.int64).reshape(-1, 2)


def _warn_of_chains(
  table: Mapping[str, np.ndarray], group: np.ndarray, untouched: np.ndarray
) -> None:
  """Says so where near-duplicates join suspiciously many units."""
  if not len(untouched):
    return
  names, first = np.unique(table['unit'][untouched], return_index=True)
  group_of_unit = group[untouched[first]]
  sizes = np.bincount(group_of_unit)
  if sizes.max() > max(2, _LARGE * len(names)):
    log.get_logger().warning(
      'Near-duplicates join %d of %d sources (%s ...): look at '
      'them, or raise config.data.near_duplicates.detail.',
      sizes.max(),
      len(names),
      ', '.join(names[group_of_unit == sizes.argmax()][:3]),
    )


def _summary(
  table: Mapping[str, np.ndarray],
  same: np.ndarray,
  pairs: np.ndarray,
  n_equal: int,
  seen: np.ndarray,
  untouched: np.ndarray,
) -> Summary:
  sizes = np.bincount(same[untouched]) if len(untouched) else np.zeros(1, int)
  members = untouched[same[untouched] == sizes.argmax()]
  return Summary(
    sources=len(untouched),
    groups=int((sizes > 0).sum()),
    pairs=len(pairs),
    equal_pairs=n_equal,
    sources_with_a_partner=int(sizes[sizes > 1].sum()),
    largest_group=int(sizes.max()),
    largest_group_ids=table['id'][members[:20]].tolist(),
    unlabelled_that_repeat_labelled=len(np.unique(seen[:, 0])),
  )

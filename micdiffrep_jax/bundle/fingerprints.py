"""What a classifier remembers of its training images, to recognise them.

Eight bytes of the hash of each image, and small head crops of the untouched
ones, coarse in grey. The crops show the pictures they were made of: leave them
out of what is given away where the pictures are private.

Letters: n m images.
"""

from typing import NamedTuple

import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import duplicates, store

KINDS = ('crops', 'hashes', 'none')
_DROP_BITS = 3  # of the grey of a crop; nothing is lost at the thresholds
_FLIPS = ((), (2,), (1,), (1, 2))  # axes of crops; a flipped copy is a copy


class Fingerprints(NamedTuple):
  """hashes (n,) uint64; crops (m, 32, 32) uint8, of them the untouched ones."""

  hashes: np.ndarray
  crops: np.ndarray

  def arrays(self) -> dict[str, np.ndarray]:
    """As arrays to be stored."""
    return {
      'fingerprints.hashes': self.hashes,
      'fingerprints.crops': self.crops >> _DROP_BITS,
    }

  @classmethod
  def from_arrays(cls, arrays: dict[str, np.ndarray]) -> 'Fingerprints':
    """The inverse, up to the bits that are dropped."""
    middle = 1 << (_DROP_BITS - 1)
    crops = (arrays['fingerprints.crops'] << _DROP_BITS) + middle
    return cls(arrays['fingerprints.hashes'], crops.astype(np.uint8))


def empty() -> Fingerprints:
  """Of no image at all: nothing is recognised."""
  side = duplicates.CROP_PX
  return Fingerprints(
    np.zeros(0, np.uint64), np.zeros((0, side, side), np.uint8)
  )


def short(sha256: str) -> int:
  """The first eight bytes of a hash in hexadecimal."""
  return int(sha256[:16], 16)


def make(dataset: data.Dataset, rows: np.ndarray, kind: str) -> Fingerprints:
  """Of the rows of a dataset: hashes of all, crops of the untouched sources."""
  if kind == 'none':
    return empty()
  manifest = dataset.manifest
  hashes = np.array([short(x) for x in manifest['sha256'][rows]], np.uint64)
  if kind == 'hashes':
    return empty()._replace(hashes=hashes)
  untouched = rows[manifest['variant'][rows] == '']
  return Fingerprints(hashes, duplicates.crops(dataset.images, untouched))


def equal(known: Fingerprints, images: np.ndarray) -> np.ndarray:
  """Which images (n, s, s, c) uint8 have the pixels of a known one: (n,)."""
  mine = [short(store.pixel_hash(x)) for x in images]
  return np.isin(np.array(mine, np.uint64), known.hashes)


def near(known: Fingerprints, found: np.ndarray) -> np.ndarray:
  """Which head crops (n, 32, 32) nearly repeat a known picture: (n,) bool.

  Flipped copies count. Rotated ones are not recognised, nor those whose
  brightness was clipped.
  """
  hit = np.zeros(len(found), bool)
  if len(known.crops) and len(found):
    bank = duplicates.describe(known.crops)
    for axes in _FLIPS:
      turned = duplicates.describe(np.flip(found, axes))
      pairs = duplicates.pairs_between(turned, bank, duplicates.Thresholds())
      hit[pairs[:, 0]] = True
  return hit

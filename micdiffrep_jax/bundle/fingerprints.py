"""What a classifier remembers of its training images, to recognise them.

Eight bytes of the hash of each image, which equal pixels alone have, and of the
untouched ones the whole picture at 24 px in 16 grey levels, which it still
resembles when it was saved again, resized, made brighter or darker. Head crops
of 32 px also find a picture that was cut or framed. All but the hashes show the
pictures they were made of: leave them out of what is given away where the
pictures are private.

Letters: n m images, s c their side and channels.
"""

from typing import NamedTuple

import cv2
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import duplicates, store

KINDS = ('crops', 'small', 'hashes', 'none')
SMALL_PX = 24
_SMALL_BITS = 4
_SMALL_BLUR_PX = 1.5  # of what the high-pass removes, at SMALL_PX
# One picture saved again correlates to .98 and more in detail; of neighbouring
# slices of a head one in five hundred passes.
_SMALL_LIMITS = duplicates.Thresholds(
  full=0.9, detail=0.97, detail_alone=np.inf
)
_WHITE = 0.99  # share of the pixels that are no brighter than white
_FLAT = 2.0  # grey levels of deviation below which there is nothing to compare
HASHES_ONLY = 'equal pixels only'
_DROP_BITS = 3  # of the grey of a crop; nothing is lost at the thresholds
_FLIPS = ((), (2,), (1,), (1, 2))  # axes of pictures; a flipped copy is a copy


class Fingerprints(NamedTuple):
  """Of n training images, m of them untouched, what was kept.

  hashes (n,) uint64; crops (m, 32, 32) and small (m, 24, 24) uint8. What was
  not kept has no rows.
  """

  hashes: np.ndarray
  crops: np.ndarray
  small: np.ndarray = np.zeros((0, SMALL_PX, SMALL_PX), np.uint8)

  @property
  def recognises(self) -> str:
    """What is found again, in words; '' where nothing was kept."""
    if len(self.crops) or len(self.small):
      return 'equal pixels, and pictures that nearly repeat'
    return HASHES_ONLY if len(self.hashes) else ''

  def first(self, images: int, untouched: int) -> 'Fingerprints':
    """Of the first images alone, and the first untouched ones."""
    return Fingerprints(
      self.hashes[:images], self.crops[:untouched], self.small[:untouched]
    )

  def arrays(self) -> dict[str, np.ndarray]:
    """As arrays to be stored."""
    return {
      'fingerprints.hashes': self.hashes,
      'fingerprints.crops': self.crops >> _DROP_BITS,
      'fingerprints.small': _pack(self.small),
    }

  @classmethod
  def from_arrays(cls, arrays: dict[str, np.ndarray]) -> 'Fingerprints':
    """The inverse, up to the bits dropped; older files lack `small`."""
    middle = 1 << (_DROP_BITS - 1)
    crops = (arrays['fingerprints.crops'] << _DROP_BITS) + middle
    packed = arrays.get('fingerprints.small', _pack(empty().small))
    return cls(
      arrays['fingerprints.hashes'], crops.astype(np.uint8), _unpack(packed)
    )


def _pack(small: np.ndarray) -> np.ndarray:
  """(m, 24, 24) uint8 -> (m, 24, 12): 16 levels, two to a byte."""
  levels = small >> (8 - _SMALL_BITS)
  return (levels[..., ::2] << _SMALL_BITS) | levels[..., 1::2]


def _unpack(packed: np.ndarray) -> np.ndarray:
  """The inverse of _pack, at the middle of each level."""
  levels = np.stack([packed >> _SMALL_BITS, packed & 15], axis=-1)
  small = levels.reshape(len(packed), SMALL_PX, SMALL_PX)
  return (small << (8 - _SMALL_BITS)) + (1 << (7 - _SMALL_BITS))


def empty() -> Fingerprints:
  """Of no image at all: nothing is recognised."""
  side = duplicates.CROP_PX
  return Fingerprints(
    np.zeros(0, np.uint64),
    np.zeros((0, side, side), np.uint8),
  )


def short(sha256: str) -> int:
  """The first eight bytes of a hash in hexadecimal."""
  return int(sha256[:16], 16)


def shrink(images: np.ndarray) -> np.ndarray:
  """Whole pictures (n, s, s, c) uint8 at 24 px, from black to white.

  (n, 24, 24) uint8: the darkest pixel is 0 and what 1 % are brighter than 255,
  so that few levels hold a dark picture too; all 0 where a picture is flat.
  """
  out = np.zeros((len(images), SMALL_PX, SMALL_PX), np.uint8)
  for i, image in enumerate(images):
    grey = image[..., 0]
    if image.shape[-1] == 3:
      grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    size = (SMALL_PX, SMALL_PX)
    x = cv2.resize(grey.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    if x.std() >= _FLAT:
      black, white = x.min(), np.quantile(x, _WHITE)
      x = np.clip((x - black) / max(white - black, 1), 0, 1)
      out[i] = np.rint(255 * x)
  return out


def make(dataset: data.Dataset, rows: np.ndarray, kind: str) -> Fingerprints:
  """Of the rows of a dataset: hashes of all, pictures of the untouched sources.

  kind: one of KINDS; crops has all that there is.
  """
  found = empty()
  if kind == 'none':
    return found
  manifest = dataset.manifest
  hashes = np.array([short(x) for x in manifest['sha256'][rows]], np.uint64)
  found = found._replace(hashes=hashes)
  if kind == 'hashes':
    return found
  untouched = rows[manifest['variant'][rows] == '']
  small = [
    shrink(dataset.images[untouched[i : i + 1024]])
    for i in range(0, len(untouched), 1024)
  ]
  found = found._replace(small=np.concatenate([found.small, *small]))
  if kind == 'small':
    return found
  return found._replace(crops=duplicates.crops(dataset.images, untouched))


def equal(known: Fingerprints, images: np.ndarray) -> np.ndarray:
  """Which images (n, s, s, c) uint8 have the pixels of a known one: (n,)."""
  mine = [short(store.pixel_hash(x)) for x in images]
  return np.isin(np.array(mine, np.uint64), known.hashes)


def near(
  known: Fingerprints, crops: np.ndarray, small: np.ndarray
) -> np.ndarray:
  """Which images nearly repeat a known picture: (n,) bool.

  crops (n, 32, 32) uint8: their head crops; small (n, 24, 24) uint8: of shrink.
  Flipped copies count. Rotated ones are not recognised, nor those of whose
  brightness much was clipped.
  """
  return _near(
    known.crops, crops, duplicates.BLUR_PX, duplicates.Thresholds()
  ) | _near(known.small, small, _SMALL_BLUR_PX, _SMALL_LIMITS)


def _near(
  known: np.ndarray,
  found: np.ndarray,
  blur_px: float,
  limits: duplicates.Thresholds,
) -> np.ndarray:
  """Which of `found` (n, p, p) nearly repeat one of `known` (m, p, p)."""
  hit = np.zeros(len(found), bool)
  if len(known) and len(found):
    bank = duplicates.describe(known, blur_px)
    for axes in _FLIPS:
      turned = duplicates.describe(np.flip(found, axes), blur_px)
      hit[duplicates.pairs_between(turned, bank, limits)[:, 0]] = True
  return hit

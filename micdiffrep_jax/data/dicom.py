"""DICOM files: what each one is, whose it is, and its pictures.

pydicom is optional. A header alone tells a picture from what is known to be
none (masks, doses, reports, directories) and from damage.
"""

import functools
import hashlib
import io
import logging
import os
import secrets
import tempfile
from typing import Any, NamedTuple
import warnings

from micdiffrep_jax.data import (
  decode,
  dicom_pixels,
  geometry,
  identity,
  store,
  volumes,
)

SUFFIXES = ('.dcm',)
# Modalities of objects that are no pictures, whatever class they are saved as.
NO_PICTURES = frozenset(
  'SEG RTDOSE RTSTRUCT RTPLAN RTRECORD RTINTENT RTSEGANNOT RTRAD PLAN SR PR KO '
  'DOC REG FID RWV HD ECG EEG EMG EOG EPS AU RESP ASMT ANN TEXTUREMAP M3D SMR '
  'CTPROTOCOL XAPROTOCOL STRAIN IOL LEN AR KER SRF VA OAM OPV OPM'.split()
)
# Classes with 'Image Storage' in their name are pictures, and this one.
_PICTURE_CLASSES = ('Enhanced US Volume Storage',)
_EXTRA = "pip install 'micdiffrep_jax[medical]'"
# Of a header: what decides here, in dicom_pixels.refusal and in _patient.
_TAGS = (
  'SpecificCharacterSet SOPClassUID Modality PatientID Rows Columns '
  'SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit '
  'PixelRepresentation NumberOfFrames PixelPresentation '
  'EnhancedPaletteColorLookupTableSequence DirectoryRecordSequence'
).split()
_LAST_TAG = 0x0028FFFF


class Header(NamedTuple):
  """What a file's header says; at most one of no_picture, refused is set."""

  no_picture: str = ''  # the known kind of object that it is instead
  refused: str = ''  # why it cannot become a picture
  patient: str = ''  # salted hash of the id, '' for none


class Refused(ValueError):
  """Says of a file, in one line, why it cannot become pictures."""


def is_marked(path: str) -> bool:
  """Whether a file has DICOM's mark, whatever its ending."""
  try:
    with open(path, 'rb') as f:
      return f.read(132)[128:] == b'DICM'
  except OSError:
    return False


def examine(path: str) -> Header:
  """What the header of a file says, without its pixels.

  Raises ValueError where the secret that hides ids cannot be kept.
  """
  try:
    record = _open(path, header_only=True)
    kind = _no_picture(record)
    refused = '' if kind else _refusal(record, path)
    patient = _patient(record)
  except (Refused, OSError) as e:
    return Header(refused=str(e) or type(e).__name__)
  except Exception as e:  # a damaged value, whatever it is taken for
    return Header(refused=f'damaged: {_one_line(e)}')
  return Header(kind, refused, _hashed(patient))


def read(path: str, options: volumes.Options) -> list[decode.Picture]:
  """Frames of one file; the patient's salted hash is their group.

  dicom_pixels.py says what is done to the stored values, geometry.py how the
  slices are turned: where a file names no directions they stay as stored.
  Raises ValueError for a file that is damaged, no picture, or has an attribute
  that cannot be honoured.
  """
  try:
    record = _open(path)
    kind = _no_picture(record)
    refused = f'no picture but {kind}' if kind else _refusal(record, path)
    if refused:
      raise Refused(refused)
    pixels = dicom_pixels.decode(record)
    rules: tuple[str, ...] = ('as_stored',)
    frames = pixels.frames
    if frames.ndim == 3:
      frames, rules = dicom_pixels.grey_levels(record, pixels, options)
    laid = [_laid(record, k) for k in range(len(frames))]
    patient = _patient(record)
  except (Refused, OSError):
    raise
  except Exception as e:  # pydicom and its plugins raise all kinds
    raise ValueError(f'damaged or no pixels: {_one_line(e)}') from None
  if record.get('BurnedInAnnotation') == 'YES':
    rules = ('burned_in_annotation', *rules)
  group = _hashed(patient)
  return volumes.pictures(frames, laid, ('dicom', *rules), group, options)


def _open(path: str, header_only: bool = False) -> Any:
  """The record of a file; old ones without DICOM's mark are tried too.

  header_only: up to the group of the pixels' description, and _TAGS alone.

  Raises Refused for a file that cannot be one.
  """
  import pydicom
  from pydicom import uid

  if not os.path.getsize(path):
    raise Refused('empty file')
  _quiet()
  marked = True
  try:
    try:
      record = _parse(path, header_only)
    except pydicom.errors.InvalidDicomError:
      marked = False
      record = _parse(path, header_only, force=True)
  except Exception as e:  # whatever the damage leads to
    raise Refused(f'damaged: {_one_line(e)}') from None
  if not marked and not ('Rows' in record or 'SOPClassUID' in record):
    raise Refused('no DICOM file: neither its mark nor an image header')
  if 'TransferSyntaxUID' not in record.file_meta:
    implicit, little = record.original_encoding
    record.file_meta.TransferSyntaxUID = (
      uid.ImplicitVRLittleEndian
      if implicit
      else uid.ExplicitVRLittleEndian
      if little
      else uid.ExplicitVRBigEndian
    )
  return record


def _parse(path: str, header_only: bool, force: bool = False) -> Any:
  import pydicom
  from pydicom.filereader import read_partial

  with _Bounded(path) as f:
    if not header_only:
      return pydicom.dcmread(f, force=force)
    # What follows, such as a thousand frames' groups, takes long to walk.
    return read_partial(
      f,
      stop_when=lambda tag, vr, length: tag > _LAST_TAG,
      force=force,
      specific_tags=_tags(),
    )


class _Bounded(io.BufferedReader):
  """A file of which no damaged length can ask for more than there is."""

  def __init__(self, path: str):
    super().__init__(io.FileIO(path))
    self._size = os.path.getsize(path)

  def read(self, size: int | None = -1) -> bytes:
    """As of any file; memory is taken for what is left of it at most."""
    left = max(self._size - self.tell(), 0)
    return super().read(left if size is None or size < 0 else min(size, left))


@functools.cache
def _tags() -> list[Any]:
  import pydicom

  return [pydicom.tag.Tag(name) for name in _TAGS]


@functools.cache
def _quiet() -> None:
  """Keeps pydicom from a warning per file: what matters is refused here."""
  warnings.filterwarnings('ignore', module='pydicom')
  logging.getLogger('pydicom').setLevel(logging.CRITICAL)


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split()) or type(error).__name__


def _no_picture(record: Any) -> str:
  """The kind of an object that is known to be no picture; '' otherwise."""
  stated = record.file_meta.get('MediaStorageSOPClassUID')
  uid = record.get('SOPClassUID') or stated
  name = uid.name if uid else ''
  listed = bool(name) and name != str(uid)  # of the standard, not private
  picture = 'Image Storage' in name or name in _PICTURE_CLASSES
  if listed and not picture:
    return name
  modality = str(record.get('Modality') or '')
  if modality in NO_PICTURES:
    return modality
  if record.get('BitsAllocated') == 1:
    return 'one bit a pixel'
  if 'DirectoryRecordSequence' in record:
    return 'directory'
  return '' if picture or record.get('Rows') else 'object without pixels'


def _refusal(record: Any, path: str) -> str:
  """Why a picture cannot be read, from its header; '' if it can."""
  if not record.get('Rows') or not record.get('Columns'):
    return 'no pixels: Rows or Columns is missing'
  syntax = record.file_meta.TransferSyntaxUID
  reason = dicom_pixels.refusal(
    record,
    jpeg2000='JPEG 2000' in syntax.name,
    compressed=syntax.is_compressed and 'RLE' not in syntax.name,
  )
  return (
    reason
    or _cut_short(record, path)
    or _no_decoder(syntax, int(record.get('BitsStored') or 16))
  )


def _cut_short(record: Any, path: str) -> str:
  """Says so where a file is smaller than its pixels, which are not packed."""
  size = os.path.getsize(path)
  promised = dicom_pixels.stored_bytes(record)
  syntax = record.file_meta.TransferSyntaxUID
  if syntax.is_compressed or syntax.is_deflated or size >= promised:
    return ''
  return f'cut short: {promised:,} bytes of pixels in a file of {size:,}'


@functools.cache
def _no_decoder(syntax: Any, bits_stored: int) -> str:
  """What to install for a transfer syntax; '' where it can be decoded."""
  from pydicom import uid
  from pydicom.pixels import get_decoder

  try:
    decoder = get_decoder(syntax)
  except NotImplementedError:
    return f'transfer syntax {syntax.name} ({syntax}): nothing decodes it here'
  # The decoders that are installed by default read eight bits of this one.
  deep = syntax == uid.JPEGExtended12Bit and bits_stored > 8
  if decoder.is_available and not (
    deep and 'pylibjpeg' not in decoder.available_plugins
  ):
    return ''
  how = 'pip install pylibjpeg-libjpeg' if deep else _EXTRA
  return f'transfer syntax {syntax.name}: no decoder is installed; {how}'


def _laid(record: Any, number: int) -> geometry.Geometry:
  """Directions and distances of a frame's rows and columns."""
  of = functools.partial(dicom_pixels.of_frame, record, number)
  spacing = next(
    filter(
      None,
      (
        geometry.known(of('PixelMeasuresSequence', name))
        for name in (
          'PixelSpacing',
          'ImagerPixelSpacing',
          'NominalScannedPixelSpacing',
          'PixelAspectRatio',
        )
      ),
    ),
    None,
  )
  cosines = of('PlaneOrientationSequence', 'ImageOrientationPatient')
  if not cosines:
    return geometry.Geometry(spacing=spacing)
  return geometry.of_cosines([float(x) for x in cosines], spacing)


def _patient(record: Any) -> str:
  """The id of the patient; '' for none.

  Blanks are no part of an id, and what programs write in place of one is none.
  """
  patient = identity.tidy(str(record.get('PatientID') or ''))
  return '' if identity.is_placeholder(patient) else patient


def _hashed(patient: str) -> str:
  """A name for a patient that cannot be turned back; '' stays."""
  if not patient:
    return ''
  salt = _salt(store.user_cache())
  return hashlib.sha256(salt + patient.encode()).hexdigest()[:16]


@functools.cache
def _salt(root: str) -> bytes:
  """A secret of this user: groups stay the same, ids cannot be guessed."""
  path = os.path.join(root, 'salt')
  try:
    if not os.path.exists(path):
      os.makedirs(root, exist_ok=True)
      handle, partial = tempfile.mkstemp(dir=root)  # readable by its owner only
      with os.fdopen(handle, 'wb') as f:
        f.write(secrets.token_bytes(16))
      _publish(partial, path)
    with open(path, 'rb') as f:
      return f.read()
  except OSError as e:
    raise ValueError(
      f'{root!r} cannot keep the secret that hides the ids of patients: '
      f'{e.strerror or e}. Name a folder that can be written: '
      'MICDIFFREP_CACHE=DIR.'
    ) from None


def _publish(partial: str, path: str) -> None:
  """Gives a file its name, unless another process was faster."""
  try:
    os.link(partial, path)
  except FileExistsError:
    pass
  except OSError:  # a file system without hard links
    os.replace(partial, path)
    return
  os.remove(partial)

"""What a stored DICOM pixel means: the attributes it depends on, in one table.

| attribute (PS3.3) | what is done |
|---|---|
| Photometric Interpretation, Samples per Pixel (C.7.6.3) | PHOTOMETRIC below |
| Planar Configuration (C.7.6.3) | colours become the last axis |
| Bits Stored, High Bit, Pixel Representation (C.7.6.3) | others are cut off |
| Palette tables (C.7.6.3, C.7.9) | applied, plain and segmented |
| Pixel Presentation, enhanced palettes (C.7.6.19, C.7.6.23) | refused |
| Pixel Padding Value, Range Limit (C.7.5) | black, and in no percentile |
| Modality LUT, Rescale Slope, Intercept, Type (C.11.1) | applied |
| the same of each frame, or shared (C.7.6.16) | applied frame by frame |
| VOI LUT Sequence (C.11.2) | applied: a table changes the order of greys |
| Window Center, Width, Function (C.11.2) | set aside, see below |
| Presentation LUT Shape (C.11.4, C.11.6) | INVERSE is the negative |

Windows are set aside because whoever looked at a file last chose them: two
files of one study differ. In their place, CT in Hounsfield units is cut to
config.data.ct_window, and other grey pictures to their own percentiles. Eight
bits without a transform are a picture already and stay as stored, as colour
does.

Dimension letters: h w pixels of a frame, k frames of a file.
"""

from typing import Any, NamedTuple

import numpy as np

from micdiffrep_jax.data import volumes

# Per value: samples of a pixel and how it is read. The others of the standard
# (HSV, ARGB, CMYK, YBR_PARTIAL_422, YBR_PARTIAL_420, XYB) are refused.
PHOTOMETRIC = {
  'MONOCHROME1': (1, 'grey'),  # its least value is white
  'MONOCHROME2': (1, 'grey'),
  'PALETTE COLOR': (1, 'palette'),
  'RGB': (3, 'colour'),
  'YBR_FULL': (3, 'colour'),  # pydicom makes it RGB
  'YBR_FULL_422': (3, 'colour'),
  'YBR_ICT': (3, 'jpeg2000'),  # the decoder makes it RGB
  'YBR_RCT': (3, 'jpeg2000'),
}
# CT, enhanced, converted to enhanced
_CT = tuple(f'1.2.840.10008.5.1.4.1.1.2{end}' for end in ('', '.1', '.2'))
# VL Whole Slide Microscopy: its frames are tiles.
_TILED = ('1.2.840.10008.5.1.4.1.1.77.1.6',)
_COLOURS = ('Red', 'Green', 'Blue')
_ONE_BYTE = 255


class Pixels(NamedTuple):
  """Decoded frames: grey (k, h, w) integers, or colour (k, h, w, 3) uint8."""

  frames: np.ndarray
  background: np.ndarray | None  # (k, h, w) bool: padding, no picture


def photometric(record: Any) -> str:
  """Its Photometric Interpretation, or what the samples say without one."""
  name = str(record.get('PhotometricInterpretation') or '').strip()
  return name.upper() or ('RGB' if _samples(record) == 3 else 'MONOCHROME2')


def refusal(record: Any, jpeg2000: bool, compressed: bool) -> str:
  """Which attribute of a header cannot be honoured; '' for none."""
  name = photometric(record)
  if name not in PHOTOMETRIC:
    return f'PhotometricInterpretation={name}; one of {tuple(PHOTOMETRIC)}'
  samples, kind = PHOTOMETRIC[name]
  if _samples(record) != samples:
    return (
      f'SamplesPerPixel={_samples(record)} with {name}, which has {samples}'
    )
  if kind == 'jpeg2000' and not jpeg2000:
    return f'PhotometricInterpretation={name} without JPEG 2000'
  allocated, stored, high = _bits(record)
  if not stored <= high + 1 <= allocated or allocated % 8:
    return (
      f'BitsStored={stored} and HighBit={high} with BitsAllocated={allocated}'
    )
  # Floats have none.
  if record.get('PixelRepresentation') is None and allocated < 32:
    return 'PixelRepresentation is missing: signed or unsigned values'
  if _frames(record) > 1 and record.get('SOPClassUID') in _TILED:
    return (
      f'NumberOfFrames={_frames(record)}: tiles of one large picture '
      '(whole-slide microscopy); export them as pictures'
    )
  if high + 1 != stored and compressed:
    return f'HighBit={high} with BitsStored={stored} in compressed pixels'
  if record.get('PixelPresentation') in ('COLOR', 'MIXED') and kind == 'grey':
    return (
      f'PixelPresentation={record.PixelPresentation}: grey and coloured values '
      'in one picture'
    )
  if 'EnhancedPaletteColorLookupTableSequence' in record:
    return 'EnhancedPaletteColorLookupTableSequence: several tables of colours'
  return ''


def stored_bytes(record: Any) -> int:
  """How many bytes the pixels of a file take that are not packed."""
  bits = record.Rows * record.Columns * _frames(record) * _bits(record)[0]
  if photometric(record) == 'YBR_FULL_422':  # two pixels share their colour
    return bits * 2 // 8
  return bits * _samples(record) // 8


def decode(record: Any) -> Pixels:
  """Frames with their meaningless bits cut off and padding marked.

  Raises what pydicom raises for damage, ValueError for palettes that are.
  """
  from pydicom.pixels import get_decoder

  record.PhotometricInterpretation = photometric(record)
  syntax = record.file_meta.TransferSyntaxUID
  exact = not syntax.is_encapsulated or 'RLE' in syntax.name
  options: Any = {'correct_unused_bits': False} if exact else {}
  decoded, found = get_decoder(syntax).as_array(record, **options)
  shape = (-1, record.Rows, record.Columns)
  kind = PHOTOMETRIC[photometric(record)][1]
  name = str(found['photometric_interpretation'])
  if name.startswith('YBR'):
    raise ValueError(f'PhotometricInterpretation={name} was not made RGB')
  if 'FloatPixelData' in record or 'DoubleFloatPixelData' in record:
    return Pixels(decoded.reshape(shape), None)
  values = _own_bits(decoded, record) if exact else decoded
  if kind in ('colour', 'jpeg2000'):
    most = 2 ** _bits(record)[1] - 1
    return Pixels(_eight_bits(values.reshape(*shape, 3), most), None)
  if kind == 'palette':
    return Pixels(_palette(record, values.reshape(shape)), None)
  background = _padding(record, decoded, values)
  if background is not None:
    background = background.reshape(shape)
  return Pixels(values.reshape(shape), background)


def grey_levels(
  record: Any, pixels: Pixels, options: volumes.Options
) -> tuple[np.ndarray, tuple[str, ...]]:
  """uint8 (k, h, w) of grey frames, and the rules used."""
  stored, background = pixels
  values, units = _in_units(record, stored)
  rule = _rule(record, stored, values, units, options)
  if rule == 'ct_window':
    frames = volumes.by_window(values, options.ct_window)
  elif rule == 'voi_table':
    table = record.VOILUTSequence[0]
    shown, bits = _looked_up(record, table, values)
    frames = volumes.to_bytes(shown, 0, 2**bits - 1)
  elif rule == 'as_stored':
    frames = stored.astype(np.uint8)
  else:
    frames = volumes.by_percentiles(values, background)
  rules = [rule]
  shape = str(record.get('PresentationLUTShape') or '')
  if photometric(record) == 'MONOCHROME1' or shape == 'INVERSE':
    frames = 255 - frames
    rules.append('inverted')
  if background is not None and background.any():
    frames = np.where(background, np.uint8(0), frames)
    rules.append('padding')
  return frames, tuple(rules)


def of_frame(record: Any, number: int, sequence: str, name: str) -> Any:
  """An attribute of a frame: its own, else what frames share, else the file's.

  None where none of them has it.
  """
  own = record.get('PerFrameFunctionalGroupsSequence') or ()
  shared = record.get('SharedFunctionalGroupsSequence') or ()
  for group in (*own[number : number + 1], *shared[:1]):
    items = group.get(sequence)
    if items and items[0].get(name) is not None:
      return items[0].get(name)
  return record.get(name)


def _frames(record: Any) -> int:
  return int(record.get('NumberOfFrames') or 1)


def _samples(record: Any) -> int:
  return int(record.get('SamplesPerPixel') or 1)


def _bits(record: Any) -> tuple[int, int, int]:
  """Bits allocated and stored, and the number of the highest of the latter."""
  allocated = int(record.get('BitsAllocated') or 16)
  stored = int(record.get('BitsStored') or allocated)
  high = record.get('HighBit')
  return allocated, stored, stored - 1 if high is None else int(high)


def _own_bits(values: np.ndarray, record: Any) -> np.ndarray:
  """Integers without the bits that belong to no value, overlays among them."""
  allocated, stored, high = _bits(record)
  if stored == allocated or allocated not in (8, 16, 32, 64):
    return values
  left = values << (allocated - 1 - high)
  return left >> (allocated - stored)  # carries the sign of a signed type


def _padding(
  record: Any, raw: np.ndarray, values: np.ndarray
) -> np.ndarray | None:
  """Where values mean that there is no picture; None without such values."""
  first = record.get('PixelPaddingValue')
  if first is None or first == '':
    return None
  last = record.get('PixelPaddingRangeLimit')
  ends = [_signed(record, x) for x in (first, first if last is None else last)]
  _, stored, _ = _bits(record)
  signed = bool(record.get('PixelRepresentation', 0))
  least = -(2 ** (stored - 1)) if signed else 0
  inside = least <= min(ends) and max(ends) < least + 2**stored
  # Some scanners pad with a value that the stored bits cannot hold.
  compared = values if inside else raw
  return (compared >= min(ends)) & (compared <= max(ends))


def _signed(record: Any, value: Any) -> int:
  """A padding value as pixels have it, whatever sign its own type gave it."""
  value, span = int(value), 2 ** _bits(record)[0]
  if record.get('PixelRepresentation', 0):
    return value - span if value >= span // 2 else value
  return value + span if value < 0 else value


def _in_units(record: Any, stored: np.ndarray) -> tuple[np.ndarray, str | None]:
  """float32 after the modality transform, and its units; None: no transform.

  Raises ValueError for a slope of 0, which would leave nothing.
  """
  if record.get('ModalityLUTSequence'):
    table = record.ModalityLUTSequence[0]
    found, _ = _looked_up(record, table, stored)
    return found.astype(np.float32), str(table.get('ModalityLUTType') or '')
  group = 'PixelValueTransformationSequence'
  slopes, intercepts, types = zip(
    *(
      [
        of_frame(record, k, group, f'Rescale{x}')
        for x in ('Slope', 'Intercept', 'Type')
      ]
      for k in range(len(stored))
    )
  )
  if not any(x is not None for x in (*slopes, *intercepts)):
    return stored.astype(np.float32), None
  slope = np.array([1 if s is None else s for s in slopes], np.float32)
  intercept = np.array([i or 0 for i in intercepts], np.float32)
  if not slope.all() or not np.isfinite([slope, intercept]).all():
    raise ValueError('RescaleSlope=0 or no number')
  values = stored.astype(np.float32)
  values *= slope[:, None, None]
  values += intercept[:, None, None]
  return values, str(types[0] or 'HU')


def _rule(
  record: Any,
  stored: np.ndarray,
  values: np.ndarray,
  units: str | None,
  options: volumes.Options,
) -> str:
  """How values become eight bits."""
  if options.intensity != 'auto':
    return {'ct': 'ct_window'}.get(options.intensity, options.intensity)
  # Where the modality was taken out, the class of the object still says it.
  is_ct = record.get('SOPClassUID') in _CT and not record.get('Modality')
  if is_ct or record.get('Modality') == 'CT':
    # Signed values without a transform are Hounsfield units already.
    plain = units is None and stored.dtype.kind == 'i'
    if plain or (units or '').strip().upper() == 'HU':
      return 'ct_window'
  if record.get('VOILUTSequence'):
    return 'voi_table'
  eight = _bits(record)[1] == 8 and stored.dtype.kind == 'u'
  moved = units is not None and bool((values != stored).any())
  return 'as_stored' if eight and not moved else 'percentiles'


def _looked_up(
  record: Any, item: Any, values: np.ndarray
) -> tuple[np.ndarray, int]:
  """Values in a LUT of one item of a sequence, and the bits of its entries."""
  n, first, bits = (int(x) for x in item.LUTDescriptor)
  table = _entries(record, item.LUTData, n or 2**16)
  if first >= 2**15 and values.min() < 0:
    first -= 2**16  # written as unsigned
  at = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
  return table[at], bits


def _entries(record: Any, data: Any, n: int) -> np.ndarray:
  """The n entries of a table, of one or two bytes each, or a list of them."""
  if isinstance(data, bytes):
    little = record.file_meta.TransferSyntaxUID.is_little_endian
    wide = '<u2' if little else '>u2'
    table = np.frombuffer(data, wide if len(data) >= 2 * n else np.uint8)
  else:
    table = np.atleast_1d(np.asarray(data, np.int64))
  if len(table) < n:
    raise ValueError(f'a lookup table with {len(table)} of {n} entries')
  return table[:n].astype(np.int64)


def _palette(record: Any, indices: np.ndarray) -> np.ndarray:
  """Indices (k, h, w) to their colours (k, h, w, 3) uint8."""
  tables = []
  for colour in _COLOURS:
    descriptor = record.get(f'{colour}PaletteColorLookupTableDescriptor')
    if not descriptor:
      raise ValueError(
        f'PALETTE COLOR without {colour}PaletteColorLookupTableDescriptor'
      )
    n, first, bits = (int(x) for x in descriptor)
    n = n or 2**16
    data = record.get(f'{colour}PaletteColorLookupTableData')
    if data is not None:
      table = _entries(record, data, n)
    else:
      table = _segments(record, colour, n, bits)
    if first >= 2**15 and indices.min() < 0:
      first -= 2**16
    at = np.clip(indices.astype(np.int64) - first, 0, n - 1)
    tables.append((table, at))
  # Some write 8-bit colours and say 16.
  highest = max(int(table.max()) for table, _ in tables)
  most = _ONE_BYTE if highest <= _ONE_BYTE else 2**16 - 1
  return np.stack([_eight_bits(table, most)[at] for table, at in tables], -1)


def _segments(record: Any, colour: str, n: int, bits: int) -> np.ndarray:
  """The n entries of a segmented table (C.7.9.2).

  A segment is its kind (0 steps, 1 a line from the last entry, 2 a copy of
  earlier segments), a length, and values.
  """
  data = record.get(f'Segmented{colour}PaletteColorLookupTableData')
  if data is None:
    raise ValueError(
      f'PALETTE COLOR without {colour}PaletteColorLookupTableData'
    )
  little = record.file_meta.TransferSyntaxUID.is_little_endian
  words = np.frombuffer(
    data, np.uint8 if bits <= 8 else '<u2' if little else '>u2'
  )
  table: list[int] = []
  _expand(words.astype(np.int64), 0, len(words), table, bits)
  if len(table) < n:
    raise ValueError(f'a segmented palette with {len(table)} of {n} entries')
  return np.asarray(table[:n])


def _expand(
  words: np.ndarray, at: int, segments: int, table: list[int], bits: int
) -> None:
  """Appends the entries of up to `segments` segments from word `at` on."""
  while at + 1 < len(words) and segments:
    kind, length = int(words[at]), int(words[at + 1])
    at, segments = at + 2, segments - 1
    if kind == 0:
      table += words[at : at + length].tolist()
      at += length
    elif kind == 1 and table:
      line = np.linspace(table[-1], int(words[at]), length + 1)[1:]
      table += np.rint(line).astype(int).tolist()
      at += 1
    elif kind == 2:
      parts = words[at : at + (4 if bits <= 8 else 2)]
      base = 256 if bits <= 8 else 2**16
      offset = int(sum(int(p) * base**i for i, p in enumerate(parts)))
      at += len(parts)
      if offset >= at - len(parts) - 2:
        raise ValueError('a segmented palette that copies what comes later')
      word = offset if bits <= 8 else offset // 2
      _expand(words, word, length, table, bits)
    else:
      raise ValueError(f'a segmented palette with a segment of kind {kind}')


def _eight_bits(values: np.ndarray, most: int) -> np.ndarray:
  """[0, most] to [0, 255] uint8; what has eight bits stays as it is."""
  if most == _ONE_BYTE:
    return values.astype(np.uint8)
  return np.rint(values * (_ONE_BYTE / most)).astype(np.uint8)

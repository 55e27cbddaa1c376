"""Image files to square uint8 arrays, by one written rule per kind of file.

Dimension letters: h w pixels of the file, s side of the square, c channels.
"""

import io
import re
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps
import simplejpeg

# Still pictures that Pillow reads without another program, by their endings.
_ENDINGS = {
  'JPEG': '.jpg .jpeg .jpe .jfif .mpo',
  'JPEG2000': '.jp2 .j2k .j2c .jpc .jpf .jpx',
  'PNG': '.png .apng',
  'BMP': '.bmp .dib',
  'TIFF': '.tif .tiff',
  'WEBP': '.webp',
  'AVIF': '.avif',
  'GIF': '.gif',
  'PPM': '.ppm .pgm .pbm .pnm .pfm',
  'PCX': '.pcx',
  'PSD': '.psd',
  'QOI': '.qoi',
  'SGI': '.sgi .rgb .rgba .bw',
  'SUN': '.ras',
  'TGA': '.tga',  # last: it has no mark, so it takes anything
}
Image.init()
FORMATS = tuple(name for name in _ENDINGS if name in Image.OPEN)
SUFFIXES = tuple(s for name in FORMATS for s in _ENDINGS[name].split())
_MARKED = tuple(name for name in FORMATS if name != 'TGA')
_ORIENTATION = 274  # EXIF tag
# TIFF tags
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_PLANES = 284
_SAMPLE_FORMAT = 339
_TIFF_MARKS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
MAX_PIXELS = 2**27  # of one picture; 400 MB in colour
_PADDED_PX = 8192  # side from which a picture is reduced before it is padded
_TINY_PX = 8
_CODESTREAM = b'\xff\x4f\xff\x51'  # of JPEG 2000: SOC and SIZ
_STRAY_BYTES = 16
_NARROW = 4  # aspect ratio from which a picture is reported


class Picture(NamedTuple):
  """One decoded picture, before it is made square.

  pixels (h, w) or (h, w, 3) uint8; rules names what was done to get them;
  part tells the pictures of one file apart ('' where there is one); group is
  what the file itself says it belongs to ('' where it says nothing).
  """

  pixels: np.ndarray
  rules: tuple[str, ...] = ()
  part: str = ''
  group: str = ''


def scale_range(x: np.ndarray) -> np.ndarray:
  """Maps [min, max] of an array to [0, 255] uint8; a constant becomes 0.

  Eight bits hold a 16-bit or float picture only after its own range is scaled:
  Pillow's conversion clips it instead. Raises ValueError for nan or inf.
  """
  x = np.asarray(x, np.float64)
  if not np.isfinite(x).all():
    raise ValueError('pixels are not finite')
  low, high = x.min(), x.max()
  if high == low:
    return np.zeros(x.shape, np.uint8)
  return np.rint((x - low) * (255 / (high - low))).astype(np.uint8)


def to_square(pixels: np.ndarray, size_px: int, channels: int) -> np.ndarray:
  """Pads to a square with black and resizes by area.

  pixels (h, w) or (h, w, 3) uint8 -> (s, s, c) uint8 with c = 1 (luma) or 3.
  An odd row or column of padding goes to the bottom or the right.
  """
  if channels == 1 and pixels.ndim == 3:
    pixels = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
  h, w = pixels.shape[:2]
  if h != w and max(h, w) > _PADDED_PX:  # else a strip becomes gigabytes
    part = _PADDED_PX / max(h, w)
    h, w = max(1, round(h * part)), max(1, round(w * part))
    pixels = cv2.resize(pixels, (w, h), interpolation=cv2.INTER_AREA)
  side = max(h, w)
  if h != w:
    top, left = (side - h) // 2, (side - w) // 2
    pixels = cv2.copyMakeBorder(
      np.ascontiguousarray(pixels),
      top,
      side - h - top,
      left,
      side - w - left,
      cv2.BORDER_CONSTANT,
      value=(0, 0, 0),
    )
  if side != size_px:
    # INTER_AREA copies pixels when it enlarges.
    how = cv2.INTER_AREA if side > size_px else cv2.INTER_LINEAR
    pixels = cv2.resize(pixels, (size_px, size_px), interpolation=how)
  if pixels.ndim == 2:
    pixels = np.repeat(pixels[..., None], channels, axis=-1)
  return np.ascontiguousarray(pixels)


def shape_rules(pixels: np.ndarray, size_px: int) -> tuple[str, ...]:
  """Names what is odd about a picture's shape or content."""
  h, w = pixels.shape[:2]
  found = []
  if h != w:
    found.append('padded')
  if max(h, w) < size_px:
    found.append('enlarged')
  if min(h, w) < _TINY_PX:
    found.append('tiny')
  if max(h, w) > _NARROW * min(h, w):
    found.append('narrow')
  low, high = pixels.min(), pixels.max()
  if low == high:
    found.append('constant')
  elif ((pixels == low) | (pixels == high)).all():
    found.append('two_levels')  # a drawn outline or a mask
  return tuple(found)


def is_picture(path: str) -> bool:
  """Whether a file begins as a picture does, whatever its name says."""
  try:
    with Image.open(path, formats=_MARKED):
      return True
  except (Image.UnidentifiedImageError, OSError):
    return False
  except Exception:  # the mark of a picture, and damage after it
    return True


def read_image(data: bytes, channels: int = 3) -> Picture:
  """Decodes the bytes of a file of one of FORMATS completely.

  Returns grey pixels where the file is grey or channels is 1 and the decoder
  can give grey directly. Raises ValueError with the reason for a file that is
  empty, no image, truncated or damaged; nothing is ever filled in.
  """
  if not data:
    raise ValueError('empty file')
  if data[:3] == b'\xff\xd8\xff' and _orientation(data) == 1:
    picture = _read_plain_jpeg(data, channels)
    if picture is not None:
      return picture
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      _check_size(*image.size)
      return _read_pillow(image, data)
  except Image.DecompressionBombError as e:
    raise ValueError(f'too many pixels: {e}') from None
  except Image.UnidentifiedImageError:
    if data[:4] in _TIFF_MARKS:
      raise ValueError(
        'a TIFF with a type of pixels that cannot be read; save it again as '
        'unsigned 8 or 16 bits'
      ) from None
    raise ValueError('not an image that can be read') from None
  except ValueError:
    raise
  except Exception as e:
    # On damage, decoders raise whatever they stumble over.
    raise ValueError(f'damaged: {e or type(e).__name__}') from None


def _check_size(width: int, height: int) -> None:
  """Raises ValueError before memory is taken for what a header claims."""
  if not 0 < width * height <= MAX_PIXELS:
    raise ValueError(
      f'too many pixels: {width} x {height}; at most {MAX_PIXELS:,} are read'
    )


def load(path: str, size_px: int, channels: int) -> np.ndarray:
  """Reads one file as (s, s, c) uint8; raises as read_image does."""
  with open(path, 'rb') as f:
    picture = read_image(f.read(), channels)
  return to_square(picture.pixels, size_px, channels)


def _orientation(data: bytes) -> int:
  """The EXIF orientation of a JPEG, 1 where there is none."""
  if data.find(b'Exif\0\0', 0, 1 << 17) < 0:
    return 1
  try:
    with Image.open(io.BytesIO(data)) as image:
      return image.getexif().get(_ORIENTATION, 1)
  except Exception:  # the decoder that follows names the damage
    return 1


def _read_plain_jpeg(data: bytes, channels: int) -> Picture | None:
  """The fast way for 8-bit grey or YCbCr; None leaves the file to Pillow."""
  try:
    try:
      height, width, colour, _ = simplejpeg.decode_jpeg_header(
        data, strict=False
      )
    except KeyError:
      return None  # an unknown colour space
    if colour in ('CMYK', 'YCCK'):
      return None
    _check_size(width, height)
    grey = channels == 1 or colour.upper() in ('GRAY', 'GREY')
    pixels = simplejpeg.decode_jpeg(data, 'GRAY' if grey else 'RGB')
  except ValueError as e:
    # libjpeg warns of a hole and goes on, and Pillow would hide it. Some
    # cameras leave a few bytes before the end; many are what a hole leaves.
    stray = re.search(r'(\d+) extraneous bytes before marker 0xd9', str(e))
    if stray and int(stray.group(1)) <= _STRAY_BYTES:
      return None
    raise ValueError(f'damaged: {e}') from None
  return Picture(pixels[..., 0] if grey else pixels)


def _read_pillow(image: Image.Image, data: bytes) -> Picture:
  rules = []
  if getattr(image, 'n_frames', 1) > 1:
    rules.append('first_frame')
    image.seek(0)
  deep = _deep_colour(image, data)
  image.load()
  if deep is not None:
    rules.append('range_scaled')
    return Picture(deep, tuple(rules))
  if image.getexif().get(_ORIENTATION, 1) != 1:
    rules.append('exif_rotated')
    image = ImageOps.exif_transpose(image)
  grey = _deep_grey(image)
  if grey is not None:
    return Picture(grey, (*rules, 'range_scaled'))
  if image.mode in ('P', 'PA'):
    rules.append('palette')
  if image.mode == 'CMYK':
    rules.append('cmyk')
  if image.has_transparency_data:
    rules.append('alpha')
    solid = _over_black(np.asarray(image.convert('RGBA')))
    return Picture(solid, tuple(rules))
  if image.mode not in ('L', 'RGB'):
    image = image.convert('L' if image.mode == '1' else 'RGB')
  return Picture(np.asarray(image), tuple(rules))


def _deep_grey(image: Image.Image) -> np.ndarray | None:
  """Grey whose range is scaled: more than 8 bits, or signed; None for others.

  Of a TIFF, Pillow heeds neither unsigned 32 bits nor signed 8 bits, and of
  more than 8 bits not whether the least value is white.
  """
  deep = image.mode.startswith('I') or image.mode == 'F'
  tags = getattr(image, 'tag_v2', {})
  kind = tags.get(_SAMPLE_FORMAT, (1,))[0]  # 1 unsigned, 2 signed, 3 float
  signed = image.mode == 'L' and kind == 2
  if not deep and not signed:
    return None
  pixels = np.asarray(image)
  if signed:
    pixels = pixels.view(np.int8)
  elif tags and image.mode == 'I' and kind == 1:
    pixels = pixels.view(np.uint32)
  scaled = scale_range(pixels)
  return 255 - scaled if deep and tags.get(_PHOTOMETRIC) == 0 else scaled


def _deep_colour(image: Image.Image, data: bytes) -> np.ndarray | None:
  """Colour of more than 8 bits, of which Pillow would keep the high byte."""
  if image.mode not in ('RGB', 'RGBA', 'LA', 'RGBX'):
    return None
  if image.format == 'PNG':
    deep = data[24] == 16  # bit depth in the header chunk
  elif image.format == 'JPEG2000':
    depth_at = data.find(_CODESTREAM) + 42  # Ssiz of the first component
    deep = data[depth_at] & 0x7F > 7  # bits less one, below the sign
  else:
    bits = getattr(image, 'tag_v2', {}).get(_BITS_PER_SAMPLE, (8,))
    deep = max(bits) > 8
  if not deep:
    return None
  if getattr(image, 'tag_v2', {}).get(_PLANES) == 2:
    raise ValueError(
      'a TIFF of 16-bit colour in planes (PlanarConfiguration=2); save its '
      'colours together'
    )
  pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if pixels is None:
    raise ValueError('16-bit colour that cannot be decoded')
  if pixels.shape[-1] == 4:
    pixels = _over_black(pixels)
  return scale_range(pixels[..., ::-1])


def _over_black(pixels: np.ndarray) -> np.ndarray:
  """Colour and alpha (h, w, 4) of 8 or 16 bits -> colour (h, w, 3).

  Of 8 bits rounded to uint8, of 16 bits float64: its range is scaled next.
  """
  colour, alpha = pixels[..., :3], pixels[..., 3:]
  if pixels.dtype == np.uint8:
    solid = (colour.astype(np.uint16) * alpha + 127) // 255
    return solid.astype(np.uint8)
  return colour * (alpha.astype(np.float64) / 65535)


def read_array(pixels: np.ndarray) -> Picture:
  """A picture that is an array already, by the rules for files.

  pixels (h, w) or (h, w, c), c = 1, 3, or 4 with alpha, channels last. uint8
  stays, bool is black and white, and the range of every other number type is
  scaled as that of a file of 16 bits or floats. Raises ValueError for other
  shapes, no pixels, nan or inf, and alpha that is neither uint8 nor uint16.
  """
  pixels = np.asarray(pixels)
  shape, kind = pixels.shape, pixels.dtype
  if kind.kind not in 'biuf':
    raise ValueError(f'type {kind}: pixels are numbers')
  if pixels.ndim not in (2, 3) or shape[2:] not in ((), (1,), (3,), (4,)):
    raise ValueError(
      f'shape {shape}: give (height, width) or (height, width, channels) with '
      '1, 3 or, with alpha, 4 channels'
    )
  _check_size(shape[1], shape[0])
  if shape[2:] == (1,):
    pixels = pixels[..., 0]
  rules = []
  if shape[2:] == (4,):
    if kind not in (np.uint8, np.uint16):
      raise ValueError(f'alpha of type {kind}: give uint8, uint16 or no alpha')
    pixels = _over_black(pixels)
    rules.append('alpha')
  if kind.kind == 'b':
    pixels = 255 * pixels.astype(np.uint8)
  if pixels.dtype != np.uint8:
    pixels = scale_range(pixels)
    rules.append('range_scaled')
  return Picture(pixels, tuple(rules))

import io
import struct

import cv2
import numpy as np
from PIL import Image
import pytest
import simplejpeg

from micdiffrep_jax.data import decode

RAMP = np.arange(96, dtype=np.uint8).reshape(8, 12) * 2  # 8 high, 12 wide


def encode(image, kind, **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def jpeg(pixels, **options):
  return encode(Image.fromarray(pixels), 'JPEG', quality=95, **options)


@pytest.fixture
def noise():
  return np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'TIFF', 'WEBP'])
def test_lossless_grey_files_come_back_exactly(kind):
  options = {'lossless': True} if kind == 'WEBP' else {}
  data = encode(Image.fromarray(RAMP), kind, **options)
  pixels = decode.read_image(data, 1).pixels
  grey = pixels if pixels.ndim == 2 else pixels[..., 0]
  np.testing.assert_array_equal(grey, RAMP)


def test_grey_jpeg_equals_pillow_exactly(noise):
  data = jpeg(noise[..., 0])
  expected = np.asarray(Image.open(io.BytesIO(data)))
  np.testing.assert_array_equal(decode.read_image(data, 1).pixels, expected)


def test_colour_jpeg_is_within_rounding_of_pillow(noise):
  data = jpeg(cv2.GaussianBlur(noise, (0, 0), 3))
  expected = np.asarray(Image.open(io.BytesIO(data)))
  np.testing.assert_array_equal(decode.read_image(data, 3).pixels, expected)
  # Luma is taken before the colours are rounded: up to 2 levels.
  luma = np.asarray(Image.open(io.BytesIO(data)).convert('L'), int)
  assert abs(decode.read_image(data, 1).pixels - luma).max() <= 2


@pytest.mark.parametrize('top', [4095, 65535])
def test_16_bit_png_keeps_its_whole_range(top):
  deep = np.linspace(0, top, 96).reshape(8, 12).round().astype(np.uint16)
  picture = decode.read_image(encode(Image.fromarray(deep), 'PNG'))
  expected = np.rint(deep / top * 255).astype(np.uint8)
  np.testing.assert_array_equal(picture.pixels, expected)
  assert picture.rules == ('range_scaled',)


def tiff(pixels, photometric, sample_format, **tags):
  """A TIFF (h, w) of one strip, byte by byte as the specification has it."""
  h, w = pixels.shape[:2]
  data = pixels.tobytes()
  bits = 8 * pixels.itemsize
  entries = {256: w, 257: h, 258: bits, 259: 1, 262: photometric, 273: 8}
  entries |= {277: 1, 278: h, 279: len(data), 339: sample_format}
  entries |= {int(name): value for name, value in tags.items()}
  made = b'II*\0' + struct.pack('<I', 8 + len(data)) + data
  made += struct.pack('<H', len(entries))
  for tag, value in sorted(entries.items()):
    made += struct.pack('<HHII', tag, 4, 1, value)
  return made + bytes(4)


@pytest.mark.parametrize('white_is_zero', [False, True])
@pytest.mark.parametrize(
  ('kind', 'values', 'sample_format'),
  [
    ('<u2', [0, 20_000, 40_000, 60_000], 1),
    ('<f4', [0, 0.5, 1, 1.5], 3),
    ('u1', [0, 85, 170, 255], 1),
  ],
)
def test_white_may_be_the_least_value_of_a_tiff(
  kind, values, sample_format, white_is_zero
):
  values = np.array([values], kind)
  stored = values[:, ::-1] if white_is_zero else values
  picture = decode.read_image(tiff(stored, 1 - white_is_zero, sample_format))
  np.testing.assert_array_equal(picture.pixels, [[0, 85, 170, 255]])


@pytest.mark.parametrize(
  ('kind', 'values', 'sample_format'),
  [
    ('u4', [0, 1_000_000_000, 2_000_000_000, 3_000_000_000], 1),
    ('i4', [-1_500_000_000, -500_000_000, 500_000_000, 1_500_000_000], 2),
    ('<i2', [-30_000, -10_000, 10_000, 30_000], 2),
    ('i1', [-120, -40, 40, 120], 2),
  ],
)
def test_a_tiff_says_whether_its_values_have_a_sign(
  kind, values, sample_format
):
  data = tiff(np.array([values], kind), 1, sample_format)
  picture = decode.read_image(data)
  np.testing.assert_array_equal(picture.pixels, [[0, 85, 170, 255]])
  assert picture.rules == ('range_scaled',)


def test_a_tiff_that_cannot_be_read_says_how_to_save_it():
  with pytest.raises(ValueError, match='a TIFF with a type.*8 or 16 bits'):
    decode.read_image(tiff(np.ones((4, 4)), 1, 3))  # 64 bits


def test_colour_of_16_bits_in_planes_is_refused():
  image = Image.new('RGB', (4, 4))
  image.tag_v2 = {258: (16, 16, 16), 284: 2}
  with pytest.raises(ValueError, match='PlanarConfiguration=2'):
    decode._deep_colour(image, b'')


@pytest.mark.parametrize('suffix', ['.png', '.tiff', '.jp2'])
def test_16_bit_colour_is_scaled_not_cut(suffix):
  deep = np.zeros((64, 80, 3), np.uint16)
  deep[..., 0] = np.arange(5120).reshape(64, 80) % 20 * 200  # red, of 12 bits
  deep[0, 0] = (0, 0, 4000)
  data = cv2.imencode(suffix, deep[..., ::-1])[1].tobytes()  # cv2: blue first
  picture = decode.read_image(data)
  np.testing.assert_array_equal(
    picture.pixels, np.rint(deep / 4000 * 255).astype(np.uint8)
  )
  assert picture.rules == ('range_scaled',)


def test_8_bit_jpeg_2000_is_as_it_is():
  shallow = np.arange(64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
  picture = decode.read_image(cv2.imencode('.jp2', shallow)[1].tobytes())
  np.testing.assert_array_equal(picture.pixels, shallow[..., ::-1])
  assert picture.rules == ()


def test_float_tiff_is_scaled():
  x = np.linspace(0, 1, 96, dtype=np.float32).reshape(8, 12)
  pixels = decode.read_image(encode(Image.fromarray(x), 'TIFF')).pixels
  np.testing.assert_array_equal(pixels, np.rint(x * 255).astype(np.uint8))


def test_nan_is_refused():
  x = np.full((8, 12), np.nan, np.float32)
  with pytest.raises(ValueError, match='not finite'):
    decode.read_image(encode(Image.fromarray(x), 'TIFF'))


def test_alpha_shows_black_not_what_lies_under_it():
  rgba = np.full((2, 3, 4), 255, np.uint8)
  rgba[:, 0, 3] = 0  # white, wholly transparent
  rgba[:, 1, 3] = 51  # a fifth
  picture = decode.read_image(encode(Image.fromarray(rgba), 'PNG'))
  np.testing.assert_array_equal(picture.pixels[0, :, 0], [0, 51, 255])
  assert 'alpha' in picture.rules


def test_grey_alpha_and_transparent_colour_show_black():
  la = np.stack([np.full((2, 2), 200, np.uint8), RAMP[:2, :2] * 0], -1)
  assert (
    decode.read_image(encode(Image.fromarray(la, 'LA'), 'PNG')).pixels.max()
    == 0
  )
  marked = encode(Image.fromarray(RAMP), 'PNG', transparency=40)
  pixels = decode.read_image(marked).pixels[..., 0]
  np.testing.assert_array_equal(pixels, np.where(RAMP == 40, 0, RAMP))


@pytest.mark.parametrize(
  ('orientation', 'turn'),
  [
    (2, np.fliplr),
    (3, lambda x: np.rot90(x, 2)),
    (6, lambda x: np.rot90(x, -1)),
    (8, np.rot90),
  ],
)
def test_exif_rotation_is_applied(orientation, turn):
  big = cv2.resize(RAMP, (48, 32))
  exif = Image.Exif()
  exif[0x0112] = orientation
  plain = decode.read_image(jpeg(big)).pixels
  picture = decode.read_image(jpeg(big, exif=exif))
  np.testing.assert_array_equal(picture.pixels, turn(plain))
  assert picture.rules == ('exif_rotated',)


def test_palette_is_looked_up():
  index = np.array([[0, 1], [2, 1]], np.uint8)
  image = Image.fromarray(index, 'P')
  image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
  picture = decode.read_image(encode(image, 'PNG'))
  np.testing.assert_array_equal(
    picture.pixels, (index[..., None] * 3 + [1, 2, 3]) * 10
  )
  assert picture.rules == ('palette',)


@pytest.mark.parametrize('inverted', [False, True])
def test_cmyk_jpeg_has_its_brightness(inverted):
  grey = cv2.resize(RAMP, (48, 32), interpolation=cv2.INTER_CUBIC)
  cmyk = Image.merge(
    'CMYK', [Image.new('L', (48, 32))] * 3 + [Image.fromarray(255 - grey)]
  )
  data = encode(cmyk, 'JPEG', quality=98)
  # Pillow writes Adobe's marker, under which inks are stored inverted.
  assert (b'Adobe' in data) is True
  if inverted:
    data = encode(Image.open(io.BytesIO(data)), 'JPEG', quality=98)
  picture = decode.read_image(data)
  assert picture.rules == ('cmyk',)
  assert abs(picture.pixels.mean(-1) - grey).mean() < 2  # JPEG's own loss


def test_bilevel_is_black_and_white():
  image = Image.fromarray(RAMP > 90)
  pixels = decode.read_image(encode(image, 'PNG')).pixels
  assert set(np.unique(pixels)) == {0, 255}


def test_first_of_several_frames_is_taken_and_said():
  frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
  data = encode(frames[0], 'TIFF', save_all=True, append_images=frames[1:])
  picture = decode.read_image(data)
  np.testing.assert_array_equal(picture.pixels, RAMP)
  assert picture.rules == ('first_frame',)


def test_png_named_jpg_is_read(tmp_path):
  path = tmp_path / 'a.jpg'
  path.write_bytes(encode(Image.fromarray(RAMP), 'PNG'))
  assert decode.load(str(path), 12, 1).shape == (12, 12, 1)


@pytest.mark.parametrize(
  'data', [b'', b'hello', b'<html>404</html>', b'\xff\xd8\xff', b'\x89PNG\r\n']
)
def test_what_is_no_image_is_refused(data):
  with pytest.raises(ValueError, match=r'empty|not an image|damaged'):
    decode.read_image(data)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('share', [0.5, 0.9])
def test_truncated_file_is_refused(noise, kind, share):
  data = encode(Image.fromarray(noise), kind)
  with pytest.raises(ValueError, match=r'damaged|not an image'):
    decode.read_image(data[: int(share * len(data))])


@pytest.mark.parametrize('filling', [b'\0\0', b'\xff\xd0'])
def test_jpeg_with_a_hole_that_pillow_hides_is_refused(noise, filling):
  data = bytearray(jpeg(cv2.resize(noise, (256, 256))))
  data[4000:6000] = filling * 1000
  Image.open(io.BytesIO(data)).load()  # no error
  with pytest.raises(ValueError, match='damaged'):
    decode.read_image(bytes(data), 1)


def test_a_few_stray_bytes_at_the_end_are_no_damage(noise):
  data = jpeg(noise)
  end = data.rindex(b'\xff\xd9')
  stray = data[:end] + b'\0\0\0' + data[end:]
  with pytest.raises(ValueError, match='xtraneous'):
    simplejpeg.decode_jpeg(stray)  # so this file takes the other way
  np.testing.assert_array_equal(
    decode.read_image(stray).pixels, decode.read_image(data).pixels
  )


def test_padding_centres_the_picture_on_black():
  out = decode.to_square(np.full((2, 6), 9, np.uint8), 6, 1)[..., 0]
  expected = np.zeros((6, 6))
  expected[2:4] = 9
  np.testing.assert_array_equal(out, expected)
  odd = decode.to_square(np.full((4, 1), 9, np.uint8), 4, 3)
  np.testing.assert_array_equal(odd[0], [[0] * 3, [9] * 3, [0] * 3, [0] * 3])


def test_resize_is_the_mean_of_areas(noise):
  square = noise[:48]
  out = decode.to_square(square, 12, 3)
  mean = square.reshape(12, 4, 12, 4, 3).mean((1, 3))
  assert abs(out - mean).max() <= 0.5  # rounding


def test_grey_is_repeated_into_three_channels():
  out = decode.to_square(RAMP, 12, 3)
  assert out.shape == (12, 12, 3)
  assert (out[..., :1] == out).all()


@pytest.mark.parametrize(
  ('shape', 'names'),
  [
    ((1, 1), {'enlarged', 'tiny', 'constant'}),
    ((3, 300), {'padded', 'tiny', 'narrow'}),
    ((64, 64), set()),
  ],
)
def test_odd_shapes_are_reported_and_survive(shape, names):
  pixels = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
  assert set(decode.shape_rules(pixels, 16)) == names
  assert decode.to_square(pixels, 16, 1).shape == (16, 16, 1)


def test_huge_picture_is_refused(monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 40)
  data = encode(Image.fromarray(RAMP), 'PNG')
  with pytest.raises(ValueError, match='too many pixels'):
    decode.read_image(data)

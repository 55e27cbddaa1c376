"""Stored values of DICOM with known grey levels."""

import numpy as np
import pytest
import scans

from micdiffrep_jax.data import dicom, volumes

pytestmark = pytest.mark.needs('pydicom')
AUTO = volumes.Options('all')
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def read(path, options=AUTO):
  return [p.pixels for p in dicom.read(path, options)]


def rules(path, options=AUTO):
  return dicom.read(path, options)[0].rules


def window(units, centre=40, width=80):
  shown = np.clip((units - centre + width / 2) / width, 0, 1)
  return np.rint(shown * 255)


def palette(values, first=0, n=256, dtype='<u2', bits=16):
  fields = {}
  for colour in ('Red', 'Green', 'Blue'):
    name = f'{colour}PaletteColorLookupTable'
    fields[f'{name}Descriptor'] = [n % 2**16, first, bits]
    fields[f'{name}Data'] = np.asarray(values).astype(dtype).tobytes()
  return {**fields, 'PhotometricInterpretation': 'PALETTE COLOR'}


@pytest.mark.parametrize(
  ('dtype', 'bits', 'scale'), [('<u2', 16, 257), ('u1', 8, 1), ('<u2', 16, 1)]
)
def test_a_palette_gives_its_colours(tmp_path, dtype, bits, scale):
  rng = np.random.default_rng(0)
  order = rng.permutation(256)  # an index says nothing of brightness
  index = np.argsort(order)[GREY].astype(np.uint8)
  path = scans.write_dicom(
    tmp_path / 'a', index, **palette(order * scale, 0, 256, dtype, bits)
  )
  [pixels] = read(path)
  np.testing.assert_array_equal(pixels, np.stack([GREY] * 3, -1))


def test_a_palette_of_many_entries_begins_at_its_first_value(tmp_path):
  index = (GREY.astype(np.uint16) + 1000).astype(np.uint16)
  index[0, 0], index[-1, -1] = 0, 60000  # take the ends of the table
  table = np.arange(600) * 100
  path = scans.write_dicom(tmp_path / 'a', index, **palette(table, 1000, 600))
  [pixels] = read(path)
  at = np.clip(index.astype(int) - 1000, 0, 599)
  np.testing.assert_array_equal(
    pixels[..., 0], np.rint(table[at] * (255 / 65535))
  )


def test_a_segmented_palette_is_expanded(tmp_path):
  # 3 steps, a line of 4 to 80, the first segment once more
  words = [0, 3, 10, 20, 40, 1, 4, 80, 2, 1, 0, 0]
  expected = np.array([10, 20, 40, 50, 60, 70, 80, 10, 20, 40])
  fields = {}
  for colour in ('Red', 'Green', 'Blue'):
    plain = f'{colour}PaletteColorLookupTable'
    fields[f'{plain}Descriptor'] = [10, 0, 16]
    fields[f'Segmented{plain}Data'] = np.array(words, '<u2').tobytes()
  index = (GREY % 10).astype(np.uint8)
  path = scans.write_dicom(
    tmp_path / 'a', index, PhotometricInterpretation='PALETTE COLOR', **fields
  )
  [pixels] = read(path)
  np.testing.assert_array_equal(pixels[..., 1], expected[index])


@pytest.mark.parametrize('name', ['HSV', 'CMYK', 'YBR_PARTIAL_420', 'YBR_ICT'])
def test_colours_that_cannot_be_read_are_refused_by_name(tmp_path, name):
  pixels = np.stack([GREY] * 3, -1)
  path = scans.write_dicom(
    tmp_path / 'a', pixels, PhotometricInterpretation=name
  )
  with pytest.raises(ValueError, match=f'PhotometricInterpretation={name}'):
    dicom.read(path, AUTO)
  assert name in dicom.examine(path).refused


def test_grey_mixed_with_colours_is_refused(tmp_path):
  mixed = scans.write_dicom(tmp_path / 'a', GREY, PixelPresentation='MIXED')
  assert 'PixelPresentation=MIXED' in dicom.examine(mixed).refused
  tables = scans.write_dicom(
    tmp_path / 'b',
    GREY,
    EnhancedPaletteColorLookupTableSequence=scans.item(Rows=1),
  )
  assert 'EnhancedPalette' in dicom.examine(tables).refused


@pytest.mark.parametrize('name', [None, 'monochrome2 '])
def test_grey_is_grey_where_the_header_is_careless(tmp_path, name):
  path = scans.write_dicom(tmp_path / 'a', GREY, PhotometricInterpretation=name)
  np.testing.assert_array_equal(read(path)[0], GREY)


def test_samples_that_contradict_the_colours_are_refused(tmp_path):
  path = scans.write_dicom(
    tmp_path / 'a', GREY, PhotometricInterpretation='RGB'
  )
  assert 'SamplesPerPixel=1 with RGB' in dicom.examine(path).refused


@pytest.fixture
def colour():
  """Dim colours: stretching would show."""
  rng = np.random.default_rng(0)
  return rng.integers(20, 90, (16, 16, 3)).astype(np.uint8)


def test_colour_of_eight_bits_stays_as_stored(tmp_path, colour):
  path = scans.write_dicom(tmp_path / 'a', colour)
  np.testing.assert_array_equal(read(path)[0], colour)


def test_planes_of_colours_are_put_together(tmp_path, colour):
  path = scans.write_dicom(
    tmp_path / 'a',
    colour,
    PlanarConfiguration=1,
    PixelData=colour.transpose(2, 0, 1).tobytes(),
  )
  np.testing.assert_array_equal(read(path)[0], colour)


@pytest.mark.parametrize('name', ['YBR_FULL', 'YBR_FULL_422'])
def test_luma_and_chroma_become_rgb_once(tmp_path, colour, name):
  if name == 'YBR_FULL_422':  # neighbours share their chroma
    colour[:, 1::2] = colour[:, ::2]
  r, g, b = np.moveaxis(colour.astype(float), -1, 0)
  y = 0.299 * r + 0.587 * g + 0.114 * b
  cb, cr = 128 + 0.564 * (b - y), 128 + 0.713 * (r - y)
  stored = np.rint(np.stack([y, cb, cr], -1)).astype(np.uint8)
  data = stored
  if name == 'YBR_FULL_422':  # Y1 Y2 Cb Cr
    data = np.stack(
      [
        stored[:, ::2, 0],
        stored[:, 1::2, 0],
        *stored[:, ::2, 1:].T.swapaxes(1, 2),
      ],
      -1,
    )
  path = scans.write_dicom(
    tmp_path / 'a',
    colour,
    PhotometricInterpretation=name,
    PixelData=data.tobytes(),
  )
  np.testing.assert_allclose(read(path)[0].astype(int), colour, atol=2)


def test_colour_of_sixteen_bits_keeps_its_scale(tmp_path, colour):
  path = scans.write_dicom(
    tmp_path / 'a',
    colour,
    BitsAllocated=16,
    BitsStored=16,
    HighBit=15,
    PixelData=(colour.astype('<u2') * 257).tobytes(),
  )
  np.testing.assert_array_equal(read(path)[0], colour)


def test_grey_of_eight_bits_stays_as_stored(tmp_path):
  dim = GREY // 4 + 30
  path = scans.write_dicom(tmp_path / 'a', dim, Modality='US')
  np.testing.assert_array_equal(read(path)[0], dim)
  stretched = volumes.Options(intensity='percentiles')
  assert read(path, stretched)[0].max() == 255


@pytest.mark.parametrize(('high', 'stored'), [(11, 12), (15, 12), (13, 12)])
@pytest.mark.parametrize('signed', [False, True])
def test_bits_beside_a_value_are_cut_off(tmp_path, high, stored, signed):
  values = (GREY.astype(int) - 128) * 8 if signed else GREY.astype(int) * 8
  shift = high + 1 - stored
  noise = np.random.default_rng(0).integers(0, 2**16, values.shape)
  mask = ((1 << stored) - 1) << shift
  words = ((values << shift) & mask) | (noise & ~mask & 0xFFFF)
  path = scans.write_dicom(
    tmp_path / 'a',
    words.astype(np.uint16),
    BitsStored=stored,
    HighBit=high,
    PixelRepresentation=int(signed),
  )
  plain = scans.write_dicom(tmp_path / 'b', values.astype(np.int16))
  np.testing.assert_array_equal(read(path)[0], read(plain)[0])


def test_bits_that_do_not_fit_are_refused(tmp_path):
  path = scans.write_dicom(tmp_path / 'a', GREY, BitsStored=12, HighBit=11)
  assert 'BitsStored=12' in dicom.examine(path).refused


HU = np.linspace(-200, 200, 256).round().reshape(16, 16)


def transformed(slope, intercept, kind='HU'):
  return scans.item(
    PixelValueTransformationSequence=scans.item(
      RescaleSlope=slope, RescaleIntercept=intercept, RescaleType=kind
    )
  )


@pytest.mark.parametrize('kind', ['HU', 'hu '])
@pytest.mark.parametrize('modality', ['CT', None])
def test_a_ct_is_known_by_its_class_too(tmp_path, kind, modality):
  path = scans.write_dicom(
    tmp_path / 'a',
    (HU + 1024).astype(np.uint16),
    SOPClassUID='1.2.840.10008.5.1.4.1.1.2',
    Modality=modality,
    RescaleSlope=1,
    RescaleIntercept=-1024,
    RescaleType=kind,
  )
  np.testing.assert_array_equal(read(path), [window(HU)])


@pytest.mark.parametrize('where', ['file', 'shared', 'frame'])
def test_a_ct_is_rescaled_wherever_its_slope_is_kept(tmp_path, where):
  slopes = (1, 2) if where == 'frame' else (2, 2)
  stored = np.stack([(HU * 2 + 1024) / s for s in slopes]).astype(np.int16)
  units = np.stack([s * f - 1024.0 for s, f in zip(slopes, stored)])
  fields = {
    'file': {'RescaleSlope': 2, 'RescaleIntercept': -1024},
    'shared': {'SharedFunctionalGroupsSequence': transformed(2, -1024)},
    'frame': {
      'PerFrameFunctionalGroupsSequence': [
        transformed(s, -1024)[0] for s in slopes
      ]
    },
  }[where]
  path = scans.write_dicom(tmp_path / 'a', stored, Modality='CT', **fields)
  np.testing.assert_array_equal(read(path), window(units))


def test_frames_of_mr_are_compared_after_their_own_slopes(tmp_path):
  units = np.stack([GREY * 10, GREY * 4]).astype(np.int16)
  stored = np.stack([units[0], units[1] // 2])
  groups = [transformed(s, 0, 'US')[0] for s in (1, 2)]
  path = scans.write_dicom(
    tmp_path / 'a', stored, PerFrameFunctionalGroupsSequence=groups
  )
  low, high = np.percentile(units[units != 0], [0.5, 99.5])
  expected = np.clip((units - low) / (high - low), 0, 1) * 255
  np.testing.assert_allclose(read(path), expected, atol=0.51)


def test_a_modality_table_is_applied(tmp_path):
  table = np.arange(256)[::-1] * 4 - 512 + 1024  # falls
  lut = scans.item(
    LUTDescriptor=[256, 0, 16],
    LUTData=table.astype('<u2').tobytes(),
    ModalityLUTType='HU',
  )
  lut[0]['LUTDescriptor'].VR = 'US'
  lut[0]['LUTData'].VR = 'OW'
  path = scans.write_dicom(
    tmp_path / 'a', GREY, Modality='CT', ModalityLUTSequence=lut
  )
  centre_512 = volumes.Options(ct_window=(512.0, 1024.0))
  np.testing.assert_array_equal(
    read(path, centre_512)[0], window(table[GREY], 512, 1024)
  )


def test_a_table_of_greys_is_applied_and_a_window_set_aside(tmp_path):
  table = (np.sin(np.arange(256) / 256 * np.pi) * 4095).astype(np.uint16)
  lut = scans.item(LUTDescriptor=[256, 0, 12], LUTData=table.tobytes())
  lut[0]['LUTDescriptor'].VR = 'US'
  lut[0]['LUTData'].VR = 'OW'
  path = scans.write_dicom(tmp_path / 'a', GREY, VOILUTSequence=lut)
  np.testing.assert_array_equal(
    read(path)[0], np.rint(table[GREY] * (255 / 4095))
  )
  values = GREY.astype(np.int16) * 10
  plain = scans.write_dicom(tmp_path / 'b', values)
  seen = scans.write_dicom(
    tmp_path / 'c', values, WindowCenter=5, WindowWidth=2
  )
  np.testing.assert_array_equal(read(plain)[0], read(seen)[0])


def test_padding_is_black_and_in_no_percentile(tmp_path):
  values = GREY.astype(np.int16) + 100
  values[:8] = -2000
  values[0] = -1990
  fields = {'PixelPaddingValue': -2000, 'PixelPaddingRangeLimit': -1990}
  path = scans.write_dicom(tmp_path / 'a', values, **fields)
  low, high = np.percentile(values[8:], [0.5, 99.5])
  expected = np.clip((values[8:] - low) / (high - low), 0, 1) * 255
  [pixels] = read(path)
  assert pixels[:8].max() == 0
  np.testing.assert_allclose(pixels[8:], expected, atol=0.51)
  assert 'padding' in rules(path)


def test_padding_of_a_negative_does_not_become_white(tmp_path):
  values = GREY.astype(np.uint16) + 100
  values[:8] = 0
  path = scans.write_dicom(
    tmp_path / 'a',
    values,
    PhotometricInterpretation='MONOCHROME1',
    PixelPaddingValue=0,
  )
  [pixels] = read(path)
  assert pixels[:8].max() == 0
  assert pixels[8, 0] == 255  # least of what is there


def test_padding_beyond_the_stored_bits_is_found(tmp_path):
  values = GREY.astype(np.uint16) + 100
  values[:8] = 63536  # -2000 in 16 bits, of which 12 count
  path = scans.write_dicom(
    tmp_path / 'a', values, BitsStored=12, HighBit=11, PixelPaddingValue=63536
  )
  [pixels] = read(path)
  assert pixels[:8].max() == 0
  assert pixels[8:].max() == 255


def test_inverse_presentation_is_the_negative_once(tmp_path):
  for i, fields in enumerate(
    (
      {'PresentationLUTShape': 'INVERSE'},
      {'PhotometricInterpretation': 'MONOCHROME1'},
      {
        'PresentationLUTShape': 'INVERSE',
        'PhotometricInterpretation': 'MONOCHROME1',
      },
    )
  ):
    path = scans.write_dicom(tmp_path / str(i), GREY, **fields)
    np.testing.assert_array_equal(read(path)[0], 255 - GREY)


def test_ct_that_is_not_in_hounsfield_units_is_not_cut_to_the_window(tmp_path):
  values = GREY.astype(np.uint16) + 1000
  made = {
    'unsigned': {},
    'other': {
      'RescaleSlope': 1,
      'RescaleIntercept': 0,
      'RescaleType': 'Z_EFF',
    },
  }
  for name, fields in made.items():
    path = scans.write_dicom(tmp_path / name, values, Modality='CT', **fields)
    assert 'percentiles' in rules(path)
  path = scans.write_dicom(
    tmp_path / 'signed', HU.astype(np.int16), Modality='CT'
  )
  np.testing.assert_array_equal(read(path)[0], window(HU))


def test_the_window_can_be_forced_and_left_out(tmp_path):
  mr = scans.write_dicom(tmp_path / 'a', HU.astype(np.int16))
  forced = volumes.Options(intensity='ct')
  np.testing.assert_array_equal(read(mr, forced)[0], window(HU))
  ct = scans.write_dicom(tmp_path / 'b', HU.astype(np.int16), Modality='CT')
  assert 'percentiles' in rules(ct, volumes.Options(intensity='percentiles'))

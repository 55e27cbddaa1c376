"""DICOM files: what they are, whose they are, and how they are packed."""

import collections
import contextlib
import importlib.util

import numpy as np
import pytest
import scans
import trees

from micdiffrep_jax.data import dicom, prepare, sources, volumes

pytestmark = pytest.mark.needs('pydicom')
ALL = volumes.Options('all')
PIXELS = np.arange(1, 257, dtype=np.int16).reshape(16, 16) * 7


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('MICDIFFREP_CACHE', str(tmp_path / 'cache'))


def no_pixels(path, modality, sop_class):
  """An object without an image."""
  import pydicom

  missing = (
    'PixelData Rows Columns BitsAllocated BitsStored HighBit SamplesPerPixel '
    'PixelRepresentation PhotometricInterpretation'
  ).split()
  return scans.write_dicom(
    path,
    PIXELS,
    Modality=modality,
    SOPClassUID=getattr(pydicom.uid, sop_class),
    **dict.fromkeys(missing),
  )


@pytest.mark.parametrize(
  ('sop_class', 'kind'),
  [
    ('SegmentationStorage', 'Segmentation Storage'),
    ('RTDoseStorage', 'RT Dose Storage'),
    ('ParametricMapStorage', 'Parametric Map Storage'),
    ('RawDataStorage', 'Raw Data Storage'),
    ('RTStructureSetStorage', 'RT Structure Set Storage'),
    ('EncapsulatedPDFStorage', 'Encapsulated PDF Storage'),
    ('TwelveLeadECGWaveformStorage', '12-lead ECG Waveform Storage'),
    ('KeyObjectSelectionDocumentStorage', 'Key Object Selection'),
    ('GrayscaleSoftcopyPresentationStateStorage', 'Softcopy Presentation'),
    ('SpatialRegistrationStorage', 'Spatial Registration Storage'),
    ('MediaStorageDirectoryStorage', 'Media Storage Directory Storage'),
  ],
)
def test_a_class_of_objects_that_are_no_pictures_is_known(
  tmp_path, sop_class, kind
):
  import pydicom

  uid = getattr(pydicom.uid, sop_class)
  path = scans.write_dicom(tmp_path / 'a', PIXELS, SOPClassUID=uid)
  found = dicom.examine(path)
  assert kind in found.no_picture
  assert not found.refused
  with pytest.raises(ValueError, match='no picture but'):
    dicom.read(path, ALL)


@pytest.mark.parametrize('modality', ['SEG', 'RTDOSE', 'SR', 'KO', 'PR'])
def test_a_modality_of_no_pictures_is_known_in_any_class(tmp_path, modality):
  path = scans.write_dicom(tmp_path / 'a', PIXELS, Modality=modality)
  assert dicom.examine(path).no_picture == modality


def test_every_image_class_of_the_standard_is_a_picture(tmp_path):
  import pydicom

  for name in (
    'CTImageStorage EnhancedCTImageStorage EnhancedMRImageStorage '
    'UltrasoundImageStorage UltrasoundMultiFrameImageStorage '
    'SecondaryCaptureImageStorage DigitalXRayImageStorageForPresentation '
    'ComputedRadiographyImageStorage NuclearMedicineImageStorage '
    'PositronEmissionTomographyImageStorage RTImageStorage '
    'VLWholeSlideMicroscopyImageStorage XRayAngiographicImageStorage '
    'BreastTomosynthesisImageStorage EnhancedUSVolumeStorage '
    'OphthalmicPhotography8BitImageStorage'
  ).split():
    path = scans.write_dicom(
      tmp_path / name, PIXELS, SOPClassUID=getattr(pydicom.uid, name)
    )
    assert dicom.examine(path) == dicom.examine(path)._replace(
      no_picture='', refused=''
    ), name
  private = scans.write_dicom(tmp_path / 'p', PIXELS, SOPClassUID='1.2.3.4.5')
  assert dicom.examine(private)[:2] == ('', '')


def test_a_private_object_without_pixels_is_no_picture(tmp_path):
  path = no_pixels(tmp_path / 'a', 'MR', 'RawDataStorage')
  import pydicom

  record = pydicom.dcmread(path)
  record.SOPClassUID = '1.3.12.2.1107.5.9.1'
  record.save_as(path)
  assert dicom.examine(path).no_picture == 'object without pixels'


def test_a_folder_counts_what_is_no_picture_by_kind(tmp_path):
  for k, name in enumerate(('sick', 'well')):
    for p in range(8):
      folder = tmp_path / 'in' / name
      picture = trees.head(100 * k + p).astype(np.int16)
      scans.write_dicom(folder / f'IM{p}', picture, f'{name}{p}')
      scans.write_dicom(folder / f'dose{p}.dcm', picture, Modality='RTDOSE')
      no_pixels(folder / f'SR{p}', 'SR', 'BasicTextSRStorage')
      no_pixels(folder / f'DICOMDIR{p}', '', 'MediaStorageDirectoryStorage')
  config = trees.config(source=str(tmp_path / 'in'), out=str(tmp_path / 'out'))
  info = prepare.prepare(config.data)
  assert info.images == 16
  assert info.rejected == 0
  assert info.junk == {
    'dicom: RTDOSE': 16,
    'dicom: Basic Text SR Storage': 16,
    'dicom: Media Storage Directory Storage': 16,
  }


def test_a_folder_of_no_pictures_says_what_it_holds(tmp_path):
  scans.write_dicom(tmp_path / 'in' / 'a.dcm', PIXELS, Modality='SEG')
  with pytest.raises(ValueError, match='dicom: SEG'):
    sources.open_folder(str(tmp_path / 'in'))


def test_damage_is_told_at_listing_in_one_line(tmp_path):
  whole = scans.write_dicom(tmp_path / 'a.dcm', PIXELS)
  with open(whole, 'rb') as f:
    data = f.read()
  for name, content, reason in (
    ('empty.dcm', b'', 'empty file'),
    ('text.dcm', b'no picture at all, but words' * 20, 'no DICOM file'),
    ('headless.dcm', data[:300], 'no pixels'),
  ):
    (tmp_path / name).write_bytes(content)
    refused = dicom.examine(str(tmp_path / name)).refused
    assert reason in refused, name
    assert '\n' not in refused
    assert 'force' not in refused


@pytest.mark.parametrize(
  ('fields', 'reason'),
  [
    ({'NumberOfFrames': 9}, 'cut short: 4,608 bytes of pixels'),
    ({'PixelRepresentation': None}, 'PixelRepresentation is missing'),
    ({'BitsAllocated': 12, 'BitsStored': 12, 'HighBit': 11}, 'BitsStored=12'),
    (
      {'SOPClassUID': '1.2.840.10008.5.1.4.1.1.77.1.6', 'NumberOfFrames': 2},
      'NumberOfFrames=2: tiles of one large picture',
    ),
  ],
)
def test_what_a_header_cannot_keep_is_told_at_listing(tmp_path, fields, reason):
  pixels = np.stack([PIXELS, PIXELS])
  if 'SOPClassUID' not in fields:
    pixels = PIXELS
  path = scans.write_dicom(tmp_path / 'a', pixels, **fields)
  assert dicom.examine(path).refused.startswith(reason)
  with pytest.raises(ValueError, match=reason):
    dicom.read(path, ALL)


def test_damage_anywhere_is_a_reason_and_never_a_crash(tmp_path):
  whole = scans.write_dicom(
    tmp_path / 'a.dcm', PIXELS, RescaleSlope=1, RescaleIntercept=0
  )
  with open(whole, 'rb') as f:
    data = f.read()
  rng = np.random.default_rng(0)
  reasons = set()
  path = tmp_path / 'b.dcm'
  for _ in range(150):
    damaged = bytearray(data)
    for at in rng.integers(128, len(data) - 512, 3):
      damaged[at] = rng.integers(256)
    path.write_bytes(damaged)
    reasons.add(dicom.examine(str(path)).refused)
    with contextlib.suppress(ValueError):
      dicom.read(str(path), ALL)
  assert len(reasons) > 3  # the damage was real
  assert not any('\n' in reason for reason in reasons)


def test_damage_beyond_the_share_ends_before_anything_is_read(
  tmp_path, monkeypatch
):
  for i in range(4):
    scans.write_dicom(tmp_path / 'in' / 'sick' / f'{i}.dcm', PIXELS, f'p{i}')
  (tmp_path / 'in' / 'sick' / 'b.dcm').write_bytes(b'')
  monkeypatch.setattr(dicom, 'read', lambda *a: pytest.fail('was read'))
  config = trees.config(
    source=str(tmp_path / 'in'), out=str(tmp_path / 'out'), group_by='file'
  )
  with pytest.raises(ValueError, match=r'1 of 5 files.*\n.*b.dcm: empty'):
    prepare.prepare(config.data)


def test_damage_within_the_share_needs_no_patient(tmp_path):
  for k, name in enumerate(('sick', 'well')):
    for p in range(5):
      picture = trees.head(100 * k + p).astype(np.int16)
      path = tmp_path / 'in' / name / f'{p}.dcm'
      scans.write_dicom(path, picture, f'{name}{p}')
  (tmp_path / 'in' / 'sick' / 'b.dcm').write_bytes(b'')
  config = trees.config(
    source=str(tmp_path / 'in'), out=str(tmp_path / 'out'), max_bad_share=0.1
  )
  info = prepare.prepare(config.data)
  assert (info.images, info.rejected) == (10, 1)


def test_old_files_without_the_mark_are_read(tmp_path):
  path = scans.write_dicom(tmp_path / 'a.dcm', PIXELS)
  with open(path, 'rb') as f:
    data = f.read()
  import pydicom

  record = pydicom.dcmread(path)
  del record.file_meta
  record.preamble = None
  record.save_as(
    tmp_path / 'b.dcm',
    implicit_vr=True,
    little_endian=True,
    enforce_file_format=False,
  )
  assert b'DICM' in data
  assert b'DICM' not in (tmp_path / 'b.dcm').read_bytes()
  [one], [other] = (dicom.read(p, ALL) for p in (path, str(tmp_path / 'b.dcm')))
  np.testing.assert_array_equal(one.pixels, other.pixels)
  assert one.group == other.group


def test_ids_of_patients_are_known_at_listing(tmp_path):
  ids = ['P1', ' P1 ', 'P1\0', 'P 2', 'P  2', 'ANONYMOUS', '', None]
  paths = [
    scans.write_dicom(tmp_path / f'{i}.dcm', PIXELS, PatientID=patient)
    for i, patient in enumerate(ids)
  ]
  found = [dicom.examine(p).patient for p in paths]
  a, b = found[0], found[3]
  assert a
  assert b
  assert a != b
  assert found == [a, a, a, b, b, '', '', '']
  assert [dicom.read(p, ALL)[0].group for p in paths] == found


def test_a_file_without_a_patient_is_told_before_the_work(
  tmp_path, monkeypatch
):
  for i in range(6):
    patient = f'p{i}' if i else None
    path = tmp_path / 'in' / ('well' if i % 2 else 'sick') / f'{i}.dcm'
    scans.write_dicom(path, PIXELS, PatientID=patient)
  monkeypatch.setattr(dicom, 'read', lambda *a: pytest.fail('was read'))
  config = trees.config(source=str(tmp_path / 'in'), out=str(tmp_path / 'out'))
  with pytest.raises(ValueError, match=r'1 of 6 files.*sick/0.dcm'):
    prepare.prepare(config.data)


def test_a_home_that_cannot_keep_the_secret_is_named(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('no folder')
  monkeypatch.setenv('MICDIFFREP_CACHE', str(tmp_path / 'file'))
  path = scans.write_dicom(tmp_path / 'a.dcm', PIXELS)
  with pytest.raises(ValueError, match='MICDIFFREP_CACHE=DIR'):
    dicom.examine(path)


def test_the_secret_is_kept_where_there_are_no_hard_links(
  tmp_path, monkeypatch
):
  def link(*_):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(dicom.os, 'link', link)
  path = scans.write_dicom(tmp_path / 'a.dcm', PIXELS)
  first = dicom.examine(path).patient
  dicom._salt.cache_clear()
  assert dicom.examine(path).patient == first
  assert [f.name for f in (tmp_path / 'cache').iterdir()] == ['salt']


LOSSLESS = {
  'RLELossless': (),
  'DeflatedExplicitVRLittleEndian': (),
  'JPEGLSLossless': ('jpeg_ls',),
  'JPEG2000Lossless': ('openjpeg',),
}


@pytest.mark.parametrize('name', LOSSLESS)
@pytest.mark.parametrize('kind', ['grey', 'signed', 'frames', 'colour'])
def test_what_is_packed_without_loss_reads_alike(tmp_path, name, kind):
  from optional import require
  import pydicom

  require(*LOSSLESS[name])
  syntax = getattr(pydicom.uid, name)
  grey = np.arange(64 * 64, dtype=np.int16).reshape(64, 64)
  rng = np.random.default_rng(0)
  pixels = {
    'grey': grey.astype(np.uint16),
    'signed': grey - 500,
    'frames': np.stack([grey, grey + 9]),
    'colour': rng.integers(0, 256, (64, 64, 3)).astype(np.uint8),
  }[kind]
  plain = scans.write_dicom(tmp_path / 'a', pixels)
  if name.startswith('Deflated'):
    record = pydicom.dcmread(plain)
    record.file_meta.TransferSyntaxUID = syntax
    record.save_as(tmp_path / 'b')
    packed = str(tmp_path / 'b')
  else:
    fields = {}
    if name == 'JPEG2000Lossless' and kind == 'colour':
      fields = {'PhotometricInterpretation': 'YBR_RCT'}
    packed = packed_with(tmp_path / 'b', pixels, syntax, fields)
  assert dicom.examine(packed).refused == ''
  for one, other in zip(
    dicom.read(plain, ALL), dicom.read(packed, ALL), strict=True
  ):
    np.testing.assert_array_equal(one.pixels, other.pixels)


def packed_with(path, pixels, syntax, fields):
  """A file whose pixels pydicom compresses; fields are set before."""
  import pydicom

  plain = scans.write_dicom(path, pixels)
  record = pydicom.dcmread(plain)
  for name, value in fields.items():
    setattr(record, name, value)
  record.SOPInstanceUID = record.file_meta.MediaStorageSOPInstanceUID
  record.compress(syntax, generate_instance_uid=False)
  record.save_as(path)
  return str(path)


@pytest.mark.needs('gdcm')
@pytest.mark.parametrize('name', ['JPEGLossless', 'JPEGLosslessSV1'])
@pytest.mark.parametrize('signed', [False, True])
def test_lossless_jpeg_reads_alike(tmp_path, name, signed):
  import gdcm
  import pydicom

  # gdcm's encoder shifts what 16 signed bits hold; scanners store 12.
  pixels = PIXELS - 500 if signed else PIXELS.astype(np.uint16)
  plain = scans.write_dicom(tmp_path / 'a', pixels)
  reader = gdcm.ImageReader()
  reader.SetFileName(plain)
  assert reader.Read()
  change = gdcm.ImageChangeTransferSyntax()
  kind = {
    'JPEGLossless': gdcm.TransferSyntax.JPEGLosslessProcess14,
    'JPEGLosslessSV1': gdcm.TransferSyntax.JPEGLosslessProcess14_1,
  }[name]
  change.SetTransferSyntax(gdcm.TransferSyntax(kind))
  change.SetInput(reader.GetImage())
  assert change.Change()
  writer = gdcm.ImageWriter()
  writer.SetFileName(str(tmp_path / 'b'))
  writer.SetFile(reader.GetFile())
  writer.SetImage(change.GetOutput())
  assert writer.Write()
  syntax = pydicom.dcmread(tmp_path / 'b').file_meta.TransferSyntaxUID
  assert syntax == getattr(pydicom.uid, name)
  [one], [other] = (dicom.read(str(tmp_path / p), ALL) for p in ('a', 'b'))
  np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize('colour', [False, True])
def test_lossy_jpeg_keeps_grey_levels_and_colours(tmp_path, colour):
  import cv2
  import pydicom

  smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8) + 20
  pixels = np.stack([smooth, smooth // 2, 180 - smooth], -1)
  pixels = pixels if colour else smooth
  record = pydicom.dcmread(scans.write_dicom(tmp_path / 'a', pixels))
  stored = pixels[..., ::-1] if colour else pixels
  _, data = cv2.imencode('.jpg', stored, [cv2.IMWRITE_JPEG_QUALITY, 100])
  record.PixelData = pydicom.encaps.encapsulate([data.tobytes()])
  if colour:
    record.PhotometricInterpretation = 'YBR_FULL_422'
  record['PixelData'].VR = 'OB'
  record.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
  record.save_as(tmp_path / 'b')
  [found] = dicom.read(str(tmp_path / 'b'), ALL)
  np.testing.assert_allclose(found.pixels.astype(int), pixels, atol=6)


def with_syntax(path, uid, **fields):
  """A header that promises pixels of another transfer syntax."""
  import pydicom

  record = pydicom.dcmread(scans.write_dicom(path, PIXELS, **fields))
  record.PixelData = pydicom.encaps.encapsulate([b'\0' * 10])
  record['PixelData'].VR = 'OB'
  record.file_meta.TransferSyntaxUID = uid
  record.save_as(path)
  return str(path)


def test_a_missing_decoder_is_told_at_listing(tmp_path, monkeypatch):
  from pydicom import pixels, uid

  Decoder = collections.namedtuple('Decoder', 'is_available available_plugins')
  monkeypatch.setattr(pixels, 'get_decoder', lambda _: Decoder(False, ()))
  dicom._no_decoder.cache_clear()
  path = with_syntax(tmp_path / 'a', uid.JPEGLosslessSV1)
  refused = dicom.examine(path).refused
  dicom._no_decoder.cache_clear()
  assert 'JPEG Lossless' in refused
  assert "pip install 'micdiffrep_jax[medical]'" in refused


def test_films_and_deep_lossy_jpeg_are_told_at_listing(tmp_path):
  from pydicom import uid

  film = with_syntax(tmp_path / 'a', uid.MPEG4HP41)
  assert 'MPEG' in dicom.examine(film).refused
  deep = with_syntax(
    tmp_path / 'b', uid.JPEGExtended12Bit, BitsStored=12, HighBit=11
  )
  if importlib.util.find_spec('libjpeg') is None:
    assert 'pylibjpeg-libjpeg' in dicom.examine(deep).refused


def test_ten_frames_are_chosen_as_slices_are(tmp_path):
  frames = np.stack([PIXELS + k for k in range(10)])
  path = scans.write_dicom(tmp_path / 'a', frames)
  parts = [p.part for p in dicom.read(path, volumes.Options('central-4'))]
  assert parts == ['0003', '0004', '0005', '0006']

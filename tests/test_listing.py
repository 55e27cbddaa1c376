"""What a folder holds: every file is read, or named with what it is."""

import io
import os

import numpy as np
from PIL import Image
import pytest
import trees

from micdiffrep_jax.data import classes, decode, listing, sources

ENDINGS = {
  'JPEG': ('jpg', 'jpeg', 'jpe', 'jfif'),
  'JPEG2000': ('jp2', 'j2k', 'jpx'),
  'PNG': ('png', 'apng'),
  'BMP': ('bmp', 'dib'),
  'TIFF': ('tif', 'tiff'),
  'WEBP': ('webp',),
  'GIF': ('gif',),
  'PPM': ('ppm', 'pgm', 'pnm'),
  'PCX': ('pcx',),
  'TGA': ('tga',),
  'SGI': ('sgi', 'bw'),
}


def encoded(kind, pixels):
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, kind)
  return out.getvalue()


def put(path, data=b'x'):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


@pytest.mark.parametrize('kind', sorted(ENDINGS))
def test_every_ending_of_a_still_picture_is_read(kind, tmp_path):
  pixels = trees.head(3)
  names = [f'sick/a.{ending}' for ending in ENDINGS[kind]]
  for name in [*names, 'sick/B.' + ENDINGS[kind][0].upper()]:
    put(tmp_path / name, encoded(kind, pixels))
  source = sources.open_folder(str(tmp_path))
  assert len(source.files) == len(names) + 1
  for file in source.files:
    (picture,) = source.read(file, 1)
    grey = decode.to_square(picture.pixels, 48, 1)[..., 0].astype(int)
    assert abs(grey - pixels).mean() < 8  # JPEG's loss


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'TIFF', 'AVIF'])
@pytest.mark.parametrize('name', ['scan', 'scan.0001', 'scan.dat'])
def test_a_picture_without_its_ending_is_read_by_its_content(
  kind, name, tmp_path
):
  if kind not in Image.OPEN:
    pytest.skip(f'Pillow was built without {kind}')
  put(tmp_path / 'sick' / name, encoded(kind, trees.head(3)))
  source = sources.open_folder(str(tmp_path))
  (picture,) = source.read(f'sick/{name}', 1)
  assert picture.pixels.shape[:2] == (48, 48)
  assert 'misnamed' in picture.rules


@pytest.mark.needs('pydicom')
def test_dicom_and_png_that_are_called_otherwise_are_read(tmp_path):
  from pydicom.dataset import Dataset, FileMetaDataset
  from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

  meta = FileMetaDataset()
  meta.MediaStorageSOPClassUID = MRImageStorage
  meta.MediaStorageSOPInstanceUID = '1.2.3'
  meta.TransferSyntaxUID = ExplicitVRLittleEndian
  record = Dataset()
  record.file_meta = meta
  record.SOPClassUID, record.SOPInstanceUID = MRImageStorage, '1.2.3'
  record.Modality, record.PatientID = 'MR', 'P1'
  record.Rows, record.Columns = 4, 4
  record.SamplesPerPixel, record.PhotometricInterpretation = 1, 'MONOCHROME2'
  record.BitsAllocated = record.BitsStored = 16
  record.HighBit, record.PixelRepresentation = 15, 0
  values = np.arange(1, 17, dtype=np.uint16).reshape(4, 4)
  record.PixelData = values.tobytes()
  (tmp_path / 'sick').mkdir()
  record.save_as(tmp_path / 'sick' / 'a.jpg', enforce_file_format=True)
  put(tmp_path / 'sick' / 'b.dcm', encoded('PNG', trees.head(1)))
  source = sources.open_folder(str(tmp_path))
  assert [bool(group) for group in source.groups] == [True, False]
  (one,), (two,) = (source.read(f, 1) for f in source.files)
  assert one.pixels.shape == (4, 4)
  assert np.all(np.diff(one.pixels.ravel().astype(int)) >= 0)  # brighter on
  np.testing.assert_array_equal(two.pixels, trees.head(1))


@pytest.mark.needs('nibabel')
@pytest.mark.parametrize(
  ('name', 'packed'),
  [('v.nii.gz', False), ('v.nii', True), ('v', False), ('v.img.gz', True)],
)
def test_nifti_is_unpacked_by_content_not_by_name(name, packed, tmp_path):
  import gzip

  import nibabel

  values = np.zeros((6, 5, 3), np.float32)
  values[1, 2:4, 1] = 3, 9
  data = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
  put(tmp_path / 'sick' / name, gzip.compress(data) if packed else data)
  source = sources.open_folder(
    str(tmp_path), sources.Request().options._replace(slices='all')
  )
  pictures = source.read(f'sick/{name}', 1)
  assert [p.pixels.max() for p in pictures] == [0, 255, 0]
  assert 'misnamed' in pictures[0].rules


def test_what_is_left_out_is_counted_by_kind_with_its_paths(tmp_path):
  trees.write(tmp_path / 'sick' / 'a.png', trees.head(0))
  put(tmp_path / 'sick' / 'a.heic')
  put(tmp_path / 'sick' / 'b.HEIC')
  put(tmp_path / 'README')
  put(tmp_path / '.hidden')
  (tmp_path / 'none' / 'below').mkdir(parents=True)
  os.mkfifo(tmp_path / 'sick' / 'pipe.png')
  source = sources.open_folder(str(tmp_path))
  assert source.files == ['sick/a.png']
  assert source.left_out == {
    '.heic files': ['sick/a.heic', 'sick/b.HEIC'],
    'files without an ending': ['README'],
    'hidden files': ['.hidden'],
    'empty folders': ['none/below/'],
    'special files': ['sick/pipe.png'],
  }
  assert source.junk['.heic files'] == 2


def test_a_folder_is_listed_once_and_under_its_own_name(tmp_path):
  root = tmp_path / 'in'
  trees.write(root / 'well' / 'a.png', trees.head(0))
  trees.write(tmp_path / 'far' / 'b.png', trees.head(1))
  os.symlink(root / 'well', root / 'a_link')  # before `well` in any order
  os.symlink(root, root / 'well' / 'loop')
  os.symlink(tmp_path, root / 'well' / 'up')  # would list all of the disk
  os.symlink(tmp_path / 'far', root / 'one')
  os.symlink(tmp_path / 'far', root / 'two')
  found = listing.walk(str(root))
  assert found.files == ['one/b.png', 'well/a.png']
  assert sorted(found.left_out[listing.LINKED]) == [
    'a_link/', 'two/', 'well/loop/', 'well/up/'
  ]  # fmt: skip


@pytest.fixture
def unreadable(tmp_path, monkeypatch):
  """Two classes, and a third whose folder may not be listed."""
  for name in ('sick', 'well', 'shut'):
    trees.write(tmp_path / name / 'a.png', trees.head(0))
  there, scandir = str(tmp_path / 'shut'), os.scandir

  def refuse(path):
    if os.fspath(path) == there:
      raise PermissionError(13, 'Permission denied', there)
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  return tmp_path


def test_a_folder_that_cannot_be_listed_is_named_with_the_reason(unreadable):
  found = listing.walk(str(unreadable))
  assert found.files == ['sick/a.png', 'well/a.png']
  assert found.left_out == {'unreadable folders: Permission denied': ['shut/']}


def test_a_class_in_a_folder_that_cannot_be_listed_is_an_error(
  unreadable, tmp_path
):
  with pytest.raises(ValueError, match=r"'shut' .*Permission denied"):
    trees.prepared(
      unreadable, tmp_path.parent, out='o', variant_regex='', group_by='file'
    )


def test_names_that_are_not_utf_8_are_listed_and_stamped(tmp_path):
  name = os.fsencode(tmp_path) + b'/sick/caf\xe9.png'
  (tmp_path / 'sick').mkdir()
  with open(name, 'wb') as f:
    f.write(encoded('PNG', trees.head(1)))
  source = sources.open_folder(str(tmp_path))
  assert source.files == ['sick/caf\\xe9.png']
  assert len(source.stamp) == 64
  (picture,) = source.read(source.files[0], 1)
  np.testing.assert_array_equal(picture.pixels, trees.head(1))


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
  put(tmp_path / 'all.zip')
  with pytest.raises(ValueError, match=r'1 \.zip files, e\.g\. all\.zip'):
    sources.open_folder(str(tmp_path))


@pytest.mark.parametrize(
  ('left_out', 'lost'),
  [
    ({'.heic files': ['third/a.heic', 'third/b.heic']}, "'third' (2 .heic"),
    ({'empty folders': ['third/']}, "'third' (1 empty"),
    ({listing.LINKED: ['third/']}, "'third'"),
    ({'.txt files': ['third/a.txt']}, ''),
    ({'.heic files': ['sick/a.heic']}, ''),
    ({'empty folders': ['sick/p9/']}, ''),
    ({'.heic files': ['a.heic']}, ''),
  ],
)
def test_a_class_that_loses_all_its_files_is_an_error_that_names_it(
  left_out, lost
):
  files = ['sick/1.png', 'well/2.png']
  if not lost:
    classes.check_none_lost(files, ['sick', 'well'], left_out)
    return
  with pytest.raises(ValueError, match='left without a picture') as e:
    classes.check_none_lost(files, ['sick', 'well'], left_out)
  assert lost in str(e.value)


def test_a_lost_class_is_told_before_any_picture_is_read(tree, tmp_path):
  put(tree / 'third' / 'a.heic')
  with pytest.raises(ValueError, match="'third'"):
    trees.prepared(tree, tmp_path)
  ds = trees.prepared(tree, tmp_path, classes=('sick', 'well'))
  assert ds.classes == ('sick', 'well')

import importlib.util

import numpy as np
import pytest
import scans
import trees

from micdiffrep_jax.data import (
  dataset,
  dicom,
  nifti,
  prepare,
  sources,
  splits,
  volumes,
)

OPTIONS = volumes.Options()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('MICDIFFREP_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def ct(tmp_path):
  """Stored 1000 to 1080 with slope 2, intercept -2000: 0 to 160 HU."""
  pixels = np.arange(1000, 1081, dtype=np.int16).reshape(9, 9)
  return scans.write_dicom(
    tmp_path / 'a.dcm',
    pixels,
    Modality='CT',
    RescaleSlope=2,
    RescaleIntercept=-2000,
  )


@pytest.mark.needs('pydicom')
def test_ct_is_rescaled_to_units_and_cut_to_the_window(ct):
  [picture] = dicom.read(ct, OPTIONS)
  units = 2.0 * np.arange(81).reshape(9, 9)
  expected = np.rint(np.clip(units / 80, 0, 1) * 255)  # centre 40, width 80
  np.testing.assert_array_equal(picture.pixels, expected)


@pytest.mark.needs('pydicom')
def test_monochrome1_is_the_negative(tmp_path):
  pixels = np.arange(100, 181, dtype=np.int16).reshape(9, 9)
  one = scans.write_dicom(tmp_path / '1.dcm', pixels)
  two = scans.write_dicom(
    tmp_path / '2.dcm', pixels, PhotometricInterpretation='MONOCHROME1'
  )
  [plain], [negative] = (dicom.read(p, OPTIONS) for p in (one, two))
  np.testing.assert_array_equal(negative.pixels, 255 - plain.pixels)
  assert 'inverted' in negative.rules


@pytest.mark.needs('pydicom')
def test_mr_is_scaled_by_percentiles_of_what_is_not_zero(tmp_path):
  pixels = np.zeros((50, 50), np.int16)
  pixels[:20] = np.arange(1, 1001).reshape(20, 50)
  pixels[0, 0] = 30000  # one hot pixel
  [picture] = dicom.read(scans.write_dicom(tmp_path / 'a', pixels), OPTIONS)
  low, high = np.percentile(pixels[pixels > 0], [0.5, 99.5])
  expected = np.rint(np.clip((pixels - low) / (high - low), 0, 1) * 255)
  np.testing.assert_allclose(picture.pixels, expected, atol=1)
  assert picture.pixels[20:].max() == 0


@pytest.mark.needs('pydicom')
def test_patient_becomes_a_salted_hash(tmp_path):
  pixels = np.arange(81, dtype=np.int16).reshape(9, 9)
  ids = ('Doe^Jane', 'Doe^Jane', 'Roe^Max')
  paths = [
    scans.write_dicom(tmp_path / f'{i}.dcm', pixels, p)
    for i, p in enumerate(ids)
  ]
  a, b, c = (dicom.read(p, OPTIONS)[0].group for p in paths)
  assert a == b != c
  assert 'Doe' not in a
  dicom._salt.cache_clear()
  assert dicom.read(paths[0], OPTIONS)[0].group == a  # kept on disk
  assert (tmp_path / 'cache' / 'salt').stat().st_mode & 0o077 == 0


@pytest.mark.needs('pydicom')
def test_other_user_gets_another_hash(tmp_path, monkeypatch, ct):
  here = dicom.read(ct, OPTIONS)[0].group
  monkeypatch.setenv('MICDIFFREP_CACHE', str(tmp_path / 'other'))
  assert dicom.read(ct, OPTIONS)[0].group != here


@pytest.mark.needs('pydicom')
def test_frames_of_one_file_are_chosen_by_slices(tmp_path):
  frames = np.arange(1, 6 * 81 + 1, dtype=np.int16).reshape(6, 9, 9)
  path = scans.write_dicom(tmp_path / 'a.dcm', frames)
  parts = lambda how: [  # noqa: E731
    p.part for p in dicom.read(path, volumes.Options(how))
  ]
  assert len(parts('all')) == 6
  assert parts('central-2') == ['0002', '0003']


@pytest.mark.needs('pydicom')
def test_damaged_dicom_is_refused(tmp_path, ct):
  with open(ct, 'rb') as f:
    data = f.read()
  (tmp_path / 'b.dcm').write_bytes(data[:-40])
  with pytest.raises(ValueError, match='damaged'):
    dicom.read(str(tmp_path / 'b.dcm'), OPTIONS)


@pytest.fixture
def volume():
  """(6 right, 7 front, 8 up); brighter to the right, front and top."""
  x, y, z = np.meshgrid(*map(np.arange, (6, 7, 8)), indexing='ij')
  return (1 + x + 10 * y + 100 * z).astype(np.float32)


@pytest.mark.needs('nibabel')
def test_nifti_slices_show_the_front_on_top(tmp_path, volume):
  path = scans.write_nifti(tmp_path / 'a.nii.gz', volume)
  pictures = nifti.read(path, volumes.Options('all'))
  assert [p.part for p in pictures] == [f'{k:04d}' for k in range(8)]
  low, high = np.percentile(volume, [0.5, 99.5])
  shown = volume[:, :, 5].T[::-1, ::-1]  # the patient's right at the left
  expected = np.clip((shown - low) / (high - low), 0, 1)
  assert pictures[5].pixels.shape == (7, 6)
  np.testing.assert_allclose(pictures[5].pixels, expected * 255, atol=0.51)


@pytest.mark.needs('nibabel')
def test_nifti_orientation_of_the_file_does_not_matter(tmp_path, volume):
  plain = scans.write_nifti(tmp_path / 'a.nii', volume)
  mirrored = scans.write_nifti(
    tmp_path / 'b.nii', volume[::-1, :, ::-1], affine=(-1, 1, -1, 1)
  )
  a, b = (nifti.read(p, OPTIONS) for p in (plain, mirrored))
  for one, other in zip(a, b, strict=True):
    np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.needs('nibabel')
def test_foreground_leaves_out_slices_with_little_tissue(tmp_path):
  volume = np.zeros((20, 20, 9), np.float32)
  for k, radius in enumerate((0, 1, 4, 8, 9, 8, 7, 2, 0)):
    volume[10 - radius : 10 + radius, 10 - radius : 10 + radius, k] = 1 + k
  path = scans.write_nifti(tmp_path / 'a.nii', volume)
  kept = [p.part for p in nifti.read(path, OPTIONS)]
  assert kept == ['0003', '0004', '0005', '0006']  # half of the largest


@pytest.mark.needs('nibabel')
def test_several_volumes_in_one_file_are_refused(tmp_path, volume):
  path = scans.write_nifti(tmp_path / 'a.nii', np.stack([volume, volume], -1))
  with pytest.raises(ValueError, match='split it into 3-D'):
    nifti.read(path, OPTIONS)


@pytest.mark.parametrize('slices', ['some', 'central-', 'central-0'])
def test_unknown_choice_of_slices_is_an_error(slices):
  with pytest.raises(ValueError, match='foreground, all or central-N'):
    volumes.check_options(volumes.Options(slices))


def test_missing_reader_is_an_error_that_says_what_to_install(
  tmp_path, monkeypatch
):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'a.nii').write_bytes(b'a volume')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match='pip install nibabel'):
    sources.open_folder(str(tmp_path / 'in'))


@pytest.mark.needs('pydicom')
def test_patients_of_dicom_folders_stay_together(tmp_path):
  for k, name in enumerate(('sick', 'well')):
    for p in range(8):
      for i in range(2):
        pixels = trees.head(100 * k + 10 * p + i).astype(np.int16)
        # the second file has no ending, as archives write them
        file = f'{p}_{i}.dcm' if i else f'{p}_{i}'
        scans.write_dicom(tmp_path / 'in' / name / file, pixels, f'{name}{p}')
  config = trees.config(source=str(tmp_path / 'in'), out=str(tmp_path / 'out'))
  prepare.prepare(config.data)
  ds = dataset.open_dataset(str(tmp_path / 'out'))
  assert len(ds.images) == 32
  patients = ds.manifest['patient_id']
  assert len(set(patients)) == 16
  for patient in set(patients):
    assert len(set(ds.manifest['patient'][patients == patient])) == 1
  assert 'sick0' not in ''.join(patients)
  assert ds.info.patients == {
    'patients': 16,
    'images': 32,
    'unknown': 0,
    'groups': 16,
    'named_by': {'header': 32},
  }


@pytest.mark.needs('pydicom')
def test_the_split_does_not_hang_on_a_machines_secret(tmp_path, monkeypatch):
  for k, name in enumerate(('sick', 'well')):
    for p in range(6):
      pixels = trees.head(100 * k + p).astype(np.int16)
      scans.write_dicom(
        tmp_path / 'in' / name / f'{p}.dcm', pixels, f'{name}{p}'
      )
  made = []
  for salt in (b'one', b'another'):
    monkeypatch.setattr(dicom, '_salt', lambda root, salt=salt: salt)
    out = tmp_path / salt.decode()
    config = trees.config(source=str(tmp_path / 'in'), out=str(out))
    prepare.prepare(config.data)
    made.append(dataset.open_dataset(str(out)).manifest)
  assert set(made[0]['patient_id']).isdisjoint(made[1]['patient_id'])
  for name in splits.NAMES:
    np.testing.assert_array_equal(made[0][name], made[1][name])


@pytest.mark.needs('nibabel')
def test_slices_of_a_volume_stay_together(tmp_path):
  rng = np.random.default_rng(0)
  for name in ('sick', 'well'):
    for p in range(5):
      volume = rng.uniform(50, 255, (16, 16, 4)).astype(np.float32)
      scans.write_nifti(tmp_path / 'in' / name / f'{p}.nii.gz', volume)
  made = {'source': str(tmp_path / 'in'), 'out': str(tmp_path / 'out')}
  with pytest.raises(ValueError, match='Nothing says which pictures'):
    prepare.prepare(trees.config(**made).data)
  prepare.prepare(trees.config(**made, group_by='file').data)
  ds = dataset.open_dataset(str(tmp_path / 'out'))
  assert len(ds.images) == 40
  assert len(set(ds.manifest['source'])) == 40
  assert len(set(ds.manifest['unit'])) == 10
  for unit in set(ds.manifest['unit']):
    rows = ds.manifest['unit'] == unit
    assert len(set(ds.manifest['grouped'][rows])) == 1

"""One orientation and square pixels, whatever file a body comes in."""

import itertools

import numpy as np
import pytest
import scans

from micdiffrep_jax.data import dicom, geometry, nifti, volumes

ALL = volumes.Options('all')
# Values rise to the left (x), the back (y) and the head (z), all differ.
BODY = (
  100
  + np.arange(5)[:, None, None]
  + 10 * np.arange(6)[:, None]
  + 100 * np.arange(7)
).astype(np.int16)
X, Y, Z = np.eye(3, dtype=int)
SIGNS = (1, -1)


def as_shown(body):
  """{plane: slices (k, h, w)}: right at the left, front or head on top."""
  return {
    'axial': body.transpose(2, 1, 0),
    'coronal': body.transpose(1, 2, 0)[:, ::-1],
    'sagittal': body.transpose(0, 2, 1)[:, ::-1],
  }


def levels(values):
  low, high = np.percentile(values, [0.5, 99.5])
  return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


def stored(axes, signs):
  """Slices of BODY whose rows run along one axis and columns down another.

  axes: of the row's direction, of the column's. Returns the slices and the
  two directions.
  """
  row, column = axes
  [across] = {0, 1, 2} - {row, column}
  slices = BODY.transpose(across, column, row)
  slices = slices[:, :: signs[1], :: signs[0]]
  return slices, [*(signs[0] * np.eye(3)[row]), *(signs[1] * np.eye(3)[column])]


PLANES = {2: 'axial', 1: 'coronal', 0: 'sagittal'}


@pytest.mark.needs('pydicom')
@pytest.mark.parametrize('axes', itertools.permutations(range(3), 2))
@pytest.mark.parametrize('signs', itertools.product(SIGNS, SIGNS))
@pytest.mark.parametrize('where', ['file', 'shared'])
def test_dicom_is_turned_upright(tmp_path, axes, signs, where):
  slices, directions = stored(axes, signs)
  if where == 'shared':
    plane = scans.item(ImageOrientationPatient=list(directions))
    group = scans.item(PlaneOrientationSequence=plane)
    fields = {'SharedFunctionalGroupsSequence': group}
  else:
    fields = {'ImageOrientationPatient': list(directions)}
  path = scans.write_dicom(tmp_path / 'a', slices, **fields)
  [across] = {0, 1, 2} - set(axes)
  expected = levels(as_shown(BODY)[PLANES[across]])
  shown = [p.pixels for p in dicom.read(path, ALL)]
  np.testing.assert_array_equal(shown, expected)


@pytest.mark.needs('pydicom')
def test_dicom_without_directions_stays_as_stored(tmp_path):
  path = scans.write_dicom(tmp_path / 'a', BODY)
  shown = [p.pixels for p in dicom.read(path, ALL)]
  np.testing.assert_array_equal(shown, levels(BODY))


@pytest.mark.needs('pydicom')
def test_frames_may_lie_in_different_planes(tmp_path):
  cube = BODY[:5, :5, :5]
  across_z, across_y = cube[:, :, 2].T, cube[:, 3, :].T  # rows run left
  directions = [[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1]]  # the latter: head down
  groups = [
    scans.item(PlaneOrientationSequence=scans.item(ImageOrientationPatient=d))[
      0
    ]
    for d in directions
  ]
  frames = np.stack([across_z, across_y])
  path = scans.write_dicom(
    tmp_path / 'a', frames, PerFrameFunctionalGroupsSequence=groups
  )
  axial, coronal = (p.pixels for p in dicom.read(path, ALL))
  expected = levels(frames)[0], levels(frames)[1][::-1]
  np.testing.assert_allclose([axial, coronal], expected, atol=1)


def affine_of(permutation, signs, sizes):
  """A (4, 4) affine: voxel axis i runs along RAS axis permutation[i]."""
  affine = np.eye(4)
  affine[:3, :3] = 0
  for i, (axis, sign) in enumerate(zip(permutation, signs, strict=True)):
    affine[axis, i] = sign * sizes[axis]
  return affine


@pytest.mark.needs('nibabel')
@pytest.mark.parametrize('permutation', itertools.permutations(range(3)))
@pytest.mark.parametrize('signs', itertools.product(SIGNS, SIGNS, SIGNS))
@pytest.mark.parametrize('thick', [None, 2, 1, 0])
def test_nifti_of_any_affine_is_shown_as_dicom_is(
  tmp_path, permutation, signs, thick
):
  ras = BODY[::-1, ::-1]  # right, front, up
  values = ras.transpose(permutation)[
    tuple(slice(None, None, s) for s in signs)
  ]
  sizes = [1.0 if axis != thick else 4.0 for axis in range(3)]
  path = scans.write_nifti(
    tmp_path / 'a.nii', values, affine_of(permutation, signs, sizes)
  )
  plane = PLANES[2 if thick is None else thick]
  expected = levels(as_shown(BODY)[plane])
  if plane != 'axial':  # counted from the right and from the back
    expected = expected[::-1]
  pictures = nifti.read(path, ALL)
  np.testing.assert_array_equal([p.pixels for p in pictures], expected)
  cut = [r for r in pictures[0].rules if r.startswith('cut_')]
  assert cut == ([] if plane == 'axial' else [f'cut_{plane}'])


@pytest.mark.needs('nibabel')
@pytest.mark.parametrize('flat', [0, 1, 2])
def test_a_single_slice_is_shown_however_it_lies(tmp_path, flat):
  body = BODY.take([3], flat)
  values = body[::-1, ::-1]
  path = scans.write_nifti(tmp_path / 'a.nii', np.ascontiguousarray(values))
  [picture] = nifti.read(path, ALL)
  expected = levels(as_shown(body)[PLANES[flat]])[0]
  np.testing.assert_array_equal(picture.pixels, expected)


def ellipse(h, w):
  y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
  return np.where(x * x + y * y < 0.6, 500, 100).astype(np.int16)


def is_round(pixels):
  bright = pixels > 127
  height, width = bright.any(1).sum(), bright.any(0).sum()
  return abs(height - width) <= 2


@pytest.mark.needs('pydicom')
@pytest.mark.parametrize(
  'name',
  [
    'PixelSpacing',
    'ImagerPixelSpacing',
    'NominalScannedPixelSpacing',
    'PixelAspectRatio',
    'shared',
  ],
)
def test_a_circle_in_dicom_stays_a_circle(tmp_path, name):
  fields = {name: [1, 2]}
  if name == 'shared':
    measures = scans.item(PixelSpacing=[1, 2])
    group = scans.item(PixelMeasuresSequence=measures)
    fields = {'SharedFunctionalGroupsSequence': group}
  path = scans.write_dicom(tmp_path / 'a', ellipse(96, 48), **fields)
  [picture] = dicom.read(path, ALL)
  assert picture.pixels.shape == (96, 96)
  assert is_round(picture.pixels)
  assert 'resampled_spacing' in picture.rules
  assert not is_round(ellipse(96, 48))


@pytest.mark.needs('pydicom')
def test_spacing_turns_with_the_slice(tmp_path):
  path = scans.write_dicom(
    tmp_path / 'a',
    ellipse(96, 48),
    PixelSpacing=[1, 2],
    ImageOrientationPatient=[0, 1, 0, 1, 0, 0],  # rows run to the back
  )
  assert is_round(dicom.read(path, ALL)[0].pixels)


@pytest.mark.needs('nibabel')
def test_a_circle_in_nifti_stays_a_circle(tmp_path):
  disc = np.repeat(ellipse(40, 80)[..., None], 3, 2)  # 40 right, 80 front
  path = scans.write_nifti(tmp_path / 'a.nii', disc, (2, 1, 2, 1))
  for picture in nifti.read(path, ALL):
    assert picture.pixels.shape == (80, 80)
    assert is_round(picture.pixels)


@pytest.mark.needs('pydicom')
@pytest.mark.parametrize('spacing', [[0, 2], [0.5, 0.5], [0.5, 0.501]])
def test_spacing_that_is_square_or_none_changes_nothing(tmp_path, spacing):
  path = scans.write_dicom(
    tmp_path / 'a', ellipse(96, 48), PixelSpacing=spacing
  )
  [picture] = dicom.read(path, ALL)
  assert picture.pixels.shape == (96, 48)
  assert 'resampled_spacing' not in picture.rules


@pytest.mark.needs('pydicom')
def test_spacing_that_cannot_be_true_is_refused(tmp_path):
  path = scans.write_dicom(tmp_path / 'a', BODY[0], PixelSpacing=[1, 50])
  with pytest.raises(ValueError, match='spacings 1 and 50'):
    dicom.read(path, ALL)


@pytest.mark.parametrize(
  'cosines', [(1, 0, 0, 1, 0, 0), (1, 0, 0), (0, 0, 0, 0, 0, 0)]
)
def test_directions_that_are_none_are_refused(cosines):
  with pytest.raises(ValueError, match='ImageOrientationPatient'):
    geometry.of_cosines(cosines, None)


def test_an_oblique_slice_takes_the_nearest_axes():
  turn = np.deg2rad(30)
  row = (np.cos(turn), np.sin(turn), 0)
  column = (-np.sin(turn), np.cos(turn), 0)
  assert geometry.of_cosines((*row, *column), None) == geometry.Geometry()


@pytest.mark.needs('pydicom', 'nibabel')
def test_one_ct_gives_the_same_pictures_from_both_kinds_of_file(tmp_path):
  rng = np.random.default_rng(0)
  body = np.full((20, 24, 6), -1000, np.int16)
  body[4:15, 5:22, 1:] = rng.integers(0, 80, (11, 17, 5))
  slices = body.transpose(2, 1, 0)  # rows run left, columns to the back
  ct = scans.write_dicom(
    tmp_path / 'a.dcm',
    slices + np.int16(1024),
    Modality='CT',
    RescaleSlope=1,
    RescaleIntercept=-1024,
    ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
    PixelSpacing=[1, 2],
  )
  # nibabel's axes run to the left and back here, as most converters write.
  affine = np.diag([-2.0, -1, 3, 1])
  scan = scans.write_nifti(tmp_path / 'a.nii.gz', body, affine)
  one = [p.pixels for p in dicom.read(ct, ALL)]
  other = [p.pixels for p in nifti.read(scan, ALL)]
  np.testing.assert_array_equal(one, other)
  assert one[0].shape == (24, 40)

"""Values of NIfTI: background, units, and headers that promise too much."""

import gzip

import numpy as np
import pytest
import scans
import trees

from micdiffrep_jax.data import nifti, prepare, volumes
from micdiffrep_jax.run import log

pytestmark = pytest.mark.needs('nibabel')
ALL = volumes.Options('all')


@pytest.fixture
def ball():
  """(24, 26, 8) float32: a textured ball in zeros."""
  rng = np.random.default_rng(0)
  g = np.meshgrid(*[np.linspace(-1, 1, n) for n in (24, 26, 8)], indexing='ij')
  inside = sum(x * x for x in g) < 0.9
  return np.where(inside, rng.uniform(1, 80, inside.shape), 0).astype('f4')


def shown(path, options=ALL):
  return np.stack([p.pixels for p in nifti.read(path, options)])


def test_nan_is_background(tmp_path, ball):
  zero = scans.write_nifti(tmp_path / 'a.nii', ball)
  nan = np.where(ball == 0, np.nan, ball).astype(np.float32)
  path = scans.write_nifti(tmp_path / 'b.nii', nan)
  np.testing.assert_array_equal(shown(path), shown(zero))
  assert 'nan_background' in nifti.read(path, ALL)[0].rules
  assert 'nan_background' not in nifti.read(zero, ALL)[0].rules


@pytest.mark.parametrize(
  ('value', 'reason'), [(np.nan, 'all are nan'), (np.inf, 'infinite')]
)
def test_nothing_but_nan_and_infinite_values_are_refused(
  tmp_path, ball, value, reason
):
  if np.isinf(value):
    ball[0, 0, 0] = value
  else:
    ball[:] = value
  path = scans.write_nifti(tmp_path / 'a.nii', ball)
  with pytest.raises(ValueError, match=reason):
    nifti.read(path, ALL)


@pytest.fixture
def hounsfield(ball):
  """Brain in air with its noise, a skull of 1500."""
  rng = np.random.default_rng(1)
  air = rng.normal(-1000, 8, ball.shape)
  units = np.where(ball > 0, ball, air).round().astype(np.int16)
  units[10:12] = 1500
  return units


def test_a_ct_in_nifti_is_cut_to_the_window(tmp_path, hounsfield):
  path = scans.write_nifti(tmp_path / 'a.nii', hounsfield)
  seen = hounsfield.transpose(2, 1, 0)[:, ::-1, ::-1]
  for centre, width in ((40, 80), (300, 2000)):
    expected = np.clip((seen - centre + width / 2) / width, 0, 1) * 255
    found = shown(path, volumes.Options('all', (centre, width)))
    np.testing.assert_allclose(found, expected, atol=0.51)
  assert 'ct_window' in nifti.read(path, ALL)[0].rules
  free = volumes.Options('all', intensity='percentiles')
  assert 'percentiles' in nifti.read(path, free)[0].rules


def test_a_window_can_be_forced_on_nifti(tmp_path, ball):
  path = scans.write_nifti(tmp_path / 'a.nii', ball)
  assert 'percentiles' in nifti.read(path, ALL)[0].rules
  seen = ball.transpose(2, 1, 0)[:, ::-1, ::-1]
  found = shown(path, volumes.Options('all', intensity='ct'))
  np.testing.assert_allclose(found, np.clip(seen / 80, 0, 1) * 255, atol=0.51)


def test_low_values_alone_make_no_ct(ball):
  rng = np.random.default_rng(0)
  phase = rng.uniform(-4096, 4095, (20, 20, 20))
  assert not volumes.looks_like_hounsfield(phase)
  spot = ball.copy()
  spot[0, 0, 0] = -1000
  assert not volumes.looks_like_hounsfield(spot)


def test_padding_beyond_air_is_still_a_ct(hounsfield):
  hounsfield[0] = -3024  # outside the circle that was scanned
  assert volumes.looks_like_hounsfield(hounsfield)


@pytest.mark.parametrize(
  ('shape', 'reason'),
  [((6, 7, 8, 3), '3 volumes in one file'), ((6, 0, 8), 'empty')],
)
def test_headers_that_promise_no_volume_are_refused_at_listing(
  tmp_path, shape, reason
):
  path = scans.write_nifti(tmp_path / 'a.nii.gz', np.zeros(shape, np.int16))
  assert reason in nifti.refusal(path)
  with pytest.raises(ValueError, match=reason):
    nifti.read(path, ALL)


def test_several_volumes_end_a_preparation_before_the_work(
  tmp_path, monkeypatch
):
  series = np.zeros((6, 7, 8, 3), np.int16)
  scans.write_nifti(tmp_path / 'in' / 'sick' / 'sub-1_bold.nii.gz', series)
  monkeypatch.setattr(nifti, 'read', lambda *a: pytest.fail('was read'))
  config = trees.config(source=str(tmp_path / 'in'), out=str(tmp_path / 'out'))
  with pytest.raises(ValueError, match='split it into 3-D'):
    prepare.prepare(config.data)


@pytest.mark.parametrize('shape', [(6, 7), (6, 7, 1), (6, 7, 1, 1)])
def test_a_flat_file_is_one_picture(tmp_path, shape):
  values = np.arange(1, 43, dtype=np.int16).reshape(shape)
  path = scans.write_nifti(tmp_path / 'a.nii', values)
  [picture] = nifti.read(path, ALL)
  assert picture.part == ''
  assert picture.pixels.shape == (7, 6)


def test_colours_stay_as_stored(tmp_path):
  kind = np.dtype([('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
  rng = np.random.default_rng(0)
  colours = rng.integers(10, 90, (6, 7, 4, 3)).astype(np.uint8)
  path = scans.write_nifti(
    tmp_path / 'a.nii', colours.view(kind).reshape(6, 7, 4)
  )
  expected = colours.transpose(2, 1, 0, 3)[:, ::-1, ::-1]
  np.testing.assert_array_equal(shown(path), expected)


def test_complex_values_are_refused(tmp_path):
  path = scans.write_nifti(tmp_path / 'a.nii', np.ones((4, 4, 4), 'c8'))
  assert 'complex' in nifti.refusal(path)


def test_the_ending_may_be_wrong_about_gzip(tmp_path, ball):
  path = scans.write_nifti(tmp_path / 'a.nii', ball)
  data = (tmp_path / 'a.nii').read_bytes()
  (tmp_path / 'b.nii.gz').write_bytes(data)
  (tmp_path / 'c.nii').write_bytes(gzip.compress(data))
  for name in ('b.nii.gz', 'c.nii'):
    assert nifti.refusal(str(tmp_path / name)) == ''
    np.testing.assert_array_equal(shown(str(tmp_path / name)), shown(path))
  (tmp_path / 'd.nii.gz').write_bytes(gzip.compress(data)[:600])
  with pytest.raises(ValueError, match='cut short'):
    nifti.read(str(tmp_path / 'd.nii.gz'), ALL)


@pytest.mark.parametrize('packed', [False, True])
def test_a_download_that_broke_off_is_told_at_listing(tmp_path, ball, packed):
  scans.write_nifti(tmp_path / 'a.nii', ball)
  data = (tmp_path / 'a.nii').read_bytes()
  assert len(data) == 352 + 4 * 24 * 26 * 8
  pack = gzip.compress if packed else bytes
  path = tmp_path / ('b.nii.gz' if packed else 'b.nii')
  path.write_bytes(pack(data)[:-100])
  reason = nifti.refusal(str(path))
  assert 'cut short' in reason
  assert '20,320 bytes' in reason
  if packed:  # of two parts, as bgzip writes them: the last says its own size
    path.write_bytes(pack(data[:5000]) + pack(data[5000:]))
    assert nifti.refusal(str(path)) == ''


@pytest.mark.parametrize(
  ('at', 'value', 'message'),
  [
    (108, np.float32(0), 'vox_offset=0'),  # values would begin in the header
    (280, np.float32(np.nan), 'no directions'),
    (280, np.zeros(12, np.float32), 'no directions'),
  ],
)
def test_headers_that_lead_astray_are_told_at_listing(
  tmp_path, ball, at, value, message
):
  path = tmp_path / 'a.nii'
  scans.write_nifti(path, ball)
  data = bytearray(path.read_bytes())
  data[at : at + value.nbytes] = value.tobytes()
  path.write_bytes(data)
  assert message in nifti.refusal(str(path))


@pytest.mark.parametrize('level', [1, 7.5, -3])
def test_two_levels_stay_two(tmp_path, ball, level):
  path = scans.write_nifti(tmp_path / 'a.nii', np.where(ball > 0, level, 0.0))
  expected = (ball > 0) == (level > 0)
  expected = 255 * expected.transpose(2, 1, 0)[:, ::-1, ::-1]
  np.testing.assert_array_equal(shown(path), expected)


def test_a_guess_of_left_and_right_is_said(tmp_path, ball, report):
  import nibabel

  image = nibabel.Nifti1Image(ball, None)
  image.header.set_sform(None, 0)
  image.header.set_qform(None, 0)
  nibabel.save(image, tmp_path / 'a.nii')
  rules = nifti.read(str(tmp_path / 'a.nii'), ALL)[0].rules
  assert 'no_orientation' in rules
  [(level, line)] = report(volumes.Options(), {'no_orientation': 3})
  assert level == 'warning'
  assert line.startswith('3 NIfTI files name no orientation')


def test_pages_that_nobody_reads_are_said(report):
  [(level, line)] = report(volumes.Options(), {'first_frame': 5})
  assert level == 'warning'
  assert line.startswith('5 files hold several pictures')


@pytest.fixture
def report(monkeypatch):
  """Calls volumes.report; returns (level, text) of each line."""
  lines = []
  for level in ('info', 'warning'):
    say = lambda text, *a, level=level: lines.append((level, text % a))  # noqa: E731
    monkeypatch.setattr(log.get_logger(), level, say)

  def call(options, used):
    lines.clear()
    volumes.report(options, used)
    return list(lines)

  return call


def test_an_option_says_on_how_many_files_it_worked(report):
  used = {'slice_of_volume': 3, 'ct_window': 2}
  [(_, slices), (_, window)] = report(volumes.Options(), used)
  assert "slices='foreground' used on 3 files" in slices
  assert 'ct_window=(40.0, 80.0) used on 2 files' in window


@pytest.mark.parametrize(
  ('options', 'field'),
  [
    (volumes.Options('all'), 'slices'),
    (volumes.Options(ct_window=(300.0, 2000.0)), 'ct_window'),
    (volumes.Options(intensity='ct'), 'intensity'),
    (volumes.Options(intensity='percentiles'), 'intensity'),
  ],
)
def test_an_option_that_was_changed_for_nothing_is_a_warning(
  report, options, field
):
  [(level, said)] = report(options, {})
  assert level == 'warning'
  assert f'config.data.{field}=' in said
  assert 'used on 0 files' in said
  assert not report(volumes.Options(), {})


def test_volumes_cut_in_different_planes_are_a_warning(report):
  used = {'slice_of_volume': 9, 'nifti': 9, 'cut_sagittal': 4}
  assert '4 sagittal' in report(volumes.Options(), used)[-1][1]
  everywhere = {**used, 'cut_sagittal': 9}
  assert len(report(volumes.Options(), everywhere)) == 1


def test_an_intensity_that_is_none_is_an_error():
  with pytest.raises(ValueError, match='auto'):
    volumes.check_options(volumes.Options(intensity='window'))

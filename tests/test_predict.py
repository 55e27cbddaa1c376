import csv
import dataclasses
import json
import os

import cv2
from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest
from scans import write_dicom
import tiny_bundle
import trees

from micdiffrep_jax.bundle import classifier, inputs, occlusion, predict
from micdiffrep_jax.data import dataset, prepare, store


@pytest.fixture
def folder(tmp_path):
  """Seven pictures, two broken files between them, and junk."""
  root = tmp_path / 'in'
  (root / 'deep').mkdir(parents=True)
  for i, image in enumerate(tiny_bundle.images(6)):
    Image.fromarray(image[..., 0]).save(root / f'p{i}.png')
  wide = cv2.resize(tiny_bundle.images(1, 9)[0], (40, 20))
  Image.fromarray(wide).save(root / 'deep' / 'wide.png')
  (root / 'p2b.png').write_bytes((root / 'p2.png').read_bytes()[:60])
  (root / 'p10.jpg').write_bytes(b'')
  (root / '.DS_Store').write_bytes(b'x')
  (root / 'notes.txt').write_text('x')
  return root


@pytest.fixture
def config(tmp_path, folder):
  path = str(tmp_path / 'bundle.npz')
  classifier.write(path, tiny_bundle.model(), 'float32')
  return ConfigDict(
    {
      'task': 'predict',
      'seed': 0,
      'bundle': path,
      'source': str(folder),
      'workers': 2,
      'head': 'final',
      'low_confidence': 0.0,
      'heatmaps': False,
      'occlusion': {'window': 0.5, 'stride': 0.5, 'size_px': 32},
    }
  )


def predicted(config, workdir, status=None):
  if status is None:
    predict.run(config, str(workdir))
  else:
    with pytest.raises(SystemExit) as stopped:
      predict.run(config, str(workdir))
    assert stopped.value.code == status
  with open(workdir / 'predictions.csv', newline='') as f:
    return list(csv.DictReader(f))


def test_each_input_has_its_row_in_order_failures_included(config, tmp_path):
  rows = predicted(config, tmp_path / 'out', status=3)
  names = ['deep/wide.png', 'p0.png', 'p1.png', 'p2.png', 'p2b.png', 'p3.png']
  names += ['p4.png', 'p5.png', 'p10.jpg']
  assert [r['file'] for r in rows] == names
  failed = {r['file']: r['notes'] for r in rows if r['status'] == 'failed'}
  assert set(failed) == {'p2b.png', 'p10.jpg'}
  assert failed['p10.jpg'] == 'empty file'
  assert 'damaged' in failed['p2b.png']
  for r in rows:
    if r['status'] == 'ok':
      p = [float(r[f'p_{c}']) for c in tiny_bundle.CLASSES]
      assert abs(sum(p) - 1) < 2e-4  # four digits each
      assert r['class'] == tiny_bundle.CLASSES[int(np.argmax(p))]
      assert (max(p) < 0.4) == (r['low_confidence'] == '1')


def test_order_of_files_does_not_matter(config, tmp_path, folder):
  files = [str(folder / f'p{i}.png') for i in range(6)]
  tables = []
  for k, order in enumerate((files, files[::-1])):
    (tmp_path / 'list.txt').write_text('\n'.join(order))
    config.source = f'@{tmp_path / "list.txt"}'
    rows = predicted(config, tmp_path / f'out{k}')
    assert [r['file'] for r in rows] == order
    tables.append(rows)
  for a, b in zip(tables[0], tables[1][::-1]):
    for name in tiny_bundle.CLASSES:  # one unit of the last digit
      assert abs(float(a[f'p_{name}']) - float(b[f'p_{name}'])) < 1.5e-4


def test_a_picture_is_prepared_as_in_training(folder):
  """Oracle: padding and area averages written out."""
  meta = tiny_bundle.model().meta
  with inputs.open_inputs(str(folder / 'deep'), meta, '--flag') as source:
    (chunk,) = inputs.read(source, meta)
  with Image.open(folder / 'deep' / 'wide.png') as f:
    pixels = np.asarray(f).astype(float)
  square = np.zeros((40, 40))
  square[10:30] = pixels
  fine = np.repeat(np.repeat(square, 2, 0), 2, 1)  # 80 px: 5 per output pixel
  want = fine.reshape(16, 5, 16, 5).mean((1, 3))
  assert np.abs(chunk[0].image[..., 0] - want).max() <= 0.51  # rounding
  assert 'padded' in chunk[0].rules


def test_a_missing_file_is_a_row_and_a_missing_folder_an_error(
  config, tmp_path, folder
):
  (tmp_path / 'list.txt').write_text(f'{folder}/p0.png\n{folder}/absent.png\n')
  config.source = f'@{tmp_path / "list.txt"}'
  rows = predicted(config, tmp_path / 'out', status=3)
  assert rows[1]['status'] == 'failed'
  assert 'No such file' in rows[1]['notes']
  config.source = str(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='does not exist'):
    predict.run(config, str(tmp_path / 'out'))


def test_a_blank_picture_is_never_confident(config, tmp_path):
  Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / 'blank.png')
  config.source = str(tmp_path / 'blank.png')
  config.low_confidence = 1e-6
  rows = predicted(config, tmp_path / 'out')
  assert rows[0]['low_confidence'] == '1'
  assert 'constant' in rows[0]['notes']


def test_heatmaps_are_drawn_on_request(config, tmp_path, folder):
  config.source = str(folder / 'p0.png')
  config.heatmaps = True
  (row,) = predicted(config, tmp_path / 'out')
  path = tmp_path / 'out' / row['heatmap']
  with Image.open(path) as f:
    assert f.size == (2 * 32 + 96, 32 + 22)
  assert os.listdir(path.parent) == [path.name]


def test_occlusion_finds_what_the_class_hangs_on(monkeypatch):
  """The class of this model is the brightness of one spot, nothing else."""

  def spot(model, images, seeds):
    assert len(set(seeds.tolist())) == 1  # the noise of the whole image
    p = 0.1 + 0.8 * images[:, 2:6, 9:13].mean((1, 2, 3)) / 255
    return np.stack([1 - p, p], 1)

  monkeypatch.setattr(occlusion, 'bundle_predict', spot)
  image = np.zeros((16, 16, 1), np.uint8)
  image[1:12, 4:15] = 120
  image[2:6, 9:13] = 255
  drop = occlusion.drop_map(tiny_bundle.model(), image, 1, 0.25, 0.125)
  assert np.unravel_index(drop.argmax(), drop.shape) in [
    (i, j) for i in range(2, 6) for j in range(9, 13)
  ]
  np.testing.assert_array_equal(drop[13:], 0)
  for window in (0, 1.5):
    with pytest.raises(ValueError, match='window'):
      occlusion.cover(image, window, 0.5)


def test_probabilities_in_the_table_are_those_of_the_bundle(
  config, tmp_path, folder
):
  config.source = str(folder / 'p3.png')
  rows = predicted(config, tmp_path / 'out')
  want = classifier.bundle_predict(
    tiny_bundle.model(), tiny_bundle.images(6)[3:4]
  )[0]
  got = [float(rows[0][f'p_{c}']) for c in tiny_bundle.CLASSES]
  np.testing.assert_allclose(got, want, atol=6e-5)


def write_nifti(path, values):
  """values (right, front, up)."""
  import nibabel

  path.parent.mkdir(parents=True, exist_ok=True)
  nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


@pytest.fixture
def scans(tmp_path, monkeypatch):
  """What a radiologist has: slices of two patients in DICOM, a volume of a
  third in NIfTI, a picture, and files that are none of these.
  """
  monkeypatch.setenv('MICDIFFREP_CACHE', str(tmp_path / 'cache'))
  root = tmp_path / 'scans'
  for i, patient in enumerate(('A', 'A', 'B')):
    pixels = tiny_bundle.images(1, 20 + i)[0, ..., 0].astype(np.int16) * 3
    write_dicom(root / 'series' / f'IM{i}', pixels, patient)
  volume = np.stack(
    [x[..., 0] for x in tiny_bundle.images(5, 30)], axis=-1
  ).astype(np.float32)
  write_nifti(root / 'sub-07' / 'sub-07_T1w.nii.gz', volume + 1)
  Image.fromarray(tiny_bundle.images(1, 40)[0, ..., 0]).save(root / 'p.png')
  (root / 'report.txt').write_text('none')
  (root / '.DS_Store').write_bytes(b'x')
  return root


@pytest.mark.needs('pydicom', 'nibabel')
def test_scans_are_read_slice_by_slice_and_pooled_by_patient(
  config, tmp_path, scans
):
  """Oracle: 3 DICOM files, 5 slices, 1 picture; A has 2 slices, B 1, 07 5."""
  config.source = str(scans)
  rows = predicted(config, tmp_path / 'out')
  assert len(rows) == 3 + 5 + 1
  assert {r['status'] for r in rows} == {'ok'}
  volume = [r for r in rows if r['file'].endswith('.nii.gz')]
  assert [r['slice'] for r in volume] == [f'{k:04d}' for k in range(5)]
  with open(tmp_path / 'out' / 'patients.csv', newline='') as f:
    people = list(csv.DictReader(f))
  assert sorted(int(r['slices']) for r in people) == [1, 2, 5]
  assert [r['patient'] for r in people if r['slices'] == '5'] == ['sub-07']
  pair = [r for r in rows if r['file'] in ('series/IM0', 'series/IM1')]
  (pooled,) = [r for r in people if r['slices'] == '2']
  for name in tiny_bundle.CLASSES:
    mean = np.mean([float(r[f'p_{name}']) for r in pair])
    assert float(pooled[f'p_{name}']) == pytest.approx(mean, abs=2e-4)
  p = [float(pooled[f'p_{name}']) for name in tiny_bundle.CLASSES]
  assert pooled['class'] == tiny_bundle.CLASSES[int(np.argmax(p))]
  results = json.loads((tmp_path / 'out' / 'results.json').read_text())
  assert results['failed'] == []
  assert sum(results['ignored'].values()) == 2
  assert results['patients'] == 3


@pytest.mark.needs('pydicom', 'nibabel')
@pytest.mark.parametrize('how', ['folder', 'list'])
def test_a_slice_is_what_preparation_makes_of_it(tmp_path, scans, how):
  """Oracle: the manifest of the same files, prepared with other settings."""
  settings = {'slices': 'central-3', 'ct_window': (50.0, 20.0)}
  pixels = np.arange(256, dtype=np.int16).reshape(16, 16)
  write_dicom(scans / 'series' / 'CT', pixels, 'C', Modality='CT')
  out = str(tmp_path / 'set')
  made = trees.config(unlabelled=(str(scans),), out=out, **settings)
  prepare.run(made, str(tmp_path / 'work'))
  ds = dataset.open_dataset(out)
  want = {
    name.partition(':')[2]: sha256
    for name, sha256 in zip(ds.manifest['id'], ds.manifest['sha256'])
  }
  meta = dataclasses.replace(
    tiny_bundle.model().meta, preparation=ds.info.settings
  )
  given = str(scans)
  if how == 'list':
    given = [str(scans / name.partition('#')[0]) for name in want]
    given = list(dict.fromkeys(given))
  with inputs.open_inputs(given, meta, '--flag') as source:
    items = [item for chunk in inputs.read(source, meta) for item in chunk]
  have = {
    os.path.relpath(item.name, scans) if how == 'list' else item.name: (
      store.pixel_hash(item.image)
    )
    for item in items
  }
  assert have == want
  assert len(have) == 4 + 3 + 1


@pytest.mark.needs('pydicom', 'nibabel')
def test_single_scans_and_lists_of_them_are_read(config, tmp_path, scans):
  config.source = str(scans / 'sub-07' / 'sub-07_T1w.nii.gz')
  assert len(predicted(config, tmp_path / 'a')) == 5
  config.source = str(scans / 'series' / 'IM2')
  assert len(predicted(config, tmp_path / 'b')) == 1
  listed = [scans / 'series' / 'IM1', scans / 'report.txt', scans / 'no.dcm']
  (tmp_path / 'list').write_text('\n'.join(map(str, listed)))
  config.source = f'@{tmp_path / "list"}'
  rows = predicted(config, tmp_path / 'c', status=3)
  assert [r['status'] for r in rows] == ['ok', 'ignored', 'failed']
  assert [r['file'] for r in rows] == [str(p) for p in listed]
  config.source = str(scans / 'report.txt')
  with pytest.raises(ValueError, match='no picture, DICOM or NIfTI'):
    predicted(config, tmp_path / 'd')


@pytest.mark.needs('pydicom')
def test_one_patient_alone_is_a_patient(config, tmp_path, scans):
  config.source = str(scans / 'series')
  os.remove(scans / 'series' / 'IM2')
  predicted(config, tmp_path / 'out')
  with open(tmp_path / 'out' / 'patients.csv', newline='') as f:
    assert [r['slices'] for r in csv.DictReader(f)] == ['2']


def test_a_file_that_its_header_refuses_has_its_row(folder):
  meta = tiny_bundle.model().meta
  with inputs.open_inputs(str(folder / 'deep'), meta, '--flag') as source:
    told = source._replace(
      files=[*source.files, 'deep/x.dcm'],
      groups=[*source.groups, ''],
      refused=[('deep/x.dcm', 'no codec')],
    )
    items = [item for chunk in inputs.read(told, meta) for item in chunk]
  assert [(i.file, i.reason, i.failed) for i in items] == [
    ('wide.png', '', False),
    ('deep/x.dcm', 'no codec', True),
  ]
  row = predict.table_row(tiny_bundle.CLASSES, items[1], None, 0.5)
  assert row[:3] == ['deep/x.dcm', '', 'failed']
  assert row[-1] == 'no codec'


def test_without_patients_there_is_no_table_of_them(config, tmp_path, folder):
  config.source = str(folder / 'deep')
  predicted(config, tmp_path / 'out')
  assert not (tmp_path / 'out' / 'patients.csv').exists()


def test_names_that_are_no_utf8_are_written_out(config, tmp_path, folder):
  raw = os.fsencode(folder) + b'/deep/\xb2\xa1.png'
  os.rename(folder / 'deep' / 'wide.png', raw)
  (tmp_path / 'list').write_bytes(raw + b'\n')
  for k, given in enumerate((str(folder / 'deep'), f'@{tmp_path / "list"}')):
    config.source = given
    (row,) = predicted(config, tmp_path / f'out{k}')
    assert row['status'] == 'ok'
    assert row['file'].endswith(r'\xb2\xa1.png')
    json.loads((tmp_path / f'out{k}' / 'results.json').read_text())


def test_a_picture_with_odd_tags_is_read_without_a_word(
  config, tmp_path, folder, recwarn
):
  image = Image.fromarray(tiny_bundle.images(1)[0, ..., 0]).convert('P')
  image.save(folder / 'deep' / 'odd.png', transparency=b'\x00\x80')
  config.source = str(folder / 'deep')
  predicted(config, tmp_path / 'out')
  assert not [w for w in recwarn if 'PIL' in (w.filename or '')]

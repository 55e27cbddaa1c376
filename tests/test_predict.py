import csv
import os

import cv2
from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest
import tiny_bundle

from micdiffrep_jax.bundle import classifier, inputs, occlusion, predict


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
  predicted(config, tmp_path / 'out')
  path = tmp_path / 'out' / 'heatmaps' / '00000_p0.png'
  with Image.open(path) as f:
    assert f.size == (64, 32)
  assert os.listdir(path.parent) == [path.name]


def test_occlusion_finds_what_the_class_hangs_on(monkeypatch):
  """The class of this model is the brightness of one spot, nothing else."""

  def spot(model, images, seeds):
    assert len(set(seeds.tolist())) == 1  # the noise of the whole image
    p = 0.1 + 0.8 * images[:, 2:6, 9:13].mean((1, 2, 3)) / 255
    return np.stack([1 - p, p], 1)

  monkeypatch.setattr(occlusion, 'bundle_predict', spot)
  image = np.zeros((16, 16, 1), np.uint8)
  image[2:6, 9:13] = 255
  drop = occlusion.drop_map(tiny_bundle.model(), image, 1, 0.25, 0.125)
  assert np.unravel_index(drop.argmax(), drop.shape) in [
    (i, j) for i in range(2, 6) for j in range(9, 13)
  ]
  np.testing.assert_array_equal(drop[10:], 0)
  for window in (0, 1.5):
    with pytest.raises(ValueError, match='window'):
      occlusion.covered(image, window, 0.5)


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

import json

import cv2
from ml_collections import ConfigDict
import numpy as np
import pytest

from micdiffrep_jax.data import promises as checks
from micdiffrep_jax.data import splits, store
from micdiffrep_jax.data.dataset import Dataset
from micdiffrep_jax.studies import audit, shortcuts
from micdiffrep_jax.studies.page_audit import Shortcut

CLASSES = ('normal', 'tumour')


def made(n=60, seed=0):
  """A sound dataset in memory: 2 variants per source, 5 sources per part."""
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (n, 12, 12, 1), dtype=np.uint8)
  source = np.arange(n) // 2
  part = np.array(['train', 'val', 'test'])[source % 3]
  label = np.array(CLASSES)[source // 3 % 2]
  manifest = {
    'index': np.arange(n),
    'id': np.array([f'i{i}' for i in range(n)]),
    'file': np.array([f'i{i}.png' for i in range(n)]),
    'class': label,
    'source': np.array([f's{s}' for s in source]),
    'variant': np.where(np.arange(n) % 2, 'HF', ''),
    'unit': np.array([f'u{s}' for s in source]),
    'patient_id': np.array([f'p{s}' if s % 2 else '' for s in source]),
    'near': np.array([f'n{s}' for s in source]),
    'group': np.array([f'g{s}' for s in source]),
    'width': np.full(n, 100),
    'height': np.full(n, 90),
    'sha256': np.array([store.pixel_hash(x) for x in images]),
    **{name: part.copy() for name in splits.NAMES},
  }
  info = store.Info(
    size_px=12,
    channels=1,
    images=n,
    classes=CLASSES,
    settings={'near_duplicates': {'enabled': True}},
    fingerprint='f',
  )
  return Dataset('/data', images, manifest, CLASSES, 'f', info)


class Untouchable:
  """Images that nobody may read."""

  def __getitem__(self, rows):
    raise AssertionError('the images were read')

  def __len__(self):
    return 60


def test_a_sound_dataset_passes_without_a_look_at_its_images():
  dataset = made()._replace(images=Untouchable())
  for split in splits.NAMES:
    assert checks.check(dataset, split) == []
    assert checks.refuse(dataset, split) == []


def test_a_twin_across_parts_fails_and_is_named():
  dataset = made()
  dataset.images[4] = dataset.images[0]  # test and train
  dataset.manifest['sha256'][4] = dataset.manifest['sha256'][0]
  (reason,) = checks.check(dataset, 'grouped')
  assert 'equal pixels' in reason
  assert 'i0' in reason
  assert 'i4' in reason
  assert checks.check(dataset, 'paper') == []  # it promises sources only
  with pytest.raises(ValueError, match='allow_failed_audit'):
    checks.refuse(dataset, 'grouped')
  assert checks.refuse(dataset, 'grouped', accepted=True) == [reason]


def test_a_twin_in_an_excluded_row_is_no_leak():
  dataset = made()
  dataset.manifest['sha256'][4] = dataset.manifest['sha256'][0]
  dataset.manifest['grouped'][[4, 5]] = 'excluded'
  assert checks.check(dataset, 'grouped') == []


def test_blank_pictures_are_no_twins():
  dataset = made()
  for i in (0, 4):
    dataset.images[i] = 7
    dataset.manifest['sha256'][i] = store.pixel_hash(dataset.images[i])
  assert checks.check(dataset, 'grouped') == []


def test_an_unlabelled_copy_of_a_test_image_is_a_leak():
  dataset = made()
  dataset.manifest['class'][[0, 1]] = ''
  dataset.manifest['sha256'][0] = dataset.manifest['sha256'][4]
  assert len(checks.check(dataset, 'grouped')) == 1


def test_groups_and_sources_that_cross_fail_where_promised():
  dataset = made()
  dataset.manifest['near'][4] = dataset.manifest['near'][0]
  assert 'near-duplicate groups' in checks.check(dataset, 'grouped')[0]
  assert checks.check(dataset, 'paper') == []
  dataset.manifest['unit'][4] = dataset.manifest['unit'][0]
  assert 'sources lie' in checks.check(dataset, 'paper')[0]
  assert checks.check(dataset, 'leaky') == []


def test_two_labels_an_empty_class_and_no_search_fail():
  dataset = made()
  dataset.manifest['class'][1] = 'tumour'
  dataset.manifest['sha256'][1] = dataset.manifest['sha256'][0]
  assert 'several labels' in checks.check(dataset, 'paper')[0]

  dataset = made()
  tumour = dataset.manifest['class'] == 'tumour'
  dataset.manifest['grouped'][
    tumour & (dataset.manifest['grouped'] == 'val')
  ] = 'train'
  assert checks.check(dataset, 'grouped') == [
    "class 'tumour' has no val image in split 'grouped'"
  ]

  dataset = made()
  dataset.info.settings['near_duplicates']['enabled'] = False
  assert 'never searched' in checks.check(dataset, 'grouped')[0]


def test_twins_are_counted_by_hand():
  dataset = made()
  dataset.manifest['sha256'][4] = dataset.manifest['sha256'][0]  # a test source
  dataset.manifest['near'][10] = dataset.manifest['near'][0]  # another one
  twins = checks.held_out_twins(dataset, 'grouped')
  assert twins == {
    'test_sources': 10,
    'unit_seen': 0,
    'patient_id_seen': 0,
    'near_seen': 1,
    'group_seen': 0,
    'sha256_seen': 1,
  }


def test_a_shortcut_is_found_and_noise_is_not():
  rng = np.random.default_rng(0)
  labels = np.arange(120) % 2
  groups = np.arange(120) // 2 // 2 * 2 + labels
  noise = rng.normal(size=(120, 3)).astype(np.float32)
  telling = noise.copy()
  telling[:, 1] = labels
  for x, low, high in ((telling, 0.99, 1.0), (noise, 0.25, 0.75)):
    found = shortcuts.probe(x, labels, groups, CLASSES, resamples=20)
    assert low <= found.balanced_accuracy.value <= high
    assert low <= found.auroc['tumour'].value <= high
  assert shortcuts.probe('no files', labels, groups, CLASSES) == Shortcut(
    skipped='no files'
  )


def test_cross_validation_keeps_groups_whole():
  """Each group has its own label pattern: leaked groups would be learnt."""
  rng = np.random.default_rng(0)
  groups = np.repeat(np.arange(40), 6)
  labels = rng.integers(0, 2, 40)[groups]
  x = np.repeat(rng.normal(size=(40, 4)), 6, axis=0).astype(np.float32)
  probs = shortcuts.cross_validate(x, labels, groups, 2, 5, 0)
  assert abs((probs.argmax(1) == labels).mean() - 0.5) < 0.25


@pytest.fixture
def config():
  return ConfigDict(
    {
      'task': 'audit',
      'seed': 0,
      'data': {'path': 'x', 'split': 'grouped', 'cache': True},
      'source': '',
      'columns': '',
      'second_look': True,
      'max_unseen_twins': 0.02,
      'shortcuts': True,
      'shortcut_images': 100,
      'folds': 2,
      'resamples': 10,
    }
  )


def test_the_task_writes_a_page_and_fails_by_its_exit_status(
  config, tmp_path, monkeypatch
):
  dataset = made()
  monkeypatch.setattr(audit.data, 'open_dataset', lambda *a, **k: dataset)
  audit.run(config, str(tmp_path / 'good'))
  good = json.loads((tmp_path / 'good' / 'results.json').read_text())
  assert good['passed']
  assert 'file header' in good['shortcuts']
  dataset.manifest['sha256'][4] = dataset.manifest['sha256'][0]
  with pytest.raises(SystemExit) as stopped:
    audit.run(config, str(tmp_path / 'bad'))
  assert stopped.value.code == 3
  bad = json.loads((tmp_path / 'bad' / 'results.json').read_text())
  assert not bad['passed']
  assert bad['content']['changed'] == ['i4']  # not the pixels of its hash
  page = (tmp_path / 'bad' / 'audit.html').read_text()
  assert 'The audit fails' in page
  assert 'Not for clinical use' in page


def test_a_second_look_finds_copies_that_no_group_joins(config):
  dataset = made()
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (60, 40, 40, 1), dtype=np.uint8)
  images[4] = np.clip(images[0].astype(int) * 0.9 + 9, 0, 255)
  found = audit.second_look(dataset._replace(images=images), 'grouped')
  assert found.pairs == 1
  assert found.test_sources == 1
  assert found.examples == (('i0', 'i4'),)


def blurred(seed, px=40):
  """A smooth picture, of which a shifted one is a neighbour and no copy."""
  rng = np.random.default_rng(seed)
  coarse = rng.uniform(20, 250, (7, 7)).astype(np.float32)
  return cv2.resize(coarse, (px, px), interpolation=cv2.INTER_CUBIC)


def test_neighbouring_slices_across_test_are_said(config, monkeypatch):
  dataset = made()
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (60, 40, 40, 1), dtype=np.uint8)
  first, noise = blurred(0), blurred(99)
  images[0, ..., 0] = np.clip(first, 0, 255)  # in train
  images[4, ..., 0] = np.clip(0.68 * first + 0.32 * noise, 0, 255)  # in test
  dataset = dataset._replace(images=images)
  found = audit.second_look(dataset, 'patient')
  assert found.test_sources == 0
  assert found.neighbours.examples == (('i0', 'i4'),)
  config.shortcuts = False
  warnings = audit.audit(dataset, config).warnings
  assert any('1 test sources look like a neighbouring slice' in w
             for w in warnings)  # fmt: skip
  # Every second source of `made` has no patient.
  assert any('30 labelled images are of unknown patients' in w
             for w in warnings)  # fmt: skip


def test_columns_of_a_table_are_tested_as_shortcuts(config, tmp_path):
  dataset = made()
  labels = dataset.manifest['class']
  lines = ['file;site;age;id']
  for i, name in enumerate(dataset.manifest['file']):
    site = 'north' if labels[i] == 'tumour' else 'south'
    lines.append(f'{name};{site};{i % 7};{name}')
  path = tmp_path / 'more.csv'
  path.write_text('\n'.join(lines), encoding='utf-8-sig')
  config.columns = str(path)
  found = audit.probe_shortcuts(dataset, config)
  assert found['column site'].balanced_accuracy.value == 1.0
  assert found['column age'].numbers == 1
  assert found['column age'].balanced_accuracy.value < 0.9
  assert 'differ' in found['column id'].skipped
  assert found['file format'] == Shortcut(skipped='all images have the same')
  path.write_text('\n'.join(lines[:-2]))
  with pytest.raises(ValueError, match=r'columns=.*no line for 1 of 30'):
    audit.probe_shortcuts(dataset, config)


@pytest.mark.needs('pydicom')
def test_fields_of_dicom_headers_are_tested_as_shortcuts(tmp_path):
  import pydicom

  paths = []
  for i in range(4):
    record = pydicom.dataset.Dataset()
    record.file_meta = pydicom.dataset.FileMetaDataset()
    record.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    record.Manufacturer = 'A' if i % 2 else 'B'
    record.MagneticFieldStrength = '1.5' if i < 2 else '3'
    paths.append(str(tmp_path / f'{i}.dcm'))
    record.save_as(paths[-1], enforce_file_format=False)
  for path in paths:  # a preamble, as files on disk have
    with open(path, 'rb') as f:
      content = f.read()
    if content[128:132] != b'DICM':
      with open(path, 'wb') as f:
        f.write(bytes(128) + b'DICM' + content)
  found = shortcuts._of_files(paths)
  assert found['DICOM Manufacturer'].tolist() == [[0, 1], [1, 0]] * 2
  assert (
    found['DICOM MagneticFieldStrength'].ravel().tolist() == [1.5] * 2 + [3] * 2
  )
  assert found['DICOM Modality'] == 'all images have the same'


def disc(radius, low=0, high=255):
  """A mask (12, 12, 1) uint8."""
  y, x = np.mgrid[-5.5:6.5, -5.5:6.5]
  inside = (x * x + y * y < radius * radius)[..., None]
  return np.where(inside, high, low).astype(np.uint8)


def test_two_grey_levels_are_told_from_pictures():
  rng = np.random.default_rng(0)
  dim = rng.integers(0, 30, (12, 12, 1), dtype=np.uint8) + disc(4) // 2
  for image, said in (
    (disc(4), True),
    (disc(3, 20, 90), True),
    (dim, False),
    (np.full((12, 12, 1), 7, np.uint8), False),  # of one colour
    (rng.integers(0, 256, (12, 12, 1), dtype=np.uint8), False),
  ):
    assert audit.has_two_levels(image) is said


def test_masks_beside_their_pictures_fail_an_audit(config):
  dataset = made()
  names = dataset.manifest['file'].astype('<U20')
  names[0], names[1], names[2] = 'a.png', 'a-outline.png', 'b.png'
  dataset.manifest['file'] = names
  for row in (1, 2):
    dataset.images[row] = disc(4 - row)
    dataset.manifest['sha256'][row] = store.pixel_hash(dataset.images[row])
  content = audit.look(dataset)
  assert content.two_levels == ('i1', 'i2')
  assert content.masks == (('a-outline.png', 'a.png'),)
  (reason,) = audit.mask_reasons(dataset, content)
  assert 'a-outline.png / a.png' in reason
  found = audit.audit(dataset, config)
  assert found.reasons == (reason,)
  assert (
    '2 images have two grey levels: look whether they are masks.'
    in found.warnings
  )
  dataset.info.settings['skip_masks'] = False  # the user wants them
  assert audit.mask_reasons(dataset, content) == []

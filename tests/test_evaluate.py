import csv
import json

import cv2
from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest
from scans import write_dicom
from sklearn.metrics import balanced_accuracy_score
import tiny_bundle

from micdiffrep_jax.bundle import classifier, evaluate, fingerprints, inputs
from micdiffrep_jax.data import duplicates, store


def heads(n, seed=0):
  """Pictures with detail enough for the near-duplicate search, (n, 64, 64)."""
  rng = np.random.default_rng(seed)
  out = []
  for _ in range(n):
    noise = rng.integers(0, 256, (16, 16), dtype=np.uint8)
    out.append(cv2.resize(noise, (64, 64), interpolation=cv2.INTER_CUBIC))
  return np.stack(out)[..., None]


def known_of(images):
  hashes = [fingerprints.short(store.pixel_hash(x)) for x in images]
  return fingerprints.Fingerprints(
    np.array(hashes, np.uint64),
    duplicates.crops(images, np.arange(len(images))),
  )


def near_of(known, images):
  crops = duplicates.crops(images, np.arange(len(images)))
  return fingerprints.near(known, crops, fingerprints.shrink(images))


def test_training_images_are_recognised_and_others_are_not():
  train, fresh = heads(8), heads(8, seed=1)
  known = known_of(train)
  nearly = np.clip(train.astype(int) * 0.95 + 5, 0, 255).astype(np.uint8)
  flipped = train[:, :, ::-1]
  for images, equal, near in (
    (train, True, True),
    (nearly, False, True),
    (flipped, False, True),
    (fresh, False, False),
  ):
    found = (
      fingerprints.equal(known, images),
      near_of(known, images),
    )
    assert found[0].all() == equal
    assert found[0].any() == equal
    assert found[1].all() == near
    assert found[1].any() == near


def saved_again(image):
  """Shrunk to 90 %, a tenth darker, as a JPEG of quality 75, read again."""
  small = cv2.resize(image, (58, 58), interpolation=cv2.INTER_AREA)
  dark = np.rint(small * 0.9).astype(np.uint8)
  quality = [cv2.IMWRITE_JPEG_QUALITY, 75]
  data = cv2.imencode('.jpg', dark, quality)[1]
  return cv2.resize(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), (64, 64))


def test_small_pictures_find_what_was_saved_again_and_hashes_do_not():
  train, fresh = heads(8), heads(8, seed=1)
  again = np.stack([saved_again(x[..., 0]) for x in train])[..., None]
  kept = {
    'hashes': known_of(train)._replace(crops=fingerprints.empty().crops),
    'none': fingerprints.empty(),
  }
  kept['small'] = kept['hashes']._replace(small=fingerprints.shrink(train))
  found = {name: near_of(known, again).sum() for name, known in kept.items()}
  assert found == {'hashes': 0, 'none': 0, 'small': 8}
  assert not near_of(kept['small'], fresh).any()
  assert near_of(kept['small'], again[:, ::-1]).all()
  said = {name: known.recognises for name, known in kept.items()}
  assert said == {
    'hashes': 'equal pixels only',
    'none': '',
    'small': 'equal pixels, and pictures that nearly repeat',
  }


def test_flat_pictures_resemble_nothing():
  flat = np.full((2, 64, 64, 1), 7, np.uint8)
  flat[1, 0, 0] = 9
  known = fingerprints.empty()._replace(small=fingerprints.shrink(flat))
  assert not known.small.any()
  assert not near_of(known, flat).any()


def test_shrinking_stretches_from_black_to_white():
  ramp = np.tile(np.linspace(40, 100, 48).astype(np.uint8), (48, 1))
  (found,) = fingerprints.shrink(ramp[None, ..., None])
  assert found.shape == (24, 24)
  assert (found.min(), found.max()) == (0, 255)
  # Colour is seen as its luma.
  colour = np.repeat(ramp[None, ..., None], 3, -1)
  np.testing.assert_array_equal(fingerprints.shrink(colour)[0], found)


def test_classes_are_matched_and_typos_are_errors():
  files = ['x/glioma/1.png', 'x/normal/sub/2.png', 'none/3.png']
  classes = ('glioma', 'normal', 'pituitary')  # a class may be absent
  found = evaluate.match_classes(files, classes, {'none': 'normal'})
  assert found == ['glioma', 'normal', 'normal']
  with pytest.raises(ValueError, match="Did you mean 'glioma'"):
    evaluate.match_classes(['gliomaa/1.png'], classes, {})
  with pytest.raises(ValueError, match='Unknown class'):
    evaluate.match_classes(['1.png'], classes, {})


def test_repeated_pictures_share_a_group():
  images = heads(4)
  images[3] = images[0]
  crops = duplicates.crops(images, np.arange(4))
  group = evaluate.joined_groups(['a', 'b', 'b', 'c'], crops, np.arange(4))
  assert group[0] == group[3]
  assert group[1] == group[2]
  assert group[0] != group[1]


@pytest.fixture
def config(tmp_path):
  """Nine pictures of three classes; the bundle was trained on the first two."""
  images = tiny_bundle.images(9)
  for i, image in enumerate(images):
    folder = tmp_path / 'in' / tiny_bundle.CLASSES[i % 3]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0]).save(folder / f'q{i // 3}_{i}.png')
  path = str(tmp_path / 'bundle.npz')
  model = tiny_bundle.model()._replace(fingerprints=known_of(images[:2]))
  classifier.write(path, model, 'float32')
  return ConfigDict(
    {
      'task': 'evaluate',
      'seed': 0,
      'bundle': path,
      'head': 'final',
      'overlap': 'error',
      'data': {
        'path': '',
        'source': str(tmp_path / 'in'),
        'class_map': (),
        'variant_regex': '',
        'group_csv': '',
        'group_regex': r'^(q\d+)',
        'group_by': '',
      },
      'pooling': 'mean',
      'normal_class': 'bundle',
      'workers': 1,
      'resamples': 50,
    }
  )


def table(workdir):
  with open(workdir / 'predictions.csv', newline='') as f:
    return list(csv.DictReader(f))


def test_images_seen_in_training_are_refused_or_left_out(config, tmp_path):
  out = tmp_path / 'out'
  with pytest.raises(ValueError, match=r'--config\.overlap=drop'):
    evaluate.run(config, str(out))
  listed = (out / 'overlap.csv').read_text().splitlines()[1:]
  assert sorted(listed) == ['a/q0_0.png,equal', 'b/q0_1.png,equal']
  config.overlap = 'drop'
  evaluate.run(config, str(out))
  results = json.loads((out / 'results.json').read_text())
  assert results['overlap']['equal'] == 2
  assert results['overlap']['scored'] == 7
  assert results['rows']['bundle']['test']['all']['n'] == 7


def test_scores_are_those_of_the_written_predictions(config, tmp_path):
  """Oracle: scikit-learn on predictions.csv, without the leaked images."""
  config.overlap = 'drop'
  out = tmp_path / 'out'
  results = evaluate.run(config, str(out))
  kept = [r for r in table(out) if r['in_training'] == '0']
  want = balanced_accuracy_score(
    [r['true_class'] for r in kept], [r['class'] for r in kept]
  )
  scored = results['rows']['bundle']['test']['all']
  assert scored['balanced_accuracy']['value'] == pytest.approx(want)
  assert scored['groups'] == 3


def test_a_broken_file_is_told_and_the_rest_scored(config, tmp_path):
  config.overlap = 'drop'
  (tmp_path / 'in' / 'a' / 'q9_9.png').write_bytes(b'no picture')
  with pytest.raises(SystemExit) as stopped:
    evaluate.run(config, str(tmp_path / 'out'))
  assert stopped.value.code == 3
  results = json.loads((tmp_path / 'out' / 'results.json').read_text())
  assert results['failed'] == [['a/q9_9.png', 'not an image that can be read']]
  assert results['overlap']['scored'] == 7
  with open(tmp_path / 'out' / 'decision.csv') as f:
    rows = list(csv.DictReader(f))
  assert {row['row'] for row in rows} == {'bundle', 'act on all'}
  assert (tmp_path / 'out' / 'decision.png').exists()


def test_groups_must_be_stated(config, tmp_path):
  config.data.group_regex = ''
  with pytest.raises(ValueError, match='group_by=file'):
    evaluate.run(config, str(tmp_path / 'out'))


def scored(n, leaked=0):
  """What was read: n pictures, of which the first `leaked` were trained on."""
  items = [inputs.Item(i, f'a/{i}.png', '', None) for i in range(n)]
  hit = np.arange(n) < leaked
  probs = [np.array([0.5, 0.25, 0.25])] * n
  crops = np.zeros((n, 32, 32), np.uint8)
  return evaluate.External(items, probs, hit, np.zeros(n, bool), crops)


@pytest.fixture
def said(caplog):
  return caplog


def test_scores_that_count_training_images_are_called_no_test(said):
  model = tiny_bundle.model()._replace(fingerprints=known_of(heads(2)))
  at = evaluate.choose(scored(5, leaked=2), model, 'keep')
  assert at.tolist() == [0, 1, 2, 3, 4]
  (line,) = said.messages
  assert line.startswith('NOT A TEST: the bundle was trained on 2 of the 5')
  assert '--config.overlap=drop' in line
  said.clear()
  assert evaluate.choose(scored(5, leaked=2), model, 'drop').tolist() == [
    2,
    3,
    4,
  ]
  assert not said.messages


def test_a_bundle_of_hashes_says_what_it_cannot_recognise(said):
  hashes = known_of(heads(2))._replace(crops=fingerprints.empty().crops)
  model = tiny_bundle.model()._replace(fingerprints=hashes)
  evaluate.choose(scored(3), model, 'error')
  assert 'recognises equal pixels only: a training image' in said.text
  told = scored(3).overlap(model, 'error')
  assert told['recognises'] == fingerprints.HASHES_ONLY
  model = model._replace(fingerprints=known_of(heads(2)))
  told = scored(3).overlap(model, 'error')
  assert told['recognises'] == 'equal pixels, and pictures that nearly repeat'


def test_classes_that_are_absent_are_told():
  found = evaluate.presence(('a', 'b', 'c'), ['c', 'a', 'a'])
  assert found.present == ('a', 'c')
  assert found.absent == ('b',)
  assert 'No picture is of b' in found.note
  assert 'note' not in evaluate.presence(('a', 'b'), ['b', 'a']).to_json()


@pytest.mark.needs('pydicom')
def test_headers_name_the_patients_and_a_class_may_be_absent(
  config, tmp_path, monkeypatch, said
):
  """Oracle: 2 patients of a with 2 slices each, 1 of b with 1; none of c."""
  monkeypatch.setenv('MICDIFFREP_CACHE', str(tmp_path / 'cache'))
  images = tiny_bundle.images(5, 50)[..., 0].astype(np.int16)
  owners = [('x', 'P1'), ('x', 'P1'), ('x', 'P2'), ('x', 'P2'), ('b', 'P3')]
  for i, (name, patient) in enumerate(owners):
    path = tmp_path / 'scans' / name / f'IM{i}'
    write_dicom(path, images[i], patient)
  (tmp_path / 'scans' / 'notes.txt').write_text('x')
  config.data.source = str(tmp_path / 'scans')
  config.data.class_map = ('x=a',)
  config.data.group_regex = ''
  record = evaluate.run(config, str(tmp_path / 'out'))
  with open(tmp_path / 'out' / 'patients.csv', newline='') as f:
    people = list(csv.DictReader(f))
  assert [r['slices'] for r in people] == ['1', '2', '2']  # b before x
  assert [r['true_class'] for r in people] == ['b', 'a', 'a']
  rows = table(tmp_path / 'out')
  right = [r['class'] == 'a' for r in rows if r['true_class'] == 'a']
  per_class = record['rows']['bundle']['test']['all']['per_class']
  assert per_class['a']['sensitivity']['value'] == pytest.approx(np.mean(right))
  assert per_class['a']['n'] == 4
  assert record['classes']['absent'] == ['c']
  assert 'No picture is of c' in said.text
  assert 'Recall of a: ' in said.text
  assert record['rows']['bundle']['test']['all']['groups'] == 3
  assert sum(record['ignored'].values()) == 1

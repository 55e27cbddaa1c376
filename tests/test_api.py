"""The public API: pictures as arrays, heads as scikit-learn estimators."""

import csv
import importlib
import pickle

import numpy as np
from PIL import Image
import pytest
import sklearn
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
import tiny_bundle

import micdiffrep_jax as mdr
from micdiffrep_jax.bundle import classifier, predict
from micdiffrep_jax.data import decode
from micdiffrep_jax.heads import head_file


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  file = str(tmp_path_factory.mktemp('api') / 'bundle.npz')
  classifier.write(file, tiny_bundle.model(), 'float32')
  return file


@pytest.fixture(scope='module')
def bundle(path):
  return mdr.load(path)


def blobs(patients=12, each=4, d=6):
  """Features of two classes, 9 apart, and the patient of each row."""
  rng = np.random.default_rng(0)
  who = np.repeat(np.arange(patients), each)
  y = np.where(who % 2, 'tumour', 'normal')
  x = rng.normal(0, 1, (len(who), d)) + 9 * (who % 2)[:, None]
  return x, y, who


def test_every_public_name_is_there_and_no_other():
  for name in mdr.__all__:
    assert getattr(mdr, name).__doc__
  assert set(mdr.__all__) <= set(dir(mdr))
  with pytest.raises(AttributeError, match='no attribute'):
    _ = mdr.absent


def test_its_features_are_what_the_bundles_own_head_reads(bundle):
  images, head = tiny_bundle.images(5), tiny_bundle.model().head
  x = bundle.features(images, t=3, layers='down0_0', cells=2, draws=2)
  found = head_file.logits(head, {'down0_0': x.reshape(5, 2, 2, 4)})
  want = classifier.logits(tiny_bundle.model(), images)
  np.testing.assert_allclose(found, want, rtol=1e-5)


def test_features_do_not_depend_on_their_company(bundle):
  images = tiny_bundle.images(40)
  together = bundle.features(images, cells=2)
  assert together.dtype == np.float32
  alone = bundle.features(images[37:38], cells=2)
  np.testing.assert_allclose(alone, together[37:38], atol=2e-3)  # of float16


def test_layers_are_given_by_name_or_by_group(bundle):
  assert bundle.layers_of('encoder') == bundle.layers == ('down0_0',)
  assert bundle.layers_of(['down0_0']) == ('down0_0',)
  for layers, said in (
    ('decoder', 'is of the decoder'),
    ('up0_0', "Unknown layer 'up0_0'"),
    ((), r'layers=\(\)'),
    (3, 'layers=3: give names'),
    (['down0_0', 'down0_0'], 'each once'),
    (('encoder', 'down0_0'), 'alone'),
  ):
    with pytest.raises(ValueError, match=said):
      bundle.layers_of(layers)
  for setting, said in (
    ({'t': 99}, r't=99 is outside \[0, 49\]'),
    ({'t': 1.5}, 't=1.5 is not whole'),
    ({'t': (1, 2)}, r't=\(1, 2\) is not a number'),
    ({'cells': '4'}, "cells='4' is not a number"),
    ({'seed': -1}, 'seed=-1 is outside'),
  ):
    with pytest.raises(ValueError, match=said):
      bundle.features(tiny_bundle.images(1), **setting)


@pytest.mark.parametrize('mode', ['L', 'I;16', 'RGB', 'RGBA'])
def test_an_array_is_read_as_the_file_with_its_pixels(mode, tmp_path):
  rng = np.random.default_rng(1)
  deep = mode == 'I;16'
  shape = (9, 14) if mode in ('L', 'I;16') else (9, 14, len(mode))
  kind = np.uint16 if deep else np.uint8
  pixels = rng.integers(0, 60_000 if deep else 256, shape, kind)
  file = tmp_path / 'x.png'
  Image.fromarray(pixels).save(file)
  want = decode.read_image(file.read_bytes())
  found = decode.read_array(pixels)
  np.testing.assert_array_equal(found.pixels, want.pixels)
  assert found.rules == want.rules


def test_probabilities_are_those_of_the_command(path, bundle, tmp_path):
  rng = np.random.default_rng(2)
  pictures = [
    rng.integers(0, 256, (20, 30), np.uint8),
    rng.integers(100, 9000, (16, 16), np.uint16),
    rng.integers(0, 256, (40, 25, 3), np.uint8),
  ]
  files = [tmp_path / f'{i}.png' for i in range(3)]
  for file, pixels in zip(files, pictures):
    Image.fromarray(pixels).save(file)
  config = importlib.import_module('configs.predict').get_config()
  (tmp_path / 'list.txt').write_text('\n'.join(map(str, files)))
  config.bundle, config.source = path, f'@{tmp_path}/list.txt'
  predict.run(config, str(tmp_path / 'out'))
  with open(tmp_path / 'out' / 'predictions.csv') as f:
    lines = list(csv.DictReader(f))
  want = [[float(x[f'p_{c}']) for c in bundle.classes] for x in lines]
  for given in (pictures, files):
    found = bundle.predict_proba(given)
    np.testing.assert_allclose(found, want, atol=5.1e-5)  # four places
  assert np.ptp(want, axis=0).min() > 1e-3


@pytest.mark.parametrize(
  ('images', 'said'),
  [
    (np.zeros((8, 8), np.uint8), r'images\[None\]'),
    ([], '0 sample'),
    ([np.zeros((8, 8)), np.full((8, 8), np.nan)], 'Picture 1: .*not finite'),
    (np.zeros((2, 3, 8, 8), np.uint8), r'Picture 0: shape \(3, 8, 8\)'),
    ([np.array(['a'])], 'Picture 0: type'),
    ([np.zeros((0, 4), np.uint8)], 'Picture 0: .*0'),
    ([np.zeros((4, 4, 4))], 'Picture 0: alpha'),
    ('x.png', 'give a list'),
    (None, 'NoneType: give an array'),
    ((x for x in 'ab'), 'generator: give an array'),
    (np.ma.masked_array(np.zeros((1, 8, 8), np.uint8)), 'mask'),
    (['absent.png'], 'absent.png: No such file'),
  ],
)
def test_what_is_no_picture_is_refused(bundle, images, said):
  with pytest.raises(ValueError, match=said):
    bundle.features(images)


def test_an_encoder_without_a_head_tells_no_classes(bundle):
  bare = mdr.Encoder(tiny_bundle.encoder())
  assert bare.classes == ()
  with pytest.raises(ValueError, match='no head'):
    bare.predict_proba(tiny_bundle.images(1))


@pytest.mark.parametrize(
  ('path', 'said'),
  [
    ('', '^No path given:'),
    (None, '^No path given:'),
    (3, '^No path given, but 3:'),
    ('absent', "^'absent' does not exist. Give a bundle"),
    ('ftp://host/run', "^'ftp://host/run' cannot be opened"),
  ],
)
def test_a_path_of_nothing_is_told_in_a_line_without_flags(path, said):
  with pytest.raises(ValueError, match=said) as told:
    mdr.load(path)
  assert '--config' not in str(told.value)
  if not path:
    with pytest.raises(ValueError, match='^No path given'):
      mdr.open_dataset(path)


def test_a_pipeline_of_pictures_is_searched_over_folds_of_patients(path):
  rng = np.random.default_rng(3)
  who = np.repeat(np.arange(8), 3)
  y = who // 2 % 2
  bright = 150 * y[:, None, None] + rng.integers(0, 99, (24, 16, 16))
  pipe = make_pipeline(
    mdr.DiffusionFeatures(path, cells=1),
    mdr.KernelClassifier(gamma=1.0, strength=0.1, folds=2),
  )
  search = GridSearchCV(
    clone(pipe), {'kernelclassifier__strength': [0.01, 0.1]}, cv=GroupKFold(2)
  )
  images = bright.astype(np.uint8)
  search.fit(images, y, groups=who)
  assert search.best_score_ > 0.9
  again = pickle.loads(pickle.dumps(search))
  want = search.predict_proba(images)
  np.testing.assert_array_equal(again.predict_proba(images), want)
  squares = list(images)
  squares[0] = np.pad(images[0], 2)  # of another size, so a list
  assert pipe.fit(squares, y).predict(squares).shape == (24,)


def test_groups_reach_the_folds_of_a_head_within_a_search(monkeypatch):
  """As the docstring of fit says: by metadata routing."""
  x, y, who = blobs()
  seen, folds = [], mdr.KernelClassifier._folds

  def listen(self, labels, groups):
    seen.append(groups)
    return folds(self, labels, groups)

  monkeypatch.setattr(mdr.KernelClassifier, '_folds', listen)
  with sklearn.config_context(enable_metadata_routing=True):
    head = mdr.KernelClassifier(2.0, 0.1).set_fit_request(groups=True)
    search = GridSearchCV(head, {'strength': [0.1]}, cv=GroupKFold(3))
    search.fit(x, y, groups=who)
  assert sorted(len(set(groups)) for groups in seen) == [8, 8, 8, 12]


def test_settings_are_chosen_on_groups_that_the_head_did_not_see():
  """Every row has a copy in its group, which tells a noisy label."""
  rng = np.random.default_rng(4)
  who, y = np.repeat(np.arange(60), 2), np.repeat(rng.integers(0, 2, 60), 2)
  x = np.repeat(rng.normal(0, 1, (60, 8)), 2, 0)
  head = mdr.KernelClassifier(gamma=(2.0,), strength=(0.01,))
  honest = head.fit(x, y, groups=who).temperature_
  leaky = head.fit(x, y).temperature_
  # Labels are coins: without the copies nothing is known, so all is flat.
  assert honest > 3 * leaky
  assert head.predict(x).tolist() == y.tolist()


def test_a_head_of_msfa_learns_blobs_and_is_calibrated():
  x, y, who = blobs()
  head = mdr.MSFAClassifier(
    hidden=8, learning_rate=1e-2, weight_decay=0.0, min_updates=50, folds=2
  )
  with pytest.raises(NotFittedError):
    head.predict(x)
  head.fit(x, y, groups=who)
  assert head.score(x, y) == 1.0
  assert head.classes_.tolist() == ['normal', 'tumour']
  np.testing.assert_allclose(head.predict_proba(x).sum(1), 1)


def test_bad_settings_and_lone_groups_are_told():
  x, y, _ = blobs()
  with pytest.raises(ValueError, match='gamma.*empty'):
    mdr.KernelClassifier(gamma=()).fit(x, y)
  who = [None, *range(1, len(x))]
  for head, said in (
    (mdr.KernelClassifier(strength=(0.1, -1.0)), 'strength=-1.0 is outside'),
    (mdr.KernelClassifier(folds='a'), "folds='a' is not a number"),
    (mdr.MSFAClassifier(random_state=None), 'random_state=None'),
    (mdr.MSFAClassifier(batch_size=0), 'batch_size=0 is outside'),
    (mdr.MSFAClassifier(dropout=1.0), 'dropout=1.0 is outside'),
    (mdr.KernelClassifier(), '1 of 48 groups are missing'),
  ):
    with pytest.raises(ValueError, match=said):
      head.fit(x, y, groups=who)
  with pytest.raises(ValueError, match='single class'):
    mdr.KernelClassifier().fit(x, np.zeros(len(x)))
  with pytest.warns(UserWarning, match='fewer than two groups'):
    head = mdr.KernelClassifier().fit(x, y, groups=y)
  assert head.temperature_ == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
  'head',
  [
    mdr.KernelClassifier(),
    mdr.MSFAClassifier(
      hidden=16,
      learning_rate=1e-2,
      weight_decay=0.0,
      min_updates=60,
      folds=2,
    ),
  ],
  ids=['kernel', 'msfa'],
)
def test_scikit_learns_own_checks_pass(head):
  from sklearn.utils.estimator_checks import check_estimator

  check_estimator(head, on_skip=None)

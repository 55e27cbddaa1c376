import time

import cv2
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
import trees

from micdiffrep_jax.data import dataset, prepare
from micdiffrep_jax.data.sources import phantom

SMALL = phantom.Spec(patients=40, slices=3)
EXPECTED = np.array(
  [
    [38.3, 78.4, 74.3, 40.8],
    [66.6, 107.7, 108.7, 64.2],
    [65.8, 100.4, 111.8, 64.4],
    [38.1, 57.6, 85.0, 39.7],
  ]
)


def test_same_seed_draws_the_same_and_another_does_not():
  for patient, k in ((0, 0), (17, 2), (41, 1)):
    one = phantom.draw(SMALL, patient, k)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, phantom.draw(SMALL, patient, k))
    other = phantom.draw(SMALL._replace(seed=1), patient, k)
    assert (one != other).mean() > 0.5


def test_drawing_does_not_change_unnoticed():
  """A change of the drawing needs a new VERSION, or caches go stale."""
  # Means over a coarse grid, so that another libm does not matter.
  picture = phantom.draw(phantom.Spec(), 5, 3)
  coarse = picture.reshape(4, 24, 4, 24).mean((1, 3))
  assert phantom.VERSION == 2
  np.testing.assert_allclose(coarse, EXPECTED, atol=1.0)


def test_slices_of_a_patient_share_an_anatomy():
  a, b = (phantom.draw(SMALL, 3, k).astype(float) for k in (0, 1))
  others = [phantom.draw(SMALL, p, 1).astype(float) for p in (7, 11, 15)]
  blur = lambda x: cv2.GaussianBlur(x, (0, 0), 3)  # noqa: E731
  own = np.corrcoef(blur(a).ravel(), blur(b).ravel())[0, 1]
  for other in others:
    assert own > np.corrcoef(blur(a).ravel(), blur(other).ravel())[0, 1]


def test_source_names_classes_patients_and_repeats():
  source = phantom.open_source('patients=40,slices=3')
  assert len(source.files) == (40 + 2) * 3
  assert set(source.labels) == set(phantom.CLASSES)
  for label in phantom.CLASSES:
    assert source.labels.count(label) >= 30
  original = phantom._original(SMALL, 40)
  twin = source.groups.index('patient_0040')
  first = source.groups.index(f'patient_{original:04d}')
  assert source.labels[twin] == source.labels[first]
  a, b = (source.read(source.files[i], 1)[0].pixels for i in (first, twin))
  assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99
  assert (a != b).mean() > 0.3


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ('size=32', "Unknown field of a phantom 'size'"),
    ('size_px=big', 'needs a whole number'),
    ('patients=3', 'patients >= 20'),
  ],
)
def test_wrong_arguments_are_errors(arguments, message):
  with pytest.raises(ValueError, match=message):
    phantom.parse(arguments)


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('MICDIFFREP_CACHE', str(tmp_path))
  return tmp_path


def test_phantom_is_prepared_once_and_opens_by_name(cache):
  name = 'phantom:size_px=16,patients=24,slices=2'
  with pytest.raises(ValueError, match='Prepare one'):
    dataset.open_dataset(name)
  assert not list(cache.iterdir())
  made = prepare.resolve(name)
  ds = dataset.open_dataset(name)
  assert ds.path == made
  assert ds.images.shape == ((24 + 1) * 2, 16, 16, 1)
  assert ds.classes == phantom.CLASSES
  [folder] = cache.iterdir()
  before = (folder / 'manifest.csv').stat().st_mtime_ns
  prepare.resolve(name)
  again = dataset.open_dataset('phantom:patients=24,slices=2,size_px=16')
  assert again.path == ds.path
  assert (folder / 'manifest.csv').stat().st_mtime_ns == before


def test_repeated_patient_shares_a_group_with_the_original(cache):
  ds = dataset.open_dataset(prepare.prepared_phantom('patients=40,slices=3'))
  for twin in (40, 41):
    names = [f'patient_{p:04d}' for p in (phantom._original(SMALL, twin), twin)]
    rows = np.isin(ds.manifest['patient_id'], names)
    assert rows.sum() == 6
    assert len(set(ds.manifest['group'][rows])) == 1
  assert len(set(ds.manifest['group'])) == 40  # and nobody else is joined


def prepared(arguments, out):
  prepare.prepare(prepare.phantom_config(arguments, 16, out))


def test_the_slower_of_two_processes_accepts_the_work_of_the_faster(
  tmp_path, monkeypatch
):
  out, slow = str(tmp_path / 'p'), prepare.assemble

  def overtaken(*args):
    info = slow(*args)
    monkeypatch.setattr(prepare, 'assemble', slow)
    prepared('patients=24,slices=1', out)
    return info

  monkeypatch.setattr(prepare, 'assemble', overtaken)
  prepared('patients=24,slices=1', out)
  assert [p.name for p in tmp_path.iterdir()] == ['p']
  assert len(dataset.open_dataset(out).images) == 25


def test_the_slower_of_two_different_preparations_is_an_error(
  tmp_path, monkeypatch
):
  out, slow = str(tmp_path / 'p'), prepare.assemble

  def overtaken(*args):
    info = slow(*args)
    monkeypatch.setattr(prepare, 'assemble', slow)
    prepared('patients=24,slices=1,seed=5', out)
    return info

  monkeypatch.setattr(prepare, 'assemble', overtaken)
  with pytest.raises(ValueError, match='holds something else'):
    prepared('patients=24,slices=1', out)


def test_embedded_settings_are_the_defaults_of_the_config():
  fields = trees.config().data.to_dict()
  embedded = prepare.phantom_config('', 16, '/out').to_dict()
  different = {k for k in fields if fields[k] != embedded[k]}
  assert fields.keys() == embedded.keys()
  assert different == {'source', 'out'}


def test_drawing_takes_milliseconds():
  start = time.process_time()
  for patient in range(20):
    phantom.draw(SMALL, patient, 0)
  assert (time.process_time() - start) / 20 < 0.02  # 2 ms; a slow machine's 20


def test_pixel_neighbours_find_it_neither_easy_nor_hopeless(cache):
  ds = dataset.open_dataset(prepare.prepared_phantom('patients=160,slices=3'))
  x = ds.images.reshape(len(ds.images), -1).astype(np.float32)
  y = dataset.labels(ds)
  train, test = (dataset.rows(ds, 'grouped', p) for p in ('train', 'test'))
  score = (
    KNeighborsClassifier(1).fit(x[train], y[train]).score(x[test], y[test])
  )
  assert 0.45 < score < 0.85  # .70 at the default size; this one is smaller

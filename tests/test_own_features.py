"""A table of features that others computed, where an encoder may stand."""

import importlib
import logging

from fakes import PHANTOM
import numpy as np
import pandas as pd
import pytest

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import prepare
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features, own_features
from micdiffrep_jax.studies import folds

D = 5


@pytest.fixture(scope='module')
def ds():
  return data.open_dataset(prepare.resolve(PHANTOM))


def oracle(ds):
  """Features (N, D) that tell the class, and little else."""
  rng = np.random.default_rng(0)
  x = rng.normal(0, 0.1, (len(ds.images), D))
  x[np.arange(len(x)), data.labels(ds)] += 3
  return x.astype(np.float32)


def save(tmp_path, ids, found, **more):
  path = str(tmp_path / 'theirs.npz')
  np.savez(path, id=ids, features=found, **more)
  return path


@pytest.mark.parametrize(
  'ending', ['csv', pytest.param('parquet', marks=pytest.mark.needs('pyarrow'))]
)
def test_all_forms_of_a_table_are_the_same(ending, tmp_path):
  x = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
  ids, who, label = ['007', 'b', 'c'], ['p1', 'p1', ''], ['x', 'y', '']
  want = own_features.read(
    save(tmp_path, ids, x, patient=who, label=label), 'flag'
  )
  frame = pd.DataFrame({'id': ids, 'group': who, 'label': label})
  path = str(tmp_path / f'theirs.{ending}')
  if ending == 'csv':
    frame[['f0', 'f1']] = x
    frame.to_csv(path, index=False)
  else:
    frame['features'] = list(x)
    frame.to_parquet(path)
  found = own_features.read(path, 'flag')
  for name in ('ids', 'groups', 'labels'):
    assert getattr(found, name).tolist() == getattr(want, name).tolist()
  np.testing.assert_allclose(found.features, want.features)
  assert found.features.shape == (3, 1, 1, 2)
  assert own_features.is_table(path)


@pytest.mark.parametrize(
  ('ids', 'found', 'words'),
  [
    (['a', 'a'], np.ones((2, 3)), r"1 id stand more than once, e.g. 'a'"),
    (['a', 'b'], np.ones((2, 3), int), 'type int64'),
    (['a', 'b'], np.ones((2, 2, 3, 3)), r'shape \(2, 2, 3, 3\)'),
    (['a', 'b'], np.array([[1.0], [np.inf]]), 'not finite'),
  ],
)
def test_a_table_of_another_form_is_refused(ids, found, words, tmp_path):
  path = save(tmp_path, ids, found)
  with pytest.raises(ValueError, match=f'{words}.*--config.checkpoint'):
    encoders.load_encoder(path)


def test_rows_find_their_images_by_id_and_are_pooled(ds, tmp_path):
  ids = ds.manifest['id']
  order = np.random.default_rng(0).permutation(len(ids))
  maps = np.random.default_rng(1).normal(size=(len(ids), 4, 4, D))
  path = save(tmp_path, ids[order], maps[order])
  encoder = encoders.load_encoder(path)
  rows = np.array([7, 2, 30])
  found = features.extract(encoder, ds, rows, grid=2, batch_size=8)
  want = maps[rows].reshape(3, 2, 2, 2, 2, D).mean((2, 4))
  np.testing.assert_allclose(found['features'], want, atol=2e-3)


def test_what_does_not_match_is_counted(ds, tmp_path, caplog):
  ids = np.array([*ds.manifest['id'][3:], 'stranger'])
  who = np.array([*ds.manifest['group'][3:], 'x'])
  first = ds.manifest['group'] == ds.manifest['group'][3]
  other = np.flatnonzero(~first)[-1]
  who[other - 3] = who[0]  # the table joins two patients
  path = save(tmp_path, ids, np.ones((len(ids), D)), group=who)
  encoder = encoders.load_encoder(path)
  with caplog.at_level(logging.INFO):
    met = features.meet(encoder, ds, np.arange(3, 9))
  n = len(ds.images)
  assert met.info.facts == {
    'table_rows': n - 2,
    'table_id_not_in_data': 1,
    'images_not_in_table': 3,
    'table_groups_split': 1,
  }
  assert f'features of {n - 3} of {n} images' in caplog.text
  assert "e.g. 'stranger'" in caplog.text
  assert 'may share a patient' in caplog.text
  with pytest.raises(ValueError, match=r'lacks 2 of 4 images.*--config'):
    features.meet(encoder, ds, np.arange(1, 5))


def test_labels_that_differ_are_refused(ds, tmp_path):
  label = ds.manifest['class'].copy()
  label[:2] = label[:2][::-1] if label[0] != label[1] else 'other'
  x = np.ones((len(label), D))
  path = save(tmp_path, ds.manifest['id'], x, label=label)
  encoder = encoders.load_encoder(path)
  with pytest.raises(ValueError, match=r'2 of \d+ labels .* are not those'):
    features.meet(encoder, ds, np.arange(3))


def test_a_table_has_no_twin_of_random_weights(ds, tmp_path):
  path = save(tmp_path, ds.manifest['id'], oracle(ds))
  encoder = encoders.load_encoder(path)
  assert list(encoders.with_twin(encoder, True, 0)) == ['']
  with pytest.raises(ValueError, match='--config.random_encoder'):
    encoders.random_encoder(encoder)


def test_a_cross_validation_of_a_table_is_as_good_as_its_features(ds, tmp_path):
  config = importlib.import_module('configs.cross_validate').get_config('test')
  x = oracle(ds)
  rng = np.random.default_rng(1)
  paths = [
    save(tmp_path, ds.manifest['id'], x),
    str(tmp_path / 'blind.csv'),
  ]
  blind = pd.DataFrame(rng.normal(size=x.shape))
  blind.insert(0, 'id', ds.manifest['id'])
  blind.to_csv(paths[1], index=False)
  config.checkpoints, config.data.path = tuple(paths), PHANTOM
  config.heads, config.floors = ('knn',), ('majority',)
  config.random_encoder = True
  results = folds.run(config.lock(), str(tmp_path / 'out'))
  rows = {row['encoder']: row for row in results['rows']}
  assert set(rows) == {*paths, ''}
  value = {k: row['all']['accuracy']['value'] for k, row in rows.items()}
  assert value[paths[0]] == 1.0
  assert value[paths[1]] < 0.6
  assert rows[paths[0]]['images_not_in_table'] == 0

"""A classifier as a folder of the model hubs."""

import dataclasses
import json
import os
import sys
import types

import numpy as np
import pytest
import tiny_bundle

import micdiffrep_jax as mdr
from micdiffrep_jax.bundle import classifier, fingerprints, hub
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.run import archive

pytestmark = pytest.mark.needs('safetensors')


def score(value):
  return {'value': value, 'low': value - 0.1, 'high': value + 0.1}


def test_part(value):
  scores = {x: score(value) for x in ('accuracy', 'balanced_accuracy')}
  rest = {'per_class': {}, 'classes': [], 'confusion': []}
  return {'all': {'n': 30, 'groups': 9, **scores, **rest}}


test_part.__test__ = False
RESULTS = {
  'bundle': 'mlp_concat',
  'rows': {
    'mlp_concat': {'test': test_part(0.812)},
    'knn': {'test': test_part(0.7)},
    'random/mlp_concat': {'test': test_part(0.5)},
    'floor/majority': {'test': test_part(0.3)},
  },
  'origins': ('crystal_clean',),
  'data': {
    'path': '/home/someone/secret',
    'split': 'patient',
    'images': {'train': 1200, 'val': 20, 'test': 30},
    'patients': {'images': 1250, 'unknown': 0, 'patients': 77},
  },
}


def known():
  small = np.full((2, 24, 24), 200, np.uint8)
  found = fingerprints.empty()
  return found._replace(hashes=np.array([3, 2**63 + 1], np.uint64), small=small)


@pytest.fixture(scope='module')
def model():
  return tiny_bundle.model()._replace(fingerprints=known())


@pytest.fixture
def folder(tmp_path, model):
  path = str(tmp_path / 'hub')
  hub.write(path, model, 'float16', RESULTS, 'apache-2.0')
  return path


def test_it_holds_what_the_file_holds(folder, model, tmp_path):
  file = str(tmp_path / 'bundle.npz')
  classifier.write(file, model, 'float16')
  want, have = archive.read(file), archive.read(folder)
  del want[0]['json']
  assert have[0].keys() == want[0].keys()
  for name, x in want[0].items():
    assert have[0][name].dtype == x.dtype
    np.testing.assert_array_equal(have[0][name], x)
  for part in want[1]:
    assert have[1][part] == want[1][part]
  assert (tmp_path / 'hub').is_dir()


def test_what_is_done_to_pictures_stands_in_a_file_of_its_own(folder):
  with open(f'{folder}/preprocessor_config.json') as f:
    assert json.load(f) == {'size_px': 16, 'channels': 1}
  with open(f'{folder}/config.json') as f:
    assert 'size_px' not in json.load(f)['meta']


def test_it_is_a_bundle_wherever_one_is_read(folder, model):
  images = tiny_bundle.images(3)
  loaded = mdr.load(folder)
  want = classifier.bundle_predict(model, images)
  np.testing.assert_allclose(loaded.predict_proba(images), want, atol=5e-3)
  assert encoders.is_bundle(folder)
  info = encoders.load_encoder(folder).info
  with open(f'{folder}/config.json') as f:
    assert info.sha256 == json.load(f)['weights_sha256']


def test_its_card_tells_data_numbers_floors_and_limits(folder):
  with open(f'{folder}/README.md') as f:
    card = f.read()
  assert card.startswith('---\nlicense: apache-2.0\n')
  for words in (
    'Research use only',
    '* Sources: crystal_clean.',
    '1,200 train, 20 val, 30 test',
    '77 patients, all known',
    'no two parts share a known patient, near-duplicates or copies',
    '| **MSFA (MLP, all layers)** | 81.2 [71.2, 91.2] |',
    '| random weights: MSFA (MLP, all layers) | 50.0 [40.0, 60.0] |',
    '| floor: majority class | 30.0 [20.0, 40.0] |',
    'small copies of training pictures',
  ):
    assert words in card
  assert 'nearest neighbours' not in card
  assert 'Not better' not in card
  assert 'Phantoms' not in card
  assert 'secret' not in card


def test_its_card_hides_neither_labels_nor_phantoms_nor_a_better_floor(model):
  info = dataclasses.replace(
    model.encoder.info, images_seen=320, facts={'supervised': True}
  )
  rows = {**RESULTS['rows'], 'floor/majority': {'test': test_part(0.812)}}
  results = {**RESULTS, 'rows': rows, 'origins': ('phantom',)}
  seen = model._replace(encoder=model.encoder._replace(info=info))
  card = hub.card(seen, results, '')
  for words in (
    'pretrained with labels on 320 images',
    'Phantoms are generated pictures',
    'Not better, by accuracy on all images, than floor: majority class.',
  ):
    assert words in card


def test_the_call_that_a_card_shows_has_features_of_the_head(model):
  card, info = hub.card(model, RESULTS, ''), model.head.info
  said = f"t={info.timestep}, layers='all', cells={info.grid})"
  assert said in card


def test_a_licence_that_is_not_stated_is_called_so(model):
  assert 'license: unknown' in hub.card(model, RESULTS, '')


def test_weights_of_another_model_are_refused(folder):
  path = f'{folder}/model.safetensors'
  with open(path, 'rb') as f:
    raw = bytearray(f.read())
  raw[-1] ^= 1
  with open(path, 'wb') as f:
    f.write(raw)
  with pytest.raises(ValueError, match='sha256'):
    classifier.load_bundle(folder)


@pytest.mark.parametrize(
  ('name', 'part', 'field', 'value'),
  [
    ('config.json', 'head', 'timestep', 4),
    ('config.json', 'meta', 'low_confidence', 0.9),
    ('preprocessor_config.json', '', 'size_px', 32),
  ],
)
def test_a_text_that_was_changed_is_refused(folder, name, part, field, value):
  with open(f'{folder}/{name}') as f:
    text = json.load(f)
  (text[part] if part else text)[field] = value
  with open(f'{folder}/{name}', 'w') as f:
    json.dump(text, f)
  with pytest.raises(ValueError, match='was changed'):
    classifier.load_bundle(folder)


def test_pushing_is_one_call_of_the_hubs_package(
  folder, tmp_path, monkeypatch, caplog
):
  calls = []

  class HfApi:
    def create_repo(self, **arguments):
      calls.append(('create_repo', arguments))

    def upload_folder(self, **arguments):
      calls.append(('upload_folder', arguments))
      return 'https://hub/someone/model'

  fake = types.SimpleNamespace(HfApi=HfApi)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
  assert hub.push(folder, 'someone/model') == 'https://hub/someone/model'
  assert calls == [
    (
      'create_repo',
      {'repo_id': 'someone/model', 'private': True, 'exist_ok': True},
    ),
    ('upload_folder', {'folder_path': folder, 'repo_id': 'someone/model'}),
  ]
  assert 'small copies of training pictures' in caplog.text
  with pytest.raises(ValueError, match='--config.hub=FOLDER'):
    hub.push(str(tmp_path), 'someone/model')
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(ValueError, match=r'micdiffrep_jax\[hub\]'):
    hub.push(folder, 'someone/model')


@pytest.mark.parametrize(
  'name', ['model.safetensors', 'config.json', 'preprocessor_config.json']
)
def test_a_folder_that_lacks_a_file_names_it(folder, name):
  os.unlink(os.path.join(folder, name))
  for load in (mdr.load, encoders.load_encoder, classifier.load_bundle):
    with pytest.raises(ValueError, match=f'lacks {name};'):
      load(folder)


def test_without_its_package_a_folder_names_it(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, 'safetensors', None)
  with pytest.raises(ValueError, match=r'micdiffrep_jax\[hub\]'):
    classifier.load_bundle(folder)

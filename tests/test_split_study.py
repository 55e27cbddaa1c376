"""The table of splits, on made-up probe results and a small phantom."""

import csv
import dataclasses
import os

import numpy as np
import pytest

from configs import splits as splits_config
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import prepare
from micdiffrep_jax.encoders.encoder import EncoderInfo
from micdiffrep_jax.run import files
from micdiffrep_jax.studies import probe, splits

PHANTOM = 'phantom:size_px=16,patients=40,slices=3'


@pytest.fixture(scope='module')
def ds():
  return data.open_dataset(prepare.resolve(PHANTOM))


def get_config(**changes):
  config = splits_config.get_config('test')
  config.checkpoint = 'fake'
  config.probe.data.path = PHANTOM
  config.update_from_flattened_dict(changes)
  return config.lock()


def record(value):
  score = {'value': value, 'low': value - 0.1, 'high': value + 0.1}
  both = {'accuracy': score, 'balanced_accuracy': score}
  of = {'n': 9, 'groups': 9, 'per_class': {}, 'classes': [], 'confusion': []}
  return {'rows': {'knn': {'test': {'all': {**of, **both}}}}}


VALUES = {'leaky': 0.95, 'paper': 0.8, 'grouped': 0.75, 'patient': 0.7}


def test_a_row_tells_what_a_split_is_worth_against_the_honest_one():
  records = {('', name): record(value) for name, value in VALUES.items()}
  table = splits.compare(records)
  accuracy = {r.split: r for r in table if r.metric == 'accuracy'}
  for name, worth in (('paper', 0.1), ('patient', 0.0), ('leaky', 0.25)):
    assert accuracy[name].value == VALUES[name]
    assert accuracy[name].minus_patient == pytest.approx(worth)
  alone = splits.compare({('', 'leaky'): record(0.9)})
  assert np.isnan(alone[0].minus_patient)


@pytest.mark.parametrize('split', ['paper', 'patient', 'leaky'])
def test_test_images_that_pretraining_drew_are_counted(ds, split):
  info = EncoderInfo(16, 1, fingerprint=ds.fingerprint, split='patient')
  found = splits.drawn_in_pretraining(info, ds, split)
  drawn = {
    i for i, part in enumerate(ds.manifest['patient']) if part == 'train'
  }
  labelled = set(np.flatnonzero(ds.manifest['class'] != ''))
  test = {i for i, part in enumerate(ds.manifest[split]) if part == 'test'}
  test &= labelled
  kin = {ds.manifest['group'][i] for i in drawn}
  assert found.images == len(test)
  assert found.seen == len(test & drawn)
  assert found.relatives == sum(ds.manifest['group'][i] in kin for i in test)
  said = str(found)
  assert (
    said == 'none' if split == 'patient' else str(len(test & drawn)) in said
  )
  elsewhere = dataclasses.replace(info, fingerprint='')
  other = splits.drawn_in_pretraining(elsewhere, ds, split)
  assert other.seen is None
  assert 'unknown' in str(other)


def test_each_split_is_probed_once_with_its_encoder_and_the_table_says_it(
  ds, tmp_path, monkeypatch, capsys
):
  runs, controls, layers = [], [], []

  def fake_probe(config, workdir):
    runs.append((config.data.split, config.checkpoint, config.allow_seen_test))
    controls.append((bool(config.floors), config.random_encoder))
    layers.append(config.layers)
    split = 'paper' if config.checkpoint == 'own' else 'patient'
    info = EncoderInfo(16, 1, fingerprint=ds.fingerprint, split=split)
    found = {**record(VALUES[config.data.split]), 'encoder': info, 'data': {}}
    return files.write_results(workdir, found, config)

  monkeypatch.setattr(probe, 'run', fake_probe)
  config = get_config(**{'checkpoints.paper': 'own', 'others': ('more',)})
  config.probe.layers = ('mid',)
  results = splits.run(config, str(tmp_path))
  assert runs == [
    ('leaky', 'fake', True),
    ('paper', 'own', True),
    ('grouped', 'fake', True),
    ('patient', 'fake', True),
    *((name, 'more', True) for name in VALUES),
  ]
  assert layers == [('mid',)] * 4 + [()] * 4  # all of the other
  assert controls == [(True, True)] * 4 + [(False, False)] * 4
  splits.run(config, str(tmp_path))
  assert len(runs) == 8
  seen = results['test_images_in_pretraining']
  assert seen['paper']['seen'] == seen['patient']['seen'] == 0
  assert seen['leaky']['seen'] > 0
  text = capsys.readouterr().out
  assert '95.0 [85.0, 105.0] (+25.0)' in text
  assert f'leaky: {seen["leaky"]["seen"]} of' in text
  with open(os.path.join(tmp_path, 'splits.csv')) as f:
    assert len(list(csv.DictReader(f))) == len(results['table']) == 16


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'checkpoint': ''}, r'--config\.checkpoints\.leaky'),
    ({'splits': ()}, r'--config\.splits'),
    ({'splits': ('grouped', 'leeky')}, r"'leaky'"),
    ({'others': ('a',), 'other_layers': ('x', 'y')}, r'--config\.other_layers'),
    ({'probe.grids': (3,)}, r'--config\.grids'),
  ],
)
def test_a_bad_config_is_refused_with_its_flag(tmp_path, changes, words):
  with pytest.raises(ValueError, match=words):
    splits.run(get_config(**changes), str(tmp_path))

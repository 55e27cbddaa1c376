"""Probes a fake encoder whose layers are known to be good, poor or noise."""

import dataclasses
import importlib.util
import json
import os

from fakes import PHANTOM, classify, fake_encoder, quadrants, use_fake
import jax
import numpy as np
import pytest

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders import features
from micdiffrep_jax.heads import head_file
from micdiffrep_jax.scores import metrics
from micdiffrep_jax.studies import base, probe

KINDS, PARTS = ('linear', 'mlp'), ('single', 'concat')


def get_config(**changes):
  spec = importlib.util.spec_from_file_location('probe', 'configs/probe.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config('test')
  config.checkpoint = 'fake'
  config.data.path = PHANTOM
  config.grids = (1, 4)
  config.classic = ('logistic', 'knn', 'kernel')
  config.heads.epochs = 15
  config.update_from_flattened_dict(changes)
  return config.lock()


@pytest.fixture(scope='module')
def ds():
  return quadrants()


@pytest.fixture(scope='module')
def finished(tmp_path_factory, ds):
  """One whole run, looked at from several sides."""
  workdir = str(tmp_path_factory.mktemp('probe'))
  with pytest.MonkeyPatch.context() as patch:
    use_fake(patch, ds)
    results = probe.run(get_config(), workdir)
  return workdir, results


def test_the_informative_layer_and_pooling_are_chosen(finished):
  _, results = finished
  for name in ('linear_single', 'mlp_single'):
    chosen = results['rows'][name]['chosen']
    assert chosen['layers'] == ['image']
    assert chosen['grid'] == 4
  scores = [t['score'] for t in results['trials']['encoder']]
  rows = results['rows']
  best = {rows[f'{k}_{p}']['chosen']['score'] for k in KINDS for p in PARTS}
  assert max(best) == max(scores)
  blind = rows['random/mlp_concat']['test']['all']['accuracy']['value']
  assert blind < 0.5 < rows['mlp_concat']['test']['all']['accuracy']['value']
  assert len(scores) == 2 * 4 * 2  # grids x (layers + all) x kinds


def test_every_row_is_reported_and_written(finished):
  workdir, results = finished
  heads = {'linear_single', 'linear_concat', 'mlp_single', 'mlp_concat'}
  heads |= {'logistic', 'knn', 'kernel'}
  floors = {'floor/majority', 'floor/nearest_pixels'}
  assert set(results['rows']) == heads | {f'random/{h}' for h in heads} | floors
  with open(os.path.join(workdir, 'results.json')) as f:
    assert json.load(f)['rows'] == results['rows']
  names = 'confusion.png reliability.png decision.png decision.csv'.split()
  for name in (*names, 'head.npz', 'head.json'):
    assert os.path.getsize(os.path.join(workdir, name)) > 500
  assert not os.path.exists(os.path.join(workdir, 'features'))
  for row in results['rows'].values():
    assert {'all', 'all_without_normal'} <= set(row['test'])
  assert len(results['rows']['mlp_concat']['seeds']['accuracy']['each']) == 3
  table = results['two_by_two']['encoder']
  assert (
    table['mlp']['concat']['value']
    == (results['rows']['mlp_concat']['test']['all']['accuracy']['value'])
  )
  pairs = {(c['row_a'], c['row_b']) for c in results['comparisons']}
  assert ('mlp_concat', 'mlp_single') in pairs
  assert ('mlp_concat', 'random/mlp_concat') in pairs


def test_predictions_reproduce_the_reported_accuracy(finished, ds):
  workdir, results = finished
  path = os.path.join(workdir, 'predictions.npz')
  with np.load(path, allow_pickle=False) as z:
    assert (z['test.index'] == data.rows(ds, 'patient', 'test')).all()
    assert (z['test.label'] == data.labels(ds)[z['test.index']]).all()
    for name, row in results['rows'].items():
      probs = z[f'test.probs.{name}'].astype(np.float64)
      got = metrics.value('accuracy', z['test.label'], probs)
      want = row['test']['all']['accuracy']['value']
      assert got == pytest.approx(want), name


def test_the_bundle_alone_gives_the_same_probabilities(finished, ds):
  workdir, _ = finished
  head = head_file.load(workdir)
  rows = data.rows(ds, 'patient', 'test')
  order = np.random.default_rng(0).permutation(len(rows))
  got = classify(head, fake_encoder(ds), ds, rows[order])
  with np.load(os.path.join(workdir, 'predictions.npz')) as z:
    want = z['test.probs.mlp_concat'][order]
  # Another batch size sums in another order, and features are float16.
  np.testing.assert_allclose(got, want, atol=2e-3)
  assert head.info.classes == ds.classes


def test_test_labels_cannot_move_anything_but_the_scores(
  finished, ds, tmp_path, monkeypatch
):
  use_fake(monkeypatch, ds)
  # With test labels shuffled, every choice and prediction stays as it was.
  workdir, _ = finished
  test = data.rows(ds, 'patient', 'test')
  column = ds.manifest['class'].copy()
  column[test] = np.random.default_rng(0).permutation(column[test])
  shuffled = ds._replace(manifest={**ds.manifest, 'class': column})
  monkeypatch.setattr(data, 'open_dataset', lambda *_: shuffled)
  again = str(tmp_path)
  probe.run(get_config(), again)
  paths = [os.path.join(w, 'predictions.npz') for w in (workdir, again)]
  with np.load(paths[0]) as a, np.load(paths[1]) as b:
    assert (a['test.label'] != b['test.label']).any()
    for name in a.files:
      if '.probs.' in name:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_fitting_is_handed_no_test_label(ds):
  parts = base.labelled_parts(ds, 'patient')
  assert (parts.labels[parts.test] == -1).all()
  seen = np.concatenate([parts.train, parts.val])
  assert (parts.labels[seen] == data.labels(ds)[parts.rows[seen]]).all()


def test_an_encoder_that_may_have_seen_test_images_is_refused(ds):
  info = fake_encoder(ds, split='paper').info
  with pytest.raises(ValueError, match=r'--config\.data\.split=paper'):
    base.seen_in_pretraining(info, ds, 'patient', allow=False)
  allowed = base.seen_in_pretraining(info, ds, 'patient', allow=True)
  assert allowed.startswith('maybe')
  assert base.seen_in_pretraining(info, ds, 'paper', False) == 'no'
  other = dataclasses.replace(info, fingerprint='x')
  assert 'unknown' in base.seen_in_pretraining(other, ds, 'paper', False)
  spared = dataclasses.replace(
    info, spared={'patient': data.split_hash(ds, 'patient')}
  )
  assert base.seen_in_pretraining(spared, ds, 'patient', False) == 'no'


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'checkpoint': ''}, r'--config\.checkpoint'),
    ({'grids': (3,)}, r'--config\.grids'),
    ({'timesteps': ()}, r'--config\.timesteps'),
    ({'heads.kinds': ('linear,mlp',)}, r'--config\.heads\.kinds'),
    ({'heads.kinds': ('linear',)}, r'--config\.bundle'),
    ({'floors': ('majorty',)}, "'majority'"),
    ({'criterion': 'auc'}, r'--config\.criterion'),
    ({'select': 'test'}, r'--config\.select'),
    ({'select': 'accuracy'}, r'--config\.criterion'),
    ({'layers': ('image2',)}, r'--config\.layers'),
    ({'timesteps': (100,)}, r'--config\.timesteps'),
    ({'normal_class': 'N'}, r'--config\.normal_class'),
  ],
)
def test_a_bad_config_is_refused_with_its_flag(
  tmp_path, monkeypatch, ds, changes, words
):
  use_fake(monkeypatch, ds)
  with pytest.raises(ValueError, match=words):
    probe.run(get_config(**changes), str(tmp_path))


@pytest.mark.parametrize('preset', ['', 'paper', 'test'])
def test_presets_pass_their_own_checks(preset):
  spec = importlib.util.spec_from_file_location('probe', 'configs/probe.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(preset)
  config.checkpoint = 'somewhere'
  probe.check(config)


@pytest.mark.slow
def test_heads_see_a_fresh_view_each_epoch_and_are_scored_without(
  tmp_path, monkeypatch, ds
):
  use_fake(monkeypatch, ds)
  config = get_config(
    keep_features=True,
    random_encoder=False,
    grids=(4,),
    seeds=(0,),
    classic=(),
    floors=(),
    **{
      'heads.kinds': ('mlp',),
      'online.views': 3,
      'online.augment.brightness': 0.2,
    },
  )
  results = probe.run(config, str(tmp_path))
  rows = results['rows']
  assert rows['mlp_concat']['test']['all']['accuracy']['value'] > 0.4
  parts = base.labelled_parts(ds, 'patient')
  cache = feature_cache.Cache(
    str(tmp_path / 'features/encoder'), ('image',), (10,), 3
  )
  x = feature_cache.training_matrix(cache, 10, ('image',), 4, parts.train)
  plain = feature_cache.matrix(cache, 10, ('image',), 4)
  assert x.shape == (3, *plain.shape)
  others = np.setdiff1d(np.arange(len(plain)), parts.train)
  for one in x:
    np.testing.assert_array_equal(one[others], plain[others])
    assert (one[parts.train] != plain[parts.train]).any(1).mean() > 0.9
  assert (x[0, parts.train] != x[1, parts.train]).any(1).mean() > 0.9
  got = classify(
    head_file.load(str(tmp_path)), fake_encoder(ds), ds, parts.rows[parts.test]
  )
  with np.load(tmp_path / 'predictions.npz') as z:
    want = z['test.probs.mlp_concat']
  np.testing.assert_allclose(got, want, atol=2e-3)


def test_a_view_is_the_image_augmented_as_its_key_says(ds):
  encoder = fake_encoder(ds)
  still, moved = (
    feature_cache.make_view_fn(
      encoder.method,
      ('mean',),
      1,
      get_config(
        **{'online.augment.flip': 0.0, 'online.augment.brightness': most}
      ).online.augment,
    )
    for most in (0.0, 0.25)
  )
  images = ds.images[:32]
  seeds = features.image_seeds(images)
  key, t = jax.random.key(0), np.int32(0)
  call = lambda fn, at: np.asarray(  # noqa: E731
    fn(encoder.variables, images[at], seeds[at], key, t)['mean']
  ).ravel()
  everything = np.arange(32)
  before, after = call(still, everything), call(moved, everything)
  want = (images / 255).mean((1, 2, 3))
  np.testing.assert_allclose(before, want, atol=1e-5)
  # Brightness adds at most a quarter of the range, to what is not black.
  assert np.abs(after - before).max() <= 0.25 + 1e-3
  assert np.abs(after - before).max() > 0.05
  np.testing.assert_array_equal(call(moved, everything[::-1])[::-1], after)

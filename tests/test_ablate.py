"""Studies a fake encoder whose layers are known to be good, poor or noise."""

import csv
import dataclasses
import json
import os
import shutil

from fakes import fake_encoder, quadrants, study_config, use_fake
import jax
import numpy as np
import pytest
from test_fit_heads import alone

from configs import ablate as ablate_config
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders import features
from micdiffrep_jax.heads.matrix import Features
from micdiffrep_jax.heads.trained import Cell, Options
from micdiffrep_jax.run.keys import stream
from micdiffrep_jax.studies import ablate, base, grid


def get_config(**changes):
  return study_config(ablate_config, **changes)


@pytest.fixture(scope='module')
def ds():
  return quadrants()


@pytest.fixture(scope='module')
def finished(tmp_path_factory, ds):
  """One whole run with its features kept."""
  workdir = str(tmp_path_factory.mktemp('ablate'))
  with pytest.MonkeyPatch.context() as patch:
    use_fake(patch, ds)
    results = ablate.run(get_config(keep_features=True), workdir)
  return workdir, results


def heads_of(workdir):
  with open(os.path.join(workdir, 'grid.json')) as f:
    return json.load(f)['heads']['encoder']


def cache_of(workdir):
  folder = os.path.join(workdir, 'timesteps', 'encoder', 'features')
  return feature_cache.Cache(folder, ('noise', 'mean', 'image'), (1, 51))


def test_every_cell_of_the_grid_is_scored_and_the_good_layer_chosen(finished):
  workdir, results = finished
  heads = heads_of(workdir)
  # timesteps x grids x heads x (layers + all of them) x seeds
  assert len(heads) == 2 * 2 * 2 * (3 + 1) * 2
  assert len({json.dumps(h) for h in heads}) == len(heads)
  with open(os.path.join(workdir, 'grid.csv')) as f:
    assert len(list(csv.DictReader(f))) == len(heads)
  for kind in ('linear', 'mlp'):
    chosen = results['rows'][f'{kind}_single']['chosen']
    assert chosen['layers'] == ['image']
    assert chosen['grid'] == 4
    assert set(results['two_by_two']['encoder'][kind]) == {'single', 'concat'}
  for name in ('figure4', 'figure4_mlp', 'figure4_grid1', 'heatmap_mlp_grid4'):
    assert os.path.getsize(os.path.join(workdir, f'{name}.png')) > 5000
  assert 'low' in results['rows']['mlp_concat']['test']['all']['accuracy']


def test_the_choice_has_the_best_mean_over_seeds(finished):
  workdir, results = finished
  for row, kind, many in (
    ('linear_single', 'linear', False),
    ('mlp_concat', 'mlp', True),
  ):
    scores = {}
    for h in heads_of(workdir):
      if h['kind'] == kind and (len(h['layers']) > 1) == many:
        cell = (*h['layers'], h['timestep'], h['grid'], h['learning_rate'])
        scores.setdefault(cell, []).append(h['accuracy'])
    best = max(np.mean(s) for s in scores.values())
    assert results['rows'][row]['chosen']['score'] == pytest.approx(best)


@pytest.mark.parametrize('kind', ['linear', 'mlp'])
def test_a_head_of_the_grid_equals_one_trained_alone(finished, ds, kind):
  workdir, _ = finished
  config = get_config()
  parts = base.labelled_parts(ds, 'patient')
  mine = [
    h
    for h in heads_of(workdir)
    if h['kind'] == kind and h['timestep'] == '1' and h['grid'] == 4
  ]
  options = Options(kind, hidden=8, epochs=12, batch_size=32)
  y = parts.labels[parts.val]
  seen = np.concatenate([parts.train, parts.val])
  for h in mine[::3]:
    x = feature_cache.matrix(cache_of(workdir), 1, h['layers'], 4)[seen]
    train = x[parts.train].astype(np.float64)
    std = train.std(0)
    std = np.maximum(std, 1e-3 * np.median(std) + 1e-8)
    matrix = Features(
      x, train.mean(0).astype(np.float32), (1 / std).astype(np.float32)
    )
    _, _, logits = alone_of_classes(
      matrix, parts, h['seed'], h['learning_rate'], options, len(ds.classes)
    )
    accuracy = (np.asarray(logits).argmax(1) == y).mean()
    # Sums in another order may move one image over a boundary.
    assert abs(accuracy - h['accuracy']) < 1.5 / len(y)
  assert len({h['accuracy'] for h in mine}) > 3
  assert config.heads.epochs == 12
  assert config.heads.hidden == 8


def alone_of_classes(matrix, parts, seed, rate, options, k):
  """test_fit_heads.alone with k classes."""
  import test_fit_heads

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(test_fit_heads, 'K', k)
    return alone(
      matrix,
      np.maximum(parts.labels[: len(matrix.x)], 0),
      Cell(0, parts.train, seed),
      (rate, 0.0),
      parts.val,
      options,
      len(parts.train),
    )


@pytest.mark.parametrize('side', [1, 2, 4])
def test_cached_features_equal_online_ones_of_the_same_noise(
  finished,
  ds,
  side,
):
  workdir, _ = finished
  parts = base.labelled_parts(ds, 'patient')
  at = np.arange(0, len(parts.rows), 9)
  images = ds.images[parts.rows[at]]
  encoder = fake_encoder(ds)
  key = jax.random.fold_in(stream(jax.random.key(0), 'features'), 0)
  keys = features.image_keys(key, features.image_seeds(images))
  maps = encoder.method.features(encoder.variables, images, keys, 51)
  for name in ('image', 'noise'):
    got = feature_cache.matrix(cache_of(workdir), 51, (name,), side)[at]
    full = np.asarray(maps[name], np.float64)
    n, h, _, c = full.shape
    f = h // side
    want = full.reshape(n, side, f, side, f, c).mean((2, 4)).reshape(n, -1)
    # float16 keeps 11 bits; values are below 4.
    np.testing.assert_allclose(got, want, atol=4e-3)


def test_fused_features_stand_side_by_side(finished):
  workdir, _ = finished
  cache = cache_of(workdir)
  both = feature_cache.matrix(cache, (1, 51), ('image', 'mean'), 4)
  alone_ = [
    feature_cache.matrix(cache, t, ('image', 'mean'), 4) for t in (1, 51)
  ]
  np.testing.assert_array_equal(both, np.concatenate(alone_, 1))
  assert (alone_[0] != alone_[1]).any()
  assert grid.level_name(grid.parse_level('1+51')) == '1+51'


@pytest.mark.slow
def test_an_interrupted_study_goes_on_from_its_finished_timesteps(
  finished,
  ds,
  tmp_path,
  monkeypatch,
):
  use_fake(monkeypatch, ds)
  search, calls, passes = ablate.search, [], []
  extract = features.extract

  def counted(cache, parts, config, level, desc):
    calls.append(level)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return search(cache, parts, config, level, desc)

  def pass_over(encoder, dataset, rows, layers, t, *args, **kwargs):
    passes.append(t)
    return extract(encoder, dataset, rows, layers, t, *args, **kwargs)

  monkeypatch.setattr(ablate, 'search', counted)
  monkeypatch.setattr(features, 'extract', pass_over)
  with pytest.raises(KeyboardInterrupt):
    ablate.run(get_config(), str(tmp_path))
  assert passes == [1, 51]
  results = ablate.run(get_config(), str(tmp_path))
  assert calls == [(1,), (51,), (51,)]
  assert passes == [1, 51]  # one pass per timestep, all in all
  workdir, whole = finished
  assert heads_of(tmp_path) == heads_of(workdir)
  assert results['rows'] == whole['rows']
  assert not os.path.exists(cache_of(tmp_path).folder)


def test_scores_of_other_settings_are_not_taken_for_these(finished, ds):
  workdir, _ = finished
  encoder = fake_encoder(ds)
  layers = ('noise', 'mean', 'image')
  path = os.path.join(workdir, 'timesteps', 'encoder', 't1.json')

  def known(encoder=encoder, name='', seed=0, **changes):
    source = base.Source(
      name, '', encoder, ds, np.arange(1), layers, 1, 1, seed, 1
    )
    key = ablate.key(source, (1,), get_config(**changes))
    return ablate.read(path, key) is not None

  assert known()
  assert known(**{'heads.memory_mb': 1})
  assert known(resamples=7)
  assert not known(**{'heads.epochs': 13})
  assert not known(**{'data.split': 'paper'})
  assert not known(search_seeds=(0,))
  assert not known(draws=2)
  assert known(name='', seed=1)
  assert not known(name='random/', seed=1)
  other = encoder._replace(info=dataclasses.replace(encoder.info, step=2))
  assert not known(encoder=other)
  with open(path) as f:
    cut = f.read()[:-9]
  damaged = path + '.cut'
  with open(damaged, 'w') as f:
    f.write(cut)
  assert ablate.read(damaged, {}) is None


def test_the_search_does_not_read_test_rows(finished, ds, tmp_path):
  workdir, _ = finished
  parts = base.labelled_parts(ds, 'patient')
  folder = str(tmp_path / 'features')
  shutil.copytree(cache_of(workdir).folder, folder)
  with np.load(f'{folder}/t1.npz') as selection:
    entry, test = str(selection['entry']), selection['rows'][parts.test]
  for name in ('noise', 'mean', 'image'):
    x = np.load(f'{folder}/{entry}/{name}.npy', mmap_mode='r+')
    x[test] = np.nan
  cache = cache_of(workdir)._replace(folder=folder)
  spoilt = ablate.search(cache, parts, get_config(), (1,))
  want = [h for h in heads_of(workdir) if h['timestep'] == '1']
  assert ablate.records(spoilt) == want

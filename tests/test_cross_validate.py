"""Encoders side by side on folds of groups, on a fake encoder."""

import csv
import dataclasses
import json
import os
from types import MappingProxyType

from fakes import PHANTOM, fake_encoder, quadrants
import numpy as np
import pytest

from configs import cross_validate as cross_config
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.draw import page
from micdiffrep_jax.draw.result import Run
from micdiffrep_jax.encoders import cache
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.heads import matrix
from micdiffrep_jax.scores.bootstrap import Score
from micdiffrep_jax.studies import (
  base,
  folds,
  folds_table,
  grid,
  page_folds,
  report,
)
from micdiffrep_jax.studies.base import Parts
from micdiffrep_jax.studies.grid import Row
from micdiffrep_jax.studies.page_folds import CrossValidation, Key


def get_config(**changes):
  config = cross_config.get_config('test')
  config.checkpoints = ('sees', 'sees', 'blind')
  config.layers = ('image', 'mean+image', 'noise')
  config.committees = ('sees+blind',)
  config.data.path = PHANTOM
  config.random_encoder = True
  config.update_from_flattened_dict(changes)
  return config.lock()


@pytest.fixture(scope='module')
def ds():
  return quadrants()


@pytest.fixture(scope='module')
def finished(tmp_path_factory, ds):
  workdir = str(tmp_path_factory.mktemp('cross'))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data, 'open_dataset', lambda *_: ds)
    patch.setattr(encoders, 'load_encoder', lambda path, step: fake_encoder(ds))
    results = folds.run(get_config(), workdir)
  return workdir, results


def test_the_encoder_that_sees_is_told_from_the_one_that_does_not(finished):
  _, results = finished
  rows = {(r['encoder'], r['head']): r for r in results['rows']}
  assert next(iter(rows)) == ('sees image, t = 1', 'kernel')
  assert {h for _, h in rows} == {
    'kernel', 'knn', 'random/kernel', 'random/knn',
    'floor/majority', 'floor/nearest_pixels',
  }  # fmt: skip
  first = rows['sees image, t = 1', 'kernel']
  assert first['all']['accuracy']['value'] > 0.8
  assert rows['blind noise, t = 1', 'kernel']['all']['accuracy']['value'] < 0.5
  assert first['chosen'][0]['layers'] == ['image']
  assert len(first['folds']) == len(first['chosen']) == 3
  n = results['data']['predicted']
  images = results['data']['images']
  assert n == images['train'] + images['val']
  # The fake encoder was pretrained on the train part of this split.
  assert first['drawn_in_pretraining'] == images['train']
  for row in rows.values():
    found = row['all']['accuracy']
    assert found['low'] <= found['value'] <= found['high']


def test_the_first_is_compared_with_all_of_its_kind_and_the_floors(finished):
  _, results = finished
  found = {
    (*Key(**c['a'])[:2], *Key(**c['b'])[:2]): c['accuracy']
    for c in results['comparisons']
    if c['images'] == 'all' and '+ blind' not in c['a']['encoder']
  }
  first = ('sees image, t = 1', 'kernel')
  blind = found[*first, 'blind noise, t = 1', 'kernel']
  assert blind['low'] > 0.1
  assert (*first, '', 'floor/majority') in found
  assert (*first, 'sees image, t = 1', 'random/kernel') in found
  assert ('sees image, t = 1', 'knn', '', 'floor/majority') not in found
  assert all(first[0] in key or key[0] == key[2] for key in found)
  assert not any('random' in key[1] for key in found)
  values = {
    (r['encoder'], r['head']): r['all']['accuracy']['value']
    for r in results['rows']
  }
  for (one, its, other, head), c in found.items():  # committees among them
    assert its == head or other in (one, '')
    want = values[one, its] - values[other, head]
    assert c['value'] == pytest.approx(want)


def test_what_is_written_says_the_same(finished, ds):
  workdir, results = finished
  with open(os.path.join(workdir, 'cross_validation.csv')) as f:
    assert len(list(csv.DictReader(f))) >= 2 * len(results['rows'])
  with open(os.path.join(workdir, 'comparisons.csv')) as f:
    assert len(list(csv.DictReader(f))) == 2 * len(results['comparisons'])
  assert os.path.getsize(os.path.join(workdir, 'cross_validation.png')) > 5000
  assert not os.path.exists(os.path.join(workdir, 'features'))
  with np.load(os.path.join(workdir, 'predictions.npz')) as z:
    assert not set(z['index']) & set(data.rows(ds, 'patient', 'test'))
    for i, row in enumerate(results['rows']):
      right = (z[f'probs.{i}'].argmax(1) == z['label']).mean()
      assert right == pytest.approx(row['all']['accuracy']['value'])
  with open(os.path.join(workdir, 'results.json')) as f:
    record = json.load(f)
  blocks = page_folds.blocks(Run('x', workdir, record))
  text = page.markdown('', '', [page.Section('', blocks)])
  assert '| sees image, t = 1, ' in text
  assert 'floor: 1-NN on pixels' in text
  sections = report.compose([Run('x', workdir, record)], False)
  shown = [s.title for s in sections if s.blocks]
  assert 'Cross-validation' in shown
  assert 'Other runs' not in shown
  said = folds_table.text(CrossValidation.from_json(results))
  assert 'blind noise, t = 1' in said


def test_a_committee_says_the_mean_and_is_compared_with_its_members(finished):
  workdir, results = finished
  number = {(r['encoder'], r['head']): i for i, r in enumerate(results['rows'])}
  sees, blind = 'sees image, t = 1', 'blind noise, t = 1'
  both = f'{sees} + {blind}'
  with np.load(os.path.join(workdir, 'predictions.npz')) as z:
    for head in ('kernel', 'knn'):
      each = [z[f'probs.{number[one, head]}'] for one in (sees, blind)]
      got = z[f'probs.{number[both, head]}']
      np.testing.assert_allclose(got, np.mean(each, 0), atol=1e-6)
      right = (got.argmax(1) == z['label']).mean()
      row = results['rows'][number[both, head]]
      assert row['all']['accuracy']['value'] == pytest.approx(right)
  mine = {
    (c['b']['encoder'], c['b']['head'])
    for c in results['comparisons']
    if (c['a']['encoder'], c['a']['head']) == (both, 'knn')
  }
  assert mine == {(sees, 'knn'), (blind, 'knn')}
  assert (
    f'{both}, nearest neighbours, all layers - {blind}'
    in folds_table.text(CrossValidation.from_json(results))
  )


@pytest.mark.parametrize(
  ('text', 'flag'),
  [
    ('sees+other', 'committees'),
    ('sees', 'committees'),
    ('sees+sees', 'committees'),
    ('sees+imagenet', 'floors'),
  ],
)
def test_a_committee_that_is_none_is_refused(text, flag):
  with pytest.raises(ValueError, match=rf'--config\.{flag}'):
    folds.check(get_config(committees=(text,)))


@pytest.fixture
def alone(ds, monkeypatch):
  """One encoder, one head, nothing else."""
  monkeypatch.setattr(data, 'open_dataset', lambda *_: ds)
  monkeypatch.setattr(encoders, 'load_encoder', lambda *_: fake_encoder(ds))
  return get_config(
    checkpoints=('a',), layers=(), heads=('knn',), floors=(),
    random_encoder=False, committees=(),
  )  # fmt: skip


def test_test_labels_and_those_of_the_predicted_fold_are_out_of_reach(
  ds, alone, tmp_path, monkeypatch
):
  seen = []

  def spy(name, found, parts, chosen):
    assert (parts.labels[parts.test] == -1).all()
    assert (parts.labels[parts.train] >= 0).all()
    seen.append(parts.rows)
    even = np.full((len(parts.test), parts.classes), 1 / parts.classes)
    return Row(chosen, even, even[None])

  monkeypatch.setattr(grid, 'finish', spy)
  folds.run(alone, str(tmp_path))
  test = set(data.rows(ds, 'patient', 'test'))
  assert len(seen) == 3
  assert not any(set(rows) & test for rows in seen)


def test_a_stopped_run_goes_on_from_its_features(alone, tmp_path, monkeypatch):
  def stop(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(folds, 'predict', stop)
    with pytest.raises(KeyboardInterrupt):
      folds.run(alone, str(tmp_path))
  monkeypatch.setattr(
    cache.features, 'extract', lambda *_, **__: pytest.fail('again')
  )
  assert folds.run(alone, str(tmp_path))['rows']


def test_a_trained_head_predicts_what_no_fold_showed_it():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 120)
  x = rng.normal(size=(120, 4)) + 4 * np.eye(3, 4)[labels]
  at = np.arange(120)
  whole = Parts(at, at[:90], at[90:], at[:0], labels, 3)
  rotated = folds.rotate(whole, at, 3, 0)
  config = cross_config.get_config('test')
  config.training.epochs = 60
  training = grid.Training(config.training, (0,), True, 'accuracy')
  spot = grid.Spot(('image',), 1, 1)
  probs, told = folds.predict(
    matrix.literal(x.astype(np.float32)), rotated, ('linear',), spot, training
  )
  assert (probs['linear'].argmax(1) == labels).mean() > 0.8
  np.testing.assert_allclose(probs['linear'].sum(1), 1, atol=1e-6)
  assert [one['setting']['learning_rate'] for one in told['linear']] == [
    1e-2
  ] * 3


@pytest.mark.parametrize('validation', ['share', 'all'])
def test_a_share_of_the_labels_is_of_whole_groups(ds, validation):
  whole = base.labelled_parts(ds, 'patient')
  known = np.concatenate([whole.train, whole.val])
  rotated = folds.rotate(whole, data.groups(ds)[whole.rows[known]], 3, 0)
  groups = data.groups(ds)[rotated[0].rows]
  config = get_config(validation=validation)
  few, more = (
    folds.with_labels(rotated, groups, share, config) for share in (0.2, 0.5)
  )
  for full, small, large in zip(rotated, few, more, strict=True):
    np.testing.assert_array_equal(small.test, full.test)
    assert set(small.train) < set(large.train) < set(full.train)
    torn = set(groups[small.train]) & set(
      groups[np.setdiff1d(full.train, small.train)]
    )
    assert not torn
    assert set(small.labels[small.train]) == set(range(full.classes))
    assert (len(small.val) == len(full.val)) == (validation == 'all')
  first, second = (set(groups[part.train]) for part in few[:2])
  assert first != second  # drawn anew


def test_few_labels_stand_beside_all_in_one_table(alone, tmp_path):
  with alone.unlocked():
    alone.fractions = (0.2, 1.0)
    alone.checkpoints = ('a', 'b')
    alone.layers = ('image', 'mean')
    alone.floors = ('majority',)
    alone.committees = ('a+b',)
  results = folds.run(alone, str(tmp_path))
  rows = [Key(r['encoder'], r['head'], r['share']) for r in results['rows']]
  assert len(set(rows)) == len(rows) == 8
  assert {key.share for key in rows} == {0.2, 1.0}
  for c in results['comparisons']:
    assert c['a']['share'] == c['b']['share']
  # The first with three others, the committee with two, at both shares.
  assert len({(str(c['a']), str(c['b'])) for c in results['comparisons']}) == 10
  assert os.path.getsize(tmp_path / 'label_efficiency.png') > 5000
  assert 'a image, t = 1, nearest neighbours, all layers, 20 % of the' in (
    folds_table.text(CrossValidation.from_json(results))
  )
  with open(tmp_path / 'comparisons.csv') as f:
    assert {line['share'] for line in csv.DictReader(f)} == {'0.2', '1.0'}


@pytest.mark.parametrize(
  ('names', 'short'),
  [
    (['a/x mid, t = 1', 'a/y mid, t = 1'], ['x', 'y']),
    (['a/x mid, t = 1', 'b/x mid, t = 1'], ['a/x', 'b/x']),
    (['a/x, t = 1'], ['x, t = 1']),
    (['a/x mid, t = 1', 'a/x up, t = 2', 'a/x mid, t = 1 + imagenet'], None),
  ],
)
def test_names_in_a_picture_are_short_and_differ(names, short):
  found = folds_table.short_names(names)
  assert short is None or list(found.values()) == short
  assert len(set(found.values())) == len(names)


def _row(encoder, images_seen, value, head='knn', share=1.0):
  scores = {'accuracy': Score(value, value - 0.1, value + 0.1)}
  told = {'images_seen': images_seen}
  return page_folds.Row(encoder, head, (), scores, share=share, told=told)


def test_checkpoints_of_a_run_are_a_curve_against_images(tmp_path):
  rows = [
    _row('a/moco/checkpoints/20, t = 1', 2000, 0.6),
    _row('a/moco/checkpoints/10, t = 1', 1000, 0.5),
    _row('a/moco/checkpoints/10, t = 1', 1000, 0.4, share=0.1),
    _row('a/moco/checkpoints/10, t = 1', 1000, 0.3, head='kernel'),
    _row('a/ddpm, t = 1', 1500, 0.7),
    _row('', None, 0.2, head='floor/majority'),
  ]
  series = folds_table.by_images(rows)
  assert {name: line['x'] for name, line in series.items()} == {
    'moco': [1, 2],
    'ddpm': [1.5],
    'floor: majority class': [1, 2],
  }
  assert series['moco']['y'] == [50, 60]
  folds_table.draw_images(str(tmp_path), rows)
  assert os.path.getsize(tmp_path / 'images_drawn.png') > 5000
  assert not folds_table.by_images([rows[0], *rows[4:]])


def test_an_encoder_that_had_labels_is_refused(ds, monkeypatch):
  taught = fake_encoder(ds)
  method = dataclasses.replace(
    taught.method, facts=MappingProxyType({'supervised': True})
  )
  monkeypatch.setattr(
    encoders, 'load_encoder', lambda *_: taught._replace(method=method)
  )
  with pytest.raises(ValueError, match=r"'sees' was trained with labels"):
    folds.candidates(get_config(), ds, np.arange(3))


def test_only_what_pretraining_is_known_to_have_drawn_is_counted(ds):
  rows = data.rows(ds, 'patient', 'val')
  one = folds.Candidate('a', fake_encoder(ds), (), 1, '')
  assert folds.drawn(one, ds, rows) == 0
  train = data.rows(ds, 'patient', 'train')
  assert folds.drawn(one, ds, train) == len(train)
  assert folds.drawn(one._replace(prefix='random/'), ds, train) == 0
  info = dataclasses.replace(one.encoder.info, fingerprint='')
  other = one._replace(encoder=one.encoder._replace(info=info))
  assert folds.drawn(other, ds, rows) is None


@pytest.mark.parametrize(
  ('changes', 'flag'),
  [
    ({'checkpoints': (), 'layers': (), 'floors': ()}, 'checkpoints'),
    ({'checkpoints': ('a', 'a'), 'layers': ()}, 'checkpoints'),
    ({'layers': ('image',)}, 'layers'),
    ({'timesteps': ()}, 'timesteps'),
    ({'heads': ('mpl',)}, 'heads'),
    ({'grid': 3}, 'grid'),
    ({'folds': 2}, 'folds'),
    ({'fractions': ()}, 'fractions'),
    ({'validation': 'none'}, 'validation'),
    ({'floors': ('none',)}, 'floors'),
  ],
)
def test_bad_settings_name_their_flag(changes, flag):
  with pytest.raises(ValueError, match=rf'--config\.{flag}'):
    folds.check(get_config(**changes))


def test_the_grids_are_those_of_a_probe():
  for side in grid.POOLINGS:
    folds.check(get_config(grid=side))


def test_a_twin_stands_beside_its_own_encoder_only():
  keys = [
    Key('a', 'kernel'), Key('a', 'random/kernel'), Key('b', 'kernel'),
    Key('b', 'random/kernel'), Key('', 'floor/majority'),
  ]  # fmt: skip
  assert [b for _, b in folds_table.pairs(keys)] == [keys[1], keys[2], keys[4]]


def test_the_heads_of_one_encoder_stand_against_its_first():
  a, b, c = (Key('a', x) for x in ('kernel', 'kernel_layers', 'random/kernel'))
  d, e = Key('b', 'kernel'), Key('b', 'kernel_layers')
  found = folds_table.pairs([a, b, c, d, e])
  assert {(a, b), (d, e)} < set(found)
  assert len(found) == len(set(found)) == 5  # (a, c), (a, d), (b, e) as before

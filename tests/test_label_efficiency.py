"""Draws of labels, and a study on a fake encoder."""

import csv
import itertools
import os

from fakes import quadrants, study_config, use_fake
import numpy as np
import pytest

from configs import label_efficiency as label_config
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.scores.metrics import HEADLINE
from micdiffrep_jax.studies import base
from micdiffrep_jax.studies import labels as label_efficiency
from micdiffrep_jax.studies.cuts import group_classes, subsets

SHARES = (0.01, 0.05, 0.1, 0.25, 1.0)


@pytest.fixture(scope='module')
def ds():
  return quadrants()


def get_config(**changes):
  return study_config(
    label_config,
    **{
      'fractions': (0.3, 1.0),
      'floors': ('nearest_pixels',),
      'classic': ('logistic', 'knn', 'kernel'),
      'random_encoder': False,
      'timesteps': (1,),
      **changes,
    },
  )


def rows_of_groups(seed=0):
  """Groups of 1 to 7 rows in three classes of unequal size, shuffled."""
  rng = np.random.default_rng(seed)
  sizes = rng.integers(1, 8, 230)
  of_class = np.repeat([0, 1, 2], [150, 60, 20])
  groups = np.repeat(1000 - np.arange(230), sizes)
  labels = np.repeat(of_class, sizes)
  order = rng.permutation(len(groups))
  return labels[order], groups[order]


def groups_by_class(labels, groups, at):
  return [len(np.unique(groups[at][labels[at] == c])) for c in range(3)]


@pytest.mark.parametrize('seed', range(3))
def test_a_draw_is_stratified_and_keeps_groups_whole(seed):
  labels, groups = rows_of_groups()
  for share, at in zip(SHARES, subsets(labels, groups, SHARES, seed)):
    want = [max(1, round(share * g)) for g in (150, 60, 20)]
    assert groups_by_class(labels, groups, at) == want
    kept = set(groups[at])
    rest = np.setdiff1d(np.arange(len(groups)), at)
    assert not kept & set(groups[rest])
  assert len(at) == len(groups)


def test_a_smaller_share_lies_within_a_larger_one_and_draws_differ():
  labels, groups = rows_of_groups()
  draws = [subsets(labels, groups, SHARES, seed) for seed in range(5)]
  for draw in draws:
    for small, large in itertools.pairwise(draw):
      assert set(small) < set(large)
  for i in range(len(SHARES) - 1):
    assert len({draw[i].tobytes() for draw in draws}) == 5
  again = subsets(labels, groups, SHARES, 0)
  assert all((a == b).all() for a, b in zip(again, draws[0]))


def test_a_group_of_two_classes_counts_once_with_the_more_frequent():
  labels = np.array([0, 0, 1, 1, 1, 0, 1])
  groups = np.array([1, 1, 1, 2, 2, 2, 3])
  numbers, of_class = group_classes(labels, groups)
  assert numbers.tolist() == [1, 2, 3]
  assert of_class.tolist() == [0, 1, 1]
  (half,) = subsets(labels, groups, (0.5,), 0)
  # One group of class 0 and one of the two of class 1, each whole.
  assert set(groups[half]) in ({1, 2}, {1, 3})
  assert {0, 1, 2} <= set(half)


@pytest.mark.parametrize('share', [0.0, -0.1, 1.01])
def test_a_share_outside_zero_and_one_is_refused(share):
  with pytest.raises(ValueError, match=r'--config\.fractions'):
    subsets(*rows_of_groups(), (share,), 0)


def test_draws_stay_within_their_parts_and_validation_shrinks_alike(ds):
  parts = base.labelled_parts(ds, 'patient')
  draws = label_efficiency.make_draws(ds, parts, get_config())
  assert [(d.share, d.number) for d in draws] == [
    (0.3, 0), (1.0, 0), (0.3, 1), (1.0, 1)
  ]  # fmt: skip
  for draw in draws:
    assert set(draw.train) <= set(parts.train)
    assert set(draw.val) <= set(parts.val)
    whole = draw.share == 1.0
    assert (len(draw.train) == len(parts.train)) == whole
    assert (len(draw.val) == len(parts.val)) == whole
  every = get_config(validation='all')
  for draw in label_efficiency.make_draws(ds, parts, every):
    assert len(draw.val) == len(parts.val)


def test_sources_alone_are_trained_on_where_asked(ds):
  variant = np.where(np.arange(len(ds.images)) % 3 == 0, '', 'flipped')
  copied = ds._replace(manifest={**ds.manifest, 'variant': variant})
  parts = base.labelled_parts(copied, 'patient')
  config = get_config(sources_only=True, validation='all')
  for draw in label_efficiency.make_draws(copied, parts, config):
    assert (parts.rows[draw.train] % 3 == 0).all()
    assert (parts.rows[draw.val] % 3 == 0).all()


@pytest.fixture(scope='module')
def finished(tmp_path_factory, ds):
  workdir = str(tmp_path_factory.mktemp('labels'))
  with pytest.MonkeyPatch.context() as patch:
    use_fake(patch, ds)
    results = label_efficiency.run(get_config(), workdir)
  return workdir, results


def test_every_method_is_scored_at_every_share(finished):
  workdir, results = finished
  methods = {
    'linear_concat', 'mlp_concat', 'logistic', 'knn', 'kernel',
    'floor/nearest_pixels',
  }  # fmt: skip
  images = {c['images'] for c in results['curves']}
  found = {(c['method'], c['share'], c['images']) for c in results['curves']}
  assert found == {
    (m, s, i) for m in methods for s in (0.3, 1.0) for i in images
  }
  with open(os.path.join(workdir, 'label_efficiency.csv')) as f:
    assert len(list(csv.DictReader(f))) == 2 * len(results['curves'])
  compared = results['comparisons']
  assert {(c['method'], c['share'], c['images']) for c in compared} == {
    x for x in found if not x[0].startswith('floor')
  }
  by_key = {
    (c['method'], c['share'], c['images']): c for c in results['curves']
  }
  for c in compared:
    share, images_ = c['share'], c['images']
    a, b = (by_key[c[x], share, images_] for x in ('method', 'floor'))
    for metric in HEADLINE:
      want = a[metric]['value'] - b[metric]['value']
      assert c[metric]['value'] == pytest.approx(want, abs=1e-9)
  with open(os.path.join(workdir, 'comparisons.csv')) as f:
    assert len(list(csv.DictReader(f))) == 2 * len(compared)
  for metric in HEADLINE:
    path = os.path.join(workdir, f'label_efficiency_{metric}_all.png')
    assert os.path.getsize(path) > 5000
  assert results['chosen_on'].endswith('the same share of them')


def test_methods_without_a_seed_say_the_same_of_the_whole(finished):
  _, results = finished
  for curve in results['curves']:
    if curve['share'] == 1.0 and not curve['method'].endswith('concat'):
      assert len(set(curve['accuracy']['each'])) == 1, curve['method']
      assert curve['accuracy']['deviation'] == 0


def test_only_draws_of_the_very_same_rows_share_an_answer(ds):
  parts = base.labelled_parts(ds, 'patient')
  draws = label_efficiency.make_draws(ds, parts, get_config())
  together = [
    {(d.share, d.number) for d in same}
    for same in label_efficiency.by_rows(draws)
  ]
  assert {(1.0, 0), (1.0, 1)} in together
  assert sorted(map(len, together)) == [1, 1, 2]


def test_a_floor_is_trained_on_its_draw_alone(ds):
  parts = base.labelled_parts(ds, 'patient')
  config = get_config()
  draws = label_efficiency.make_draws(ds, parts, config)
  floors = (config.floors, config.seed, '')
  before = label_efficiency.floor_answers(ds, draws[:1], parts, *floors)
  # Other labels outside the draw change nothing, within it they do.
  spoilt = (parts.labels + 1) % len(ds.classes)
  spoilt[draws[0].train] = parts.labels[draws[0].train]
  after = label_efficiency.floor_answers(
    ds, draws[:1], parts._replace(labels=spoilt), *floors
  )
  assert (before[0].classes == after[0].classes).all()
  # 1-NN on pixels, by hand.
  flat = ds.images.reshape(len(ds.images), -1)
  if flat.shape[1] == 32 * 32:
    test = flat[parts.rows[parts.test]].astype(float)
    bank = flat[parts.rows[draws[0].train]].astype(float)
    near = ((test[:, None] - bank[None]) ** 2).sum(-1).argmin(1)
    assert (before[0].classes == parts.labels[draws[0].train][near]).all()


def test_test_labels_are_read_by_the_scores_only(
  finished, ds, tmp_path, monkeypatch
):
  _, results = finished
  rows = data.rows(ds, 'patient', 'test')
  column = ds.manifest['class'].copy()
  column[rows] = np.roll(column[rows], 1)
  rolled = ds._replace(manifest={**ds.manifest, 'class': column})
  use_fake(monkeypatch, rolled)
  again = label_efficiency.run(get_config(), str(tmp_path))
  assert [c['chosen'] for c in again['curves']] == [
    c['chosen'] for c in results['curves']
  ]
  assert again['curves'] != results['curves']


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'validation': 'half'}, r'--config\.validation'),
    ({'heads.best_epoch': True}, r'--config\.heads\.best_epoch'),
    ({'fractions': ()}, r'--config\.fractions'),
    ({'fractions': (2.0,)}, r'--config\.fractions'),
  ],
)
def test_a_bad_config_is_refused_with_its_flag(
  tmp_path,
  monkeypatch,
  ds,
  changes,
  words,
):
  use_fake(monkeypatch, ds)
  with pytest.raises(ValueError, match=words):
    label_efficiency.run(get_config(**changes), str(tmp_path))

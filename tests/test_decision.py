"""Decision curves: counts by hand, bounds, and what is written."""

import csv

import numpy as np
import pytest

from micdiffrep_jax.draw import decision as draw_decision
from micdiffrep_jax.draw import plots
from micdiffrep_jax.scores import bootstrap, decision


def curve(positive, risk, thresholds, groups=None):
  groups = np.arange(len(risk)) if groups is None else groups
  risk = np.array(risk, float)
  rows = bootstrap.resampled_rows(
    np.array(positive, int), np.stack([1 - risk, risk], 1), groups, 200, 0
  )
  return decision.net_benefit(rows, 1, np.array(thresholds))


def test_finds_less_weighed_false_alarms():
  found = curve([1, 1, 0, 0, 0], [0.9, 0.3, 0.6, 0.2, 0.1], [0.25, 0.5, 0.8])
  # At 0.25: two finds and one false alarm at odds 1 to 3; and so on.
  hand = [(2 - 1 / 3) / 5, (1 - 1) / 5, 1 / 5]
  np.testing.assert_allclose(found.value, hand)
  assert (found.low <= found.value).all()
  assert (found.value <= found.high).all()


def test_a_perfect_risk_is_worth_the_share_and_acting_on_all_falls():
  positive = np.array([1, 0, 0, 0], bool)
  thresholds = [0.1, 0.25, 0.5]
  perfect = curve(positive, positive.astype(float), thresholds)
  np.testing.assert_allclose(perfect.value, 0.25)
  everyone = curve(positive, np.ones(4), thresholds)
  # Acting on all is worth nothing where the threshold is the share.
  np.testing.assert_allclose(everyone.value, [1 / 6, 0, -0.5], atol=1e-12)


def test_rows_of_one_group_are_drawn_together():
  positive, risk = np.array([1, 1, 0, 0] * 5), np.tile([1.0, 1.0, 0.0, 0.0], 5)
  alone = curve(positive, risk, [0.5])
  paired = curve(positive, risk, [0.5], np.repeat(np.arange(10), 2))
  assert paired.high - paired.low > 1.2 * (alone.high - alone.low)


def test_a_threshold_beyond_probabilities_is_refused():
  with pytest.raises(ValueError, match='lies in'):
    curve([1, 0], [0.5, 0.5], [0.5, 1.0])


def test_every_class_has_its_rows(tmp_path):
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 60)
  probs = {name: rng.dirichlet(np.ones(3), 60) for name in ('ours', 'floor')}
  found = decision.curves(labels, probs, labels, ('a', 'b', 'c'), 20, 0)
  only = decision.curves(labels % 2, probs, labels, ('a', 'b', 'c'), 20, 0)
  assert list(only) == ['a', 'b']  # no picture is of the third
  draw_decision.write(str(tmp_path), found)
  with open(tmp_path / 'decision.csv') as f:
    rows = list(csv.DictReader(f))
  assert {(x['class'], x['row']) for x in rows} == {
    (label, name) for label in 'abc' for name in ('ours', 'floor', decision.ALL)
  }
  assert len(rows) == 9 * 19
  first = [x for x in rows if (x['class'], x['row']) == ('b', 'ours')]
  by_hand = curve(labels == 1, probs['ours'][:, 1], [0.05, 0.1]).value
  got = [float(x['net_benefit']) for x in first[:2]]
  np.testing.assert_allclose(got, by_hand, atol=1e-4)
  assert (tmp_path / 'decision.png').stat().st_size > 5000


def test_probabilities_that_are_none_are_refused():
  probs = {'ours': np.array([[0.5, 0.5], [np.nan, 0.2]])}
  with pytest.raises(ValueError, match='finite'):
    decision.curves(np.array([0, 1]), probs, np.arange(2), ('a', 'b'), 5, 0)


def test_the_picture_shows_the_whole_interval_and_stands_upright():
  x = np.array([0.2, 0.6])
  ours = decision.NetBenefit(x, x - 1, x - 2, x - 0.5)  # worse than nothing
  everyone = decision.NetBenefit(x, x - 3, x - 3, x - 3)
  figure = plots.decision_curves({'a': {'ours': ours, 'all': everyone}}, 'all')
  low, high = figure.axes[0].get_ylim()
  assert low < 0 < high
  assert high >= ours.high.max()

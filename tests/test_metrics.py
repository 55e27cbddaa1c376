"""Oracles: scikit-learn, repeated rows, and simulated groups."""

import json

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as skm

from micdiffrep_jax.run import files
from micdiffrep_jax.scores import bootstrap, calibration, metrics, summary
from micdiffrep_jax.scores.bootstrap import Slices

CLASSES = ('G', 'M', 'N', 'P')


def simulate(seed=0, groups=60, size=5, k=4, spread=1.0, signal=1.0):
  """Labels, probabilities, groups; rows of a group share label and luck."""
  rng = np.random.default_rng(seed)
  group = np.repeat(np.arange(groups), size)
  labels = np.repeat(rng.integers(0, k, groups), size)
  logits = rng.normal(size=(len(group), k))
  logits += np.repeat(rng.normal(size=(groups, k)) * spread, size, axis=0)
  logits[np.arange(len(group)), labels] += signal
  return labels, special.softmax(logits, axis=1), group


def scores(y, p):
  rows = metrics.once(y, p)
  return {name: m.of(rows)[0] for name, m in metrics.METRICS.items()}


def test_scores_equal_sklearn():
  y, p, _ = simulate()
  said = p.argmax(1)
  got = scores(y, p)
  truth = np.eye(4)[y]
  want = {
    'accuracy': skm.accuracy_score(y, said),
    'balanced_accuracy': skm.balanced_accuracy_score(y, said),
    'macro_f1': skm.f1_score(y, said, average='macro'),
    'macro_auroc': skm.roc_auc_score(y, p, multi_class='ovr'),
    'macro_auprc': skm.average_precision_score(truth, p, average='macro'),
    'nll': skm.log_loss(y, p),
    'sensitivity': skm.recall_score(y, said, average=None),
    'ppv': skm.precision_score(y, said, average=None),
    'specificity': [
      skm.recall_score(y == j, said == j, pos_label=False) for j in range(4)
    ],
    'npv': [
      skm.precision_score(y == j, said == j, pos_label=False) for j in range(4)
    ],
    'brier': np.mean(np.sum((p - truth) ** 2, axis=1)),
  }
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-9, err_msg=name)


def test_ece_equals_a_loop_over_bins():
  y, p, _ = simulate()
  top, right = p.max(1), p.argmax(1) == y
  want = 0.0
  for i in range(15):
    inside = (top > i / 15) & (top <= (i + 1) / 15)
    if inside.any():
      want += inside.mean() * abs(top[inside].mean() - right[inside].mean())
  assert metrics.value('ece', y, p) == pytest.approx(want)
  curve = calibration.reliability(y, p)
  assert curve.rows.sum() == len(y)
  assert len(curve.edges) == 16


def test_weighted_rankings_equal_sklearn_with_ties():
  rng = np.random.default_rng(1)
  score = rng.integers(0, 6, 80) / 5
  positive = rng.random(80) < 0.3
  weights = rng.integers(0, 4, (7, 80)).astype(np.float32)
  auroc, auprc = metrics.ranking_metrics(positive, score, weights)
  for w, a, b in zip(weights, auroc, auprc):
    want = skm.roc_auc_score(positive, score, sample_weight=w)
    assert a == pytest.approx(want)
    want = skm.average_precision_score(positive, score, sample_weight=w)
    assert b == pytest.approx(want)


def test_a_resample_scores_as_the_rows_written_out():
  y, p, g = simulate(groups=12)
  weights, index = bootstrap.group_weights(g, 6, seed=3)
  assert (weights.sum(1) == 12).all()
  drawn = bootstrap.resampled_rows(y, p, g, 6, seed=3)
  got = {name: m.of(drawn)[1:] for name, m in metrics.METRICS.items()}
  for i, w in enumerate(weights):
    rows = np.repeat(np.arange(len(y)), w[index].astype(int))
    want = scores(y[rows], p[rows])
    for name, value in want.items():
      np.testing.assert_allclose(
        got[name][i], value, rtol=1e-6, equal_nan=True, err_msg=name
      )


def test_group_bootstrap_covers_at_its_nominal_rate():
  # Accuracy of a row is its group's own rate, so rows are far from
  # independent; the population mean is 0.7.
  covered, covered_by_rows, runs = 0, 0, 300
  for seed in range(runs):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 15, 60)
    rate = rng.beta(1.4, 0.6, 60)
    g = np.repeat(np.arange(60), sizes)
    right = rng.random(len(g)) < rate[g]
    y = np.zeros(len(g), np.int64)
    p = np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
    for unit in ('groups', 'rows'):
      units = g if unit == 'groups' else np.arange(len(g))
      w, index = bootstrap.group_weights(units, 200, seed)
      rows = metrics.Rows(y, p, index, w)
      low, high = bootstrap.interval(metrics.METRICS['accuracy'].of(rows))
      if unit == 'groups':
        covered += low <= 0.7 <= high
      else:
        covered_by_rows += low <= 0.7 <= high
  # Standard error of a coverage of 0.95 in 300 runs: 0.013.
  assert 0.90 <= covered / runs <= 0.985
  assert covered_by_rows / runs < 0.85


def test_comparison_with_itself_finds_nothing():
  y, p, g = simulate()
  got = bootstrap.compare(y, p, p, g)
  assert got['difference'] == 0
  assert got['p_value'] == 1
  assert got['low'] == got['high'] == 0


def test_comparison_is_paired_and_signed():
  y, p, g = simulate(groups=200, signal=0.8)
  better = p.copy()
  better[::10] = np.eye(4)[y[::10]]  # every tenth row made right
  gain = (better.argmax(1) == y).mean() - (p.argmax(1) == y).mean()
  ours = bootstrap.compare(y, better, p, g)
  assert ours['difference'] == pytest.approx(gain)
  assert 0 < ours['low'] < gain < ours['high']
  assert ours['p_value'] < 0.01
  back = bootstrap.compare(y, p, better, g)
  assert back['difference'] == pytest.approx(-gain)
  # Unpaired, the two intervals overlap widely: pairing is what finds it.
  wide = summary.summarise(y, p, Slices(g), CLASSES)['all'].scores['accuracy']
  assert ours['high'] - ours['low'] < (wide.high - wide.low) / 2


def test_p_value_is_two_sided():
  # a alone is right on 40 rows, b alone on 26: against the normal law.
  y, truth = np.zeros(400, np.int64), np.eye(2)
  a = truth[(np.arange(400) < 26).astype(int)]
  b = truth[(np.arange(400) >= 360).astype(int)]
  gap = (a[:, 0] - b[:, 0]).astype(float)
  z = gap.mean() / (gap.std() / 20)
  want = 2 * (1 - special.ndtr(abs(z)))  # 0.08
  found = bootstrap.compare(y, a, b, np.arange(400), resamples=4000)
  assert found['p_value'] == pytest.approx(want, rel=0.35)


def test_false_alarms_of_the_comparison_are_about_five_percent():
  alarms, runs = 0, 200
  for seed in range(runs):
    y, a, g = simulate(seed, groups=80, size=3)
    _, b, _ = simulate(seed + 10_000, groups=80, size=3, signal=0)
    rng = np.random.default_rng(seed)
    b = b[rng.permutation(len(b))]
    first = np.repeat(rng.random(80) < 0.5, 3)[:, None]
    one, two = np.where(first, a, b), np.where(first, b, a)
    found = bootstrap.compare(y, one, two, g, resamples=300)
    alarms += found['p_value'] < 0.05
  assert 0.01 <= alarms / runs <= 0.11


def test_summary_reports_every_subset_as_json():
  y, p, g = simulate(size=7)
  variants = np.tile(['', 'BR', 'DA', 'HF', 'VF', 'RO', 'SP'], 60)
  patients = np.arange(len(y)) // 14  # of two sources each
  got = summary.summarise(
    y, p, Slices(g, variants, patients), CLASSES, normal='N', resamples=50
  )
  sets = ('all', 'sources', 'patients')
  assert set(got) == {*sets, *(f'{name}_without_normal' for name in sets)}
  written = json.loads(json.dumps(files.plain(got), allow_nan=False))
  assert got['all'].n == written['all']['n'] == 420
  assert got['sources'].n == 60
  keep = variants == ''
  want = (p.argmax(1) == y)[keep].mean()
  assert got['sources'].scores['accuracy'].value == pytest.approx(want)
  tumour = got['all_without_normal']
  keep = y != 2
  want = p[:, [0, 1, 3]][keep].argmax(1) == np.array([0, 1, 9, 2])[y[keep]]
  assert tumour.scores['accuracy'].value == pytest.approx(want.mean())
  assert tumour.classes == ('G', 'M', 'P')
  for row in (got['all'], tumour):
    value = row.scores['balanced_accuracy']
    assert value.low <= value.value <= value.high


def test_a_class_without_rows_is_null_not_zero():
  y, p, g = simulate()
  keep = y != 3
  got = summary.summarise(
    y[keep], p[keep], Slices(g[keep]), CLASSES, resamples=20
  )
  written = json.loads(json.dumps(files.plain(got['all']), allow_nan=False))
  assert written['per_class']['P']['sensitivity']['value'] is None
  read = summary.Summary.from_json(written)
  assert np.isnan(read.per_class['P'].scores['auroc'].value)
  want = np.mean(
    [(p[y == j].argmax(1) == j).mean() for j in range(3)],
  )
  assert got['all'].scores['balanced_accuracy'].value == pytest.approx(want)


@pytest.mark.parametrize(
  ('y', 'p', 'words'),
  [
    ([0, 1], np.full((3, 2), 0.5), 'must be'),
    ([0, -1], np.full((2, 2), 0.5), 'Mask'),
    ([0, 1], np.full((2, 2), np.nan), 'finite'),
    ([], np.zeros((0, 2)), 'No rows'),
  ],
)
def test_bad_input_is_refused(y, p, words):
  with pytest.raises(ValueError, match=words):
    summary.summarise_rows(np.array(y, np.int64), p, y, CLASSES)


def test_temperature_recovers_the_one_that_spoilt_the_logits():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(4000, 4)) * 2
  p = special.softmax(logits, axis=1)
  y = (p.cumsum(1) > rng.random((4000, 1))).argmax(1)
  found = calibration.fit_temperature(3 * logits, y)
  assert found == pytest.approx(3.0, rel=0.1)
  better = calibration.softmax(3 * logits, found)
  worse = calibration.softmax(3 * logits)
  assert metrics.value('ece', y, better) < metrics.value('ece', y, worse)


@pytest.mark.parametrize('name', metrics.CRITERIA)
def test_every_criterion_prefers_the_right_and_refuses_the_diverged(name):
  y = np.arange(40) % 4
  right = np.eye(4)[y] * 5
  wrong = right[:, [1, 2, 3, 0]]
  good, bad, diverged = (
    metrics.criterion(name, y, logits)
    for logits in (right, wrong, right * np.nan)
  )
  assert good > bad > diverged
  found = metrics.value(name, y, calibration.softmax(right))
  assert abs(good) == found

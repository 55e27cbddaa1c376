"""Pooling by patient equals a loop; intervals over patients cover the truth."""

import numpy as np
import pytest

from micdiffrep_jax.scores import bootstrap, pooling

CLASSES = ('a', 'b', 'c')


def slices(seed=0, patients=40):
  """Labels, probabilities and patients of shuffled slices, 1 to 9 a patient."""
  rng = np.random.default_rng(seed)
  patient = np.repeat(np.arange(patients), rng.integers(1, 10, patients))
  rng.shuffle(patient)
  labels = (patient * 7 % 3).astype(int)
  return labels, rng.dirichlet(np.ones(3), len(patient)), patient


HOW = {
  'mean': lambda p: p.mean(0),
  'geometric': lambda p: np.prod(p ** (1 / len(p)), axis=0),
  'vote': lambda p: np.bincount(p.argmax(1), minlength=3),
}


@pytest.mark.parametrize('how', HOW)
def test_pooling_equals_a_loop_over_patients(how):
  labels, probs, patient = slices()
  found = pooling.pool(labels, probs, patient, how)
  order = list(dict.fromkeys(patient.tolist()))
  assert len(found.labels) == len(order) == 40
  for i, name in enumerate(order):
    mine = patient == name
    want = HOW[how](probs[mine])
    np.testing.assert_allclose(found.probs[i], want / want.sum(), atol=1e-9)
    assert found.labels[i] == labels[mine][0]
    assert found.first[i] == np.flatnonzero(mine)[0]
  assert found.mixed == 0


def test_a_patient_of_several_labels_is_left_out_and_counted():
  labels, probs, patient = slices()
  (several,) = (k for k in range(40) if (patient == k).sum() > 1 and k == 3)
  labels[np.flatnonzero(patient == several)[0]] += 1
  labels %= 3
  found = pooling.pool(labels, probs, patient)
  assert found.mixed == 1
  assert several not in patient[found.first]
  assert len(found.labels) == 39


def test_another_way_of_pooling_is_an_error():
  with pytest.raises(ValueError, match=r'median.*mean.*--config\.pooling'):
    pooling.pool(*slices(), 'median')


def test_patients_are_pooled_from_their_untouched_sources():
  labels, probs, patient = slices()
  variants = np.where(np.arange(len(labels)) % 2, 'HF', '')
  groups = patient // 2  # two patients that share a picture
  sets = bootstrap.sets_of(
    labels, probs, bootstrap.Slices(groups, variants, patient)
  )
  keep = variants == ''
  want = pooling.pool(labels[keep], probs[keep], patient[keep])
  np.testing.assert_array_equal(sets['patients'].probs, want.probs)
  np.testing.assert_array_equal(
    sets['patients'].groups, groups[keep][want.first]
  )
  assert (sets['patients'].pooling, sets['patients'].mixed) == ('mean', 0)
  assert len(sets['sources'].labels) == keep.sum()


def test_intervals_over_patients_cover_at_their_nominal_rate():
  """The truth is the accuracy in a population of patients of 1 to 9 slices.

  Whether slices are told right depends on the patient: an interval over slices
  would be far too narrow.
  """
  rng = np.random.default_rng(0)
  sizes = np.arange(1, 10)
  hits_by_size = 0.5 + 0.04 * sizes  # larger patients are easier
  truth = (sizes * hits_by_size).sum() / sizes.sum()
  covered = {'patients': 0, 'slices': 0}
  runs = 300
  for _ in range(runs):
    size = rng.integers(1, 10, 60)
    skill = rng.beta(hits_by_size[size - 1], 1 - hits_by_size[size - 1])
    patient = np.repeat(np.arange(60), size)
    right = rng.random(len(patient)) < skill[patient]
    probs = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
    labels = np.zeros(len(patient), int)
    for name, groups in (
      ('patients', patient),
      ('slices', np.arange(len(patient))),
    ):
      rows = bootstrap.resampled_rows(labels, probs, groups, 300, 0)
      hits = rows.hits.sum(1) / rows.total
      low, high = bootstrap.interval(hits[1:])
      covered[name] += low <= truth <= high
  assert 0.91 <= covered['patients'] / runs <= 0.98
  assert covered['slices'] / runs < 0.85

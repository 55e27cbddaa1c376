"""What a run says of itself, and what is read back of its own record."""

import numpy as np
import pytest

from micdiffrep_jax.pretrain import monitor, readings
from micdiffrep_jax.run import log


def write(workdir, speeds, resume_step=0):
  """A line every 10 steps of 4 images, from the step after `resume_step`."""
  writer = log.Writer(str(workdir), resume_step)
  for i, speed in enumerate(speeds):
    step = resume_step + 10 * (i + 1)
    writer.scalars(
      step, {'loss': 1.0, 'images_seen': 4 * step, 'images_per_s': speed}
    )
    writer.scalars(step, {'val_loss': 1.0})
  writer.close()


def test_training_time_adds_up_over_starts(tmp_path):
  write(tmp_path, [0.0, 8.0, 4.0, 1.0])
  # Killed; the last 10 steps are lost and done again, at other speeds.
  write(tmp_path, [0.0, 2.0], resume_step=30)
  # 40 images a line: 8, 4 and 2 images/s, and twice their median, 4.
  want = 40 / 8 + 40 / 4 + 40 / 2 + 2 * 40 / 4
  assert monitor.training_s(str(tmp_path), 200) == pytest.approx(want)


def test_training_time_ends_with_the_checkpoint(tmp_path):
  write(tmp_path, [8.0, 4.0, 2.0])
  # 90 images: two lines, and 10 images at the median of 8 and 4.
  want = 40 / 8 + 40 / 4 + 10 / 6
  assert monitor.training_s(str(tmp_path), 90) == pytest.approx(want)


def test_training_time_is_unknown_without_a_speed(tmp_path):
  assert monitor.training_s(str(tmp_path), 40) is None
  write(tmp_path, [0.0])
  assert monitor.training_s(str(tmp_path), 40) is None


# Effective ranks with initial weights and later, results/experiments.md and
# results/README.md; the quickstart's by its own log.
SICK = {'BYOL, AdamW': (54, 25), 'BYOL, LARS': (54, 25), 'BYOL, SGD': (54, 36)}
WELL = {
  'MoCo v2, 64,000 images': (54.4, 63.4),
  'MoCo v2, 256,000 images': (54, 67),
  'BYOL, views of MRI': (54.4, 54.2),
  'MAE': (25, 56),
  'quickstart': (30.7, 27.8),
  'quickstart with noise as the target': (34.2, 30.3),
}


def test_runs_on_record_that_collapsed_are_warned_of_and_no_others():
  for name, (first, last) in SICK.items():
    assert readings.may_collapse(last, first), name
  for name, (first, last) in WELL.items():
    assert not readings.may_collapse(last, first), name


def test_a_warning_of_collapse_says_what_to_look_at_and_that_it_may_pass():
  # A run that ended well was as low as this after 13,000 images.
  assert readings.may_collapse(30, 54)
  text = readings.warning(30, 54)
  assert '30.0, 54.0 with initial weights' in text
  assert 'can pass' in text
  for name in ('feature_rank', 'probe_accuracy', 'metrics.jsonl'):
    assert name in text


def test_a_quick_probe_is_scored_by_class_with_an_interval_over_groups():
  # Class 0 wholly right, class 1 half: a patient of class 1 is all or nothing.
  labels = np.repeat([0, 1], 60)
  groups = np.arange(120) // 6
  guesses = np.where(groups < 15, labels, 0)
  probe = readings.score(labels, guesses, groups, 2, fitted=256)
  assert probe.accuracy == pytest.approx(0.75)
  assert (probe.fitted, probe.scored, probe.classes) == (256, 120, 2)
  # Half the deviation of a share of 10 patients, 1.96 of it to each side.
  half = 1.96 * 0.5 * np.sqrt(0.25 / 10)
  assert probe.low == pytest.approx(0.75 - half, abs=0.03)
  assert probe.high == pytest.approx(0.75 + half, abs=0.03)


def test_the_line_of_the_log_says_on_how_many_images_and_beside_what():
  now = readings.Reading(
    31.06, readings.QuickProbe(0.7761, 0.657, 0.861, 1000, 174, 4)
  )
  initial = readings.Reading(
    30.68, readings.QuickProbe(0.4321, 0.351, 0.522, 1000, 174, 4)
  )
  assert readings.line(300, 0.10553, now, initial) == (
    'step 300: validation loss 0.1055; quick probe 77.6 [65.7, 86.1], 43.2 '
    '[35.1, 52.2] with initial weights, 25 by chance (balanced accuracy in '
    'percent, 95 % interval; fitted on 1000 training images, scored on 174 '
    'validation images); effective rank of the features 31.1, 30.7 with '
    'initial weights'
  )
  assert readings.metrics(now, initial) == {
    'feature_rank': 31.06,
    'feature_rank_init': 30.68,
    'probe_accuracy': 0.7761,
  }
  shared = readings.line(300, None, now._replace(kept=0.8123), initial)
  assert shared.endswith('; two views of an image share 81.2 % of them')
  nothing = readings.Reading(None, None)
  assert readings.line(7, 2.0, nothing, nothing) == (
    'step 7: validation loss 2.0000'
  )
  assert readings.metrics(nothing, nothing) == {}

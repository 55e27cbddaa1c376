"""What is read back of a run's own record."""

import pytest

from micdiffrep_jax.pretrain import monitor
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

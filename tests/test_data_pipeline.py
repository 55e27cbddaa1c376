import subprocess
import sys

import numpy as np
import pytest

from micdiffrep_jax.data import batches, dataset

ROWS = np.arange(100, 137)  # 37 rows: no batch size divides an epoch


@pytest.fixture(scope='module')
def ds():
  images = np.arange(200, dtype=np.uint8)[:, None, None, None] * np.ones(
    (1, 4, 4, 1), np.uint8
  )
  return dataset.Dataset('', images, {}, (), '', {})


def take(stream, n):
  return [next(stream) for _ in range(n)]


def order(stream, n):
  return np.concatenate([b['index'] for b in take(stream, n)])


def test_batches_hold_the_images_of_their_rows(ds):
  for batch in take(batches.train_stream(ds, ROWS, 8, 0), 6):
    assert batch['image'].dtype == np.uint8
    assert batch['index'].dtype == np.int32
    assert batch['image'].shape == (8, 4, 4, 1)
    np.testing.assert_array_equal(batch['image'], ds.images[batch['index']])


def test_each_epoch_shows_each_row_once_in_another_order(ds):
  seen = order(batches.train_stream(ds, ROWS, 8, 0), 37)  # 8 epochs
  epochs = seen.reshape(8, 37)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), ROWS)
  assert len({tuple(e) for e in epochs}) == 8


def test_seed_decides_the_order(ds):
  a, b, c = (order(batches.train_stream(ds, ROWS, 8, s), 5) for s in (0, 0, 1))
  np.testing.assert_array_equal(a, b)
  assert (a != c).any()


@pytest.mark.parametrize('step', [1, 4, 5, 23, 200])
def test_resume_goes_on_with_the_very_next_batch(ds, step):
  whole = take(batches.train_stream(ds, ROWS, 8, 3), step + 3)
  resumed = batches.train_stream(ds, ROWS, 8, 3, start_step=step)
  assert resumed.get() == step
  for expected, got in zip(whole[step:], take(resumed, 3), strict=True):
    np.testing.assert_array_equal(got['index'], expected['index'])
    np.testing.assert_array_equal(got['image'], expected['image'])
  assert resumed.get() == step + 3


def test_position_counts_what_was_taken_and_can_be_set(ds):
  stream = batches.train_stream(ds, ROWS, 8, 0)
  first = take(stream, 4)
  assert stream.get() == 4  # batches read ahead do not count
  stream.set(1)
  np.testing.assert_array_equal(next(stream)['index'], first[1]['index'])
  assert stream.get() == 2


@pytest.mark.parametrize('count', [2, 4])
def test_shards_join_to_the_batch_of_one_process(ds, count):
  whole = take(batches.train_stream(ds, ROWS, 8, 0), 12)
  shards = [
    batches.train_stream(ds, ROWS, 8, 0, shard=(k, count)) for k in range(count)
  ]
  for batch in whole:
    parts = [next(s)['index'] for s in shards]
    np.testing.assert_array_equal(np.concatenate(parts), batch['index'])


def test_resume_on_another_number_of_processes(ds):
  whole = take(batches.train_stream(ds, ROWS, 8, 0), 9)
  parts = [
    next(batches.train_stream(ds, ROWS, 8, 0, 8, shard=(k, 4)))['index']
    for k in range(4)
  ]
  np.testing.assert_array_equal(np.concatenate(parts), whole[8]['index'])


def test_batches_do_not_share_memory(ds):
  a, b = take(batches.train_stream(ds, ROWS, 8, 0), 2)
  before = b['image'].copy()
  a['image'][:] = 255
  np.testing.assert_array_equal(b['image'], before)
  assert not np.shares_memory(a['image'], ds.images)


def test_fewer_rows_than_a_batch_repeat(ds):
  seen = order(batches.train_stream(ds, ROWS[:3], 8, 0), 3)
  np.testing.assert_array_equal(np.bincount(seen)[100:], [8, 8, 8])


@pytest.mark.parametrize('count', [1, 2, 4])
@pytest.mark.parametrize('n', [37, 40, 1])
def test_evaluation_covers_each_row_once_under_the_mask(ds, n, count):
  shards = [
    list(batches.eval_batches(ds.images, ROWS[:n], 8, shard=(k, count)))
    for k in range(count)
  ]
  assert len({len(s) for s in shards}) == 1
  seen = []
  for step in zip(*shards, strict=True):
    for batch, mask in step:
      assert batch['image'].shape == (8 // count, 4, 4, 1)
      np.testing.assert_array_equal(batch['image'], ds.images[batch['index']])
      seen.extend(batch['index'][mask])
  np.testing.assert_array_equal(seen, ROWS[:n])


def test_empty_part_and_indivisible_batch_are_errors_at_once(ds):
  for make in (
    lambda ds, *a, **k: batches.eval_batches(ds.images, *a, **k),
    lambda *a, **k: batches.train_stream(*a, 0, **k),
  ):
    with pytest.raises(ValueError, match='No image'):
      make(ds, ROWS[:0], 8)
    with pytest.raises(ValueError, match='multiple of 3'):
      make(ds, ROWS, 8, shard=(0, 3))


SCRIPT = """
from absl import flags
flags.FLAGS.mark_as_parsed()
import numpy as np
from micdiffrep_jax.data import batches, dataset
images = np.zeros((5000, 64, 64, 1), np.uint8)
ds = dataset.Dataset('', images, {}, (), '', {})
closed = batches.train_stream(ds, np.arange(5000), 128, 0)
left_open = batches.train_stream(ds, np.arange(5000), 128, 0)
next(closed), next(left_open)
closed.close()
raise SystemExit(3)
"""


def test_process_ends_cleanly_in_the_middle_of_a_stream():
  done = subprocess.run(
    [sys.executable, '-c', SCRIPT], capture_output=True, text=True, timeout=90
  )
  assert done.returncode == 3
  assert 'Traceback' not in done.stderr

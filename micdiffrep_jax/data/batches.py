"""Streams of uint8 batches: the same order for any number of processes.

A batch is one gather from the image array; normalisation and augmentation
belong to the device. Dimension letters: b images of this process in a batch,
h w c as stored.
"""

from collections.abc import Callable, Iterator
import functools
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from micdiffrep_jax.data.dataset import Dataset, Records

if TYPE_CHECKING:
  import grain  # whoever only reads in order needs no Grain

Batch = dict[str, np.ndarray]


class TrainStream:
  """An endless iterator of batches whose position is a number of batches.

  Each item is {'image': (b, h, w, c) uint8, 'index': (b,) int32 row}, freshly
  allocated and never written again.
  """

  def __init__(self, dataset: 'grain.MapDataset', start_step: int = 0):
    import grain

    # One thread: the gather is memory-bound, and more only fight for it.
    self._iterator = iter(
      dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
      )
    )
    self._position = 0
    if start_step:
      self.set(start_step)

  def __iter__(self) -> 'TrainStream':
    return self

  def __next__(self) -> Batch:
    batch = next(self._iterator)
    self._position += 1
    return batch

  def get(self) -> int:
    """Batches handed out since step 0, prefetched ones not counted."""
    return self._position

  def set(self, step: int) -> None:
    """Goes to where the next batch is that of `step`, without replay."""
    self._iterator.set_state({'next_index': step})
    self._position = step

  def close(self) -> None:
    """Ends the reading threads; the stream gives nothing afterwards."""
    close = getattr(self._iterator, 'close', None)
    if close is not None:
      close()


def train_stream(
  ds: Dataset,
  rows: np.ndarray,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  shard: tuple[int, int] | None = None,
) -> TrainStream:
  """Shuffles `rows` anew each epoch and streams this process's share.

  rows (n,) of the dataset; batch_size over all processes, shard (index,
  count) of this one, taken from jax by default. Epochs follow each other
  without a gap, so a batch may hold the end of one and the start of the next
  and no row is ever dropped. Process k gets rows [k b, (k + 1) b) of each
  global batch: the concatenation is the same for any number of processes.
  Raises ValueError where rows are empty or the batch does not divide.
  """
  import grain

  rows = _checked(rows, 'train')
  index, count = shard or _this_process()
  local = _local_size(batch_size, count)
  draw = _endless_order(rows, seed)

  def batch(step: int) -> Batch:
    start = step * batch_size + index * local
    return _gather(ds.images, draw(start, local))

  # One element is one batch: a shuffle by Grain draws images one by one, in
  # Python, which takes longer than the gather.
  dataset = grain.MapDataset.range(sys.maxsize).map(batch)
  return TrainStream(dataset, start_step)


def _endless_order(
  rows: np.ndarray, seed: int
) -> Callable[[int, int], np.ndarray]:
  """draw(start, count): rows [start, start + count) of endless shuffled passes.

  Any place is reached without replay; two passes are kept, 8 bytes a row each.
  """
  n = len(rows)

  @functools.lru_cache(maxsize=2)
  def one_pass(number: int) -> np.ndarray:
    return np.random.default_rng((seed, number)).permutation(rows)

  def draw(start: int, count: int) -> np.ndarray:
    parts = []
    while count:
      number, at = divmod(start, n)
      parts.append(one_pass(number)[at : at + count])
      start, count = start + len(parts[-1]), count - len(parts[-1])
    return np.concatenate(parts)

  return draw


def eval_batches(
  images: np.ndarray | Records,
  rows: np.ndarray,
  batch_size: int,
  shard: tuple[int, int] | None = None,
) -> Iterator[tuple[Batch, np.ndarray]]:
  """Yields ({'image', 'index'}, mask (b,) bool) over `rows` once, in order.

  Every process yields the same number of batches; where rows run out the last
  one is repeated under a False mask. Raises as train_stream does.
  """
  rows = _checked(rows, 'evaluation')
  index, count = shard or _this_process()
  local = _local_size(batch_size, count)

  def batches() -> Iterator[tuple[Batch, np.ndarray]]:
    for start in range(0, len(rows), batch_size):
      at = start + index * local + np.arange(local)
      mask = at < len(rows)
      yield _gather(images, rows[np.minimum(at, len(rows) - 1)]), mask

  return batches()


def _gather(images: Any, rows: np.ndarray) -> Batch:
  return {'image': np.asarray(images[rows]), 'index': rows.astype(np.int32)}


def _checked(rows: np.ndarray, what: str) -> np.ndarray:
  rows = np.asarray(rows)
  if not rows.size:
    raise ValueError(
      f'No image to read for {what}: that part of the split is empty. Choose '
      'another config.data.split.'
    )
  return rows


def _this_process() -> tuple[int, int]:
  import grain

  shard = grain.sharding.ShardByJaxProcess(drop_remainder=True)
  return shard.shard_index, shard.shard_count


def _local_size(batch_size: int, count: int) -> int:
  if batch_size < 1 or batch_size % count:
    raise ValueError(
      f'config.batch_size={batch_size} does not divide over {count} processes; '
      f'use a multiple of {count}.'
    )
  return batch_size // count

"""Images per second of the training stream; prints one line of JSON.

python -m benchmarks.data_stream --size_px=112 --images=20000 --batch_size=128
Time is wall time on the whole machine and CPU time of this process; the first
batches, which include the shuffle's start, are not counted.
"""

import json
import os
import tempfile
import time

from absl import app, flags
import numpy as np

from micdiffrep_jax.data import pipeline
from micdiffrep_jax.data.dataset import Dataset

_SIZE = flags.DEFINE_integer('size_px', 112, 'Side of the images.')
_IMAGES = flags.DEFINE_integer('images', 20_000, 'Images of the data set.')
_BATCH = flags.DEFINE_integer('batch_size', 128, 'Images of a batch.')
_BATCHES = flags.DEFINE_integer('batches', 500, 'Batches that are timed.')


def main(argv: list[str]) -> None:
  del argv
  shape = (_IMAGES.value, _SIZE.value, _SIZE.value, 1)
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'images.npy')
    array = np.lib.format.open_memmap(path, 'w+', np.uint8, shape)
    array[:] = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    array.flush()
    images = np.load(path, mmap_mode='r')
    ds = Dataset(folder, images, {}, (), '', {})
    stream = pipeline.train_stream(
      ds, np.arange(_IMAGES.value), _BATCH.value, seed=0
    )
    for _ in range(20):
      next(stream)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(_BATCHES.value):
      next(stream)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    stream.close()
  n = _BATCHES.value * _BATCH.value
  print(
    json.dumps(
      {
        'size_px': _SIZE.value,
        'batch_size': _BATCH.value,
        'images_per_s': round(n / wall),
        'images_per_cpu_s': round(n / cpu),
        'cores': os.cpu_count(),
      }
    )
  )


if __name__ == '__main__':
  app.run(main)

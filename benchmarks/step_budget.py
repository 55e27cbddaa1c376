"""Where the time of a training step goes, and of the first one.

python -m benchmarks.step_budget --preset=tiny [--steps=20]

The loop of training/train.py in its order, each part timed by wall clock: wait
for data, place it on the device, dispatch the step, wait for the metrics of
the step before. On a CPU dispatch may include computing. Checkpoints are timed
apart, to the return and to the end of writing. The first step is compiled
twice: into an empty cache, and again from it.
"""

import argparse
import contextlib
import statistics
import tempfile
import time

import jax
import numpy as np

from benchmarks import common
from configs import pretrain
from micdiffrep_jax.data.batches import train_stream
from micdiffrep_jax.data.dataset import Dataset
from micdiffrep_jax.encoders import encoder
from micdiffrep_jax.pretrain.state import compile_program
from micdiffrep_jax.run import devices
from micdiffrep_jax.run.checkpoint import Checkpoints


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--preset', default='tiny', choices=sorted(common.SIZES_PX)
  )
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--out', default='', help='JSON file to add to')
  return parser.parse_args()


def compile_s(program, *inputs) -> float:
  """Seconds to lower and compile, nothing left over in memory."""
  jax.clear_caches()
  started = time.perf_counter()
  program.step.lower(*inputs).compile()
  return time.perf_counter() - started


def main() -> None:
  args = arguments()
  config = pretrain.get_config(args.preset)
  config.batch_size = args.batch_size
  size_px = common.SIZES_PX[args.preset]
  mesh = devices.make_mesh()
  method = encoder.make_method(config, size_px, 1)
  program = compile_program(method, config, 1000, mesh)
  key = devices.replicate(jax.random.key(0), mesh)
  shape = (max(1000, args.batch_size), size_px, size_px, 1)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  ds = Dataset('', images, {}, (), '', {})
  batches = train_stream(ds, np.arange(len(images)), args.batch_size, seed=0)

  def place():
    return devices.place({'image': next(batches)['image']}, mesh)

  with tempfile.TemporaryDirectory() as folder, contextlib.closing(batches):
    jax.config.update('jax_compilation_cache_dir', f'{folder}/cache')
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    state = program.init(key)
    cold = compile_s(program, state, place(), key)
    warm = compile_s(program, state, place(), key)
    seconds: dict[str, list[float]] = {
      name: [] for name in ('data', 'place', 'dispatch', 'metrics', 'step')
    }
    pending = None
    for _ in range(args.steps + 2):
      marks = [time.perf_counter()]
      drawn = next(batches)
      marks.append(time.perf_counter())
      batch = devices.place({'image': drawn['image']}, mesh)
      marks.append(time.perf_counter())
      state, metrics = program.step(state, batch, key)
      marks.append(time.perf_counter())
      if pending is not None:
        jax.device_get(pending)
      pending = metrics
      marks.append(time.perf_counter())
      for name, passed in zip(seconds, np.diff(marks), strict=False):
        seconds[name].append(float(passed))
      seconds['step'].append(marks[-1] - marks[0])
    jax.block_until_ready(state)
    started = time.perf_counter()
    with contextlib.closing(
      Checkpoints(f'{folder}/checkpoints', 0, 'val_loss')
    ) as checkpoints:
      checkpoints.save(1, state, {'config': {}, 'info': {}}, None)
      returned = time.perf_counter() - started
      checkpoints.wait()
      written = time.perf_counter() - started
  # The first two steps compile and have no step before them.
  median = {k: statistics.median(v[2:]) for k, v in seconds.items()}
  record = {
    'clock': 'wall',
    'preset': args.preset,
    'batch_size': args.batch_size,
    'median_s': median,
    'share': {k: v / median['step'] for k, v in median.items()},
    'checkpoint_returned_s': returned,
    'checkpoint_written_s': written,
    'compile_cold_s': cold,
    'compile_warm_s': warm,
  }
  common.emit(f'step_budget {args.preset}', record, args.out)


if __name__ == '__main__':
  main()

"""How time and memory grow: with images, resolution, batch and devices.

python -m benchmarks.scaling [--out=FILE] [--plot=FILE.png]

Each point runs in a process of its own, so that peak memory is its own.

images      simulated records of 16 px, 3,000 of them labelled: writing them,
            opening the folder the first time (pixels checked and cached) and
            again, proving that no test image is trained on, the first batch,
            the stream. Decoding is prepare_and_stream's.
resolution  one update of the tiny preset, batch 32.
batch       the same at 64 px.
devices     the same, batch 64, compiled for 1 to 8 devices of one process; CPU
            devices share the cores, so not timed: work and memory of one
            device, and the bytes that it gives to an all-reduce.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from benchmarks import common
from benchmarks.on_paper import lower
from micdiffrep_jax.data import batches, store
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.pretrain import train

POINTS = {
  'images': (1_000, 10_000, 100_000, 1_000_000),
  'resolution': (32, 64, 96, 128),
  'batch': (8, 32, 128),
  'devices': (1, 2, 4, 8),
}
SIDE_PX = 16


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--axes', default=','.join(POINTS))
  parser.add_argument('--point', default='', help='axis:value, in this process')
  parser.add_argument('--out', default='', help='JSON file to add to')
  parser.add_argument('--plot', default='', help='PNG')
  return parser.parse_args()


def simulate(folder: str, count: int) -> None:
  """Writes `count` records of noise, up to 3,000 with classes and splits."""
  rng = np.random.default_rng(0)
  shape = (count, SIDE_PX, SIDE_PX, 1)
  images = rng.integers(0, 256, shape, np.uint8)
  number = np.arange(count)
  labelled = number < min(count // 2, 3000)
  ids = np.char.add('picture', number.astype(str))
  part = np.where(
    labelled, np.array(['train', 'val', 'test'])[number // 7 % 3], 'train'
  )
  table = {
    'index': number,
    'class': np.where(labelled, np.array(['a', 'b'])[number % 2], ''),
    'variant': np.full(count, ''),
    'group': np.where(
      labelled, np.char.add('g', (number // 7).astype(str)), ids
    ),
    'width': np.full(count, SIDE_PX),
    'height': np.full(count, SIDE_PX),
    'sha256': np.array([store.pixel_hash(image) for image in images]),
    **dict.fromkeys(('id', 'file', 'origin', 'source', 'unit'), ids),
    **dict.fromkeys(('paper', 'grouped', 'leaky'), part),
  }
  store.write_images(folder, images, ids.tolist(), table['class'].tolist())
  store.write_manifest(folder, table)
  info = store.Info(
    images=count,
    size_px=SIDE_PX,
    channels=1,
    classes=('a', 'b'),
    fingerprint='simulated',
  )
  store.write_info(folder, info)


def with_images(count: int) -> dict[str, float]:
  """Seconds of each stage from records to batches."""
  marks = {}
  with tempfile.TemporaryDirectory() as folder:
    started = time.perf_counter()

    def mark(name: str) -> None:
      nonlocal started
      marks[name] = time.perf_counter() - started
      started = time.perf_counter()

    simulate(folder, count)
    mark('write_s')
    data.open_dataset(folder)
    mark('first_open_s')
    ds = data.open_dataset(folder)
    mark('open_s')
    rows = data.pretraining_rows(ds, 'grouped')
    train.prove_unseen(ds, 'grouped', rows)
    mark('prove_unseen_s')
    stream = batches.train_stream(ds, rows, 128, seed=0)
    next(stream)
    mark('first_batch_s')
    for _ in range(1000):
      next(stream)
    mark('1000_batches_s')
    stream.close()
  return marks


def all_reduced_bytes(text: str) -> int:
  """Bytes of float32 that a device gives to the all-reduces of a program."""
  total = 0
  for line in text.splitlines():
    found = re.match(
      r'\s*(?:ROOT )?%?\S+ = (.*?) all-reduce(?:-start)?\(', line
    )
    for dims in re.findall(r'f32\[([\d,]*)\]', found.group(1) if found else ''):
      total += 4 * int(np.prod([int(d) for d in dims.split(',') if d] or [1]))
  return total


def with_step(axis: str, value: int) -> dict[str, float]:
  """Memory and work of one update, and its time but for several devices."""
  size_px = value if axis == 'resolution' else 64
  batch = {'batch': value, 'devices': 64}.get(axis, 32)
  program, compiled, images, key = lower('tiny', size_px, batch)
  memory = compiled.memory_analysis()
  found = {
    'state_mb': memory.argument_size_in_bytes / 2**20,
    'temporary_mb': memory.temp_size_in_bytes / 2**20,
    'gflop_of_a_device': compiled.cost_analysis()['flops'] / 1e9,
    'all_reduced_mb': all_reduced_bytes(compiled.as_text()) / 2**20,
  }
  if axis == 'devices':
    return found
  state, read, seconds = program.init(key), common.clock(), []
  for _ in range(5):
    started = read()
    state, _ = jax.block_until_ready(compiled(state, images, key))
    seconds.append(read() - started)
  return {**found, 'ms_per_image': 1e3 * float(np.median(seconds[1:])) / batch}


def run_point(point: str) -> dict[str, float]:
  axis, value = point.split(':')
  measure = with_images if axis == 'images' else None
  found = measure(int(value)) if measure else with_step(axis, int(value))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
  return {**found, 'process_peak_mb': peak}


def apart(axis: str, value: int) -> dict[str, float]:
  """run_point in a fresh process."""
  environment = dict(os.environ)
  if axis == 'devices':
    flag = f' --xla_force_host_platform_device_count={value}'
    environment['XLA_FLAGS'] = environment.get('XLA_FLAGS', '') + flag
    environment['JAX_PLATFORMS'] = 'cpu'
  command = [sys.executable, '-m', 'benchmarks.scaling']
  done = subprocess.run(
    [*command, f'--point={axis}:{value}'],
    env=environment,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


def draw(path: str, found: dict[str, dict[int, dict]]) -> None:
  """A panel per axis: both scales logarithmic, one line per measure."""
  from matplotlib.figure import Figure

  shown = {
    'images': ('write_s', 'first_open_s', 'open_s', 'process_peak_mb'),
    'resolution': ('ms_per_image', 'temporary_mb'),
    'batch': ('ms_per_image', 'temporary_mb'),
    'devices': ('gflop_of_a_device', 'temporary_mb', 'all_reduced_mb'),
  }
  figure = Figure(figsize=(3.6 * len(found), 3.4), layout='constrained')
  for i, (axis, points) in enumerate(found.items()):
    panel = figure.add_subplot(1, len(found), i + 1)
    x = sorted(map(int, points))
    at = {int(value): point for value, point in points.items()}
    for name in shown[axis]:
      y = [at[value][name] or np.nan for value in x]  # no zeros in a logarithm
      panel.loglog(x, y, marker='o', label=name.replace('_', ' '))
    panel.set_xticks(x, [f'{value:,}' for value in x])
    panel.minorticks_off()
    panel.set_xlabel(axis + (', px' if axis == 'resolution' else ''))
    panel.legend(fontsize=7)
    panel.grid(alpha=0.3)
  figure.savefig(path, dpi=110, bbox_inches='tight')


def main() -> None:
  args = arguments()
  if args.point:
    print(json.dumps(run_point(args.point)), flush=True)
    return
  found = {}
  for axis in args.axes.split(','):
    found[axis] = {value: apart(axis, value) for value in POINTS[axis]}
    for value, point in found[axis].items():
      print(axis, value, common.short(point), flush=True)
    common.emit(f'scaling {axis}', {'points': found[axis]}, args.out)
  if args.plot:
    draw(args.plot, found)


if __name__ == '__main__':
  main()

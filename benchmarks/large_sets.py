"""`prepare` and its search for near-duplicates against the number of pictures.

python -m benchmarks.large_sets [--sizes=10000,100000] [--search=1000000]

--sizes   JPEGs of smooth noise are written to a temporary folder, one in a
          hundred of them again, brighter; `prepare` makes a dataset of them.
--search  the search alone, on as many crops, made in memory.
Each size runs in a process of its own, whose greatest memory is told. CPU
seconds of all cores; rates should not fall, and memory grow by no more than
what a row of the manifest and a crop take. pip install -e '.[large]' first.
"""

import argparse
from collections.abc import Iterator
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np

from configs import prepare as prepare_config
from micdiffrep_jax.data import duplicates, nearest
from micdiffrep_jax.data.prepare import prepare

_COPIES = 100  # one picture in so many is written again
_FILE_PX = 96


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--sizes', default='10000,100000', help='of prepare')
  parser.add_argument('--search', default='10000,100000,1000000')
  parser.add_argument('--task', default='', help='of a process of its own')
  parser.add_argument('--folder', default='', help='of that process')
  parser.add_argument('--out', default='', help='JSON file to write')
  return parser.parse_args()


def pictures(count: int, side: int) -> Iterator[np.ndarray]:
  """Yields smooth random pictures (side, side) uint8, some again, brighter."""
  rng = np.random.default_rng(0)
  picture = np.zeros((side, side), np.uint8)
  for i in range(count):
    if i % _COPIES == 1:
      picture = cv2.convertScaleAbs(picture, alpha=1.1)
    else:
      coarse = rng.integers(20, 220, (12, 12), np.uint8)
      picture = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    yield picture


def write(folder: str, count: int) -> None:
  """As JPEGs, a thousand in a folder, of two classes."""
  for i, picture in enumerate(pictures(count, _FILE_PX)):
    place = os.path.join(folder, str(i // 1000), 'ab'[i // 2 % 2])
    os.makedirs(place, exist_ok=True)
    cv2.imwrite(os.path.join(place, f'{i}.jpg'), picture)


def prepared(folder: str) -> dict:
  """Of the files in a folder: what `prepare` took and found."""
  config = prepare_config.get_config()
  config.data.source = os.path.join(folder, 'in')
  config.data.out = os.path.join(folder, 'out')
  config.data.group_by = 'file'
  config.data.conflicts = 'keep'
  info = prepare(config.data)
  return {
    'files': info.images,
    'pairs': info.near_duplicates['pairs'],
    'planted': info.images // _COPIES,
  }


def searched(count: int) -> dict:
  """Of crops in memory; CPU seconds without those of making them."""
  crops = np.empty((count, 32, 32), np.uint8)
  for crop, picture in zip(crops, pictures(count, 32)):
    crop[:] = picture
  started = time.process_time()
  pairs = nearest.within(crops, duplicates.Thresholds())
  planted = np.arange(1, count, _COPIES)
  found = set(map(tuple, pairs.tolist()))
  return {
    'files': count,
    'search_cpu_s': time.process_time() - started,
    'pairs': len(pairs),
    'planted': len(planted),
    'planted_found': sum((i - 1, i) in found for i in planted.tolist()),
  }


def alone(task: str, folder: str) -> dict:
  """What a task gives in a process of its own, its memory with it."""
  command = [sys.executable, '-m', 'benchmarks.large_sets', f'--task={task}']
  done = subprocess.run(
    [*command, f'--folder={folder}'], check=True, stdout=subprocess.PIPE
  )
  return json.loads(done.stdout.splitlines()[-1])


def measured(task: str, folder: str) -> dict:
  """The same, from within that process."""
  started, wall = time.process_time(), time.perf_counter()
  kind, _, count = task.partition(':')
  found = prepared(folder) if kind == 'prepare' else searched(int(count))
  cpu_s = time.process_time() - started
  return {
    'task': kind,
    **found,
    'cpu_s': cpu_s,
    'wall_s': time.perf_counter() - wall,
    'files_per_cpu_s': found['files'] / cpu_s,
    'peak_mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
  }


def main() -> None:
  given = arguments()
  if given.task:
    print(json.dumps(measured(given.task, given.folder)))
    return
  rows = []
  for count in map(int, filter(None, given.sizes.split(','))):
    with tempfile.TemporaryDirectory() as folder:
      write(os.path.join(folder, 'in'), count)
      rows.append(alone('prepare', folder))
      print(rows[-1], flush=True)
  for count in map(int, filter(None, given.search.split(','))):
    rows.append(alone(f'search:{count}', ''))
    print(rows[-1], flush=True)
  print('| task | files | files per CPU s | search, CPU s | peak MiB |')
  print('|---|---|---|---|---|')
  for row in rows:
    search = f'{row["search_cpu_s"]:.1f}' if 'search_cpu_s' in row else ''
    rate, peak = f'{row["files_per_cpu_s"]:.0f}', f'{row["peak_mib"]:.0f}'
    cells = (row['task'], f'{row["files"]:,}', rate, search, peak)
    print('| ' + ' | '.join(cells) + ' |')
  if given.out:
    with open(given.out, 'w') as f:
      json.dump(rows, f, indent=1)


if __name__ == '__main__':
  main()

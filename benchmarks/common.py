"""What the benchmarks share: paired timing, and how results are written."""

from collections.abc import Callable, Mapping
import contextlib
import json
import os
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SIZES_PX = {'paper': 112, 'small': 64, 'tiny': 64, 'test': 16}  # of presets


def clock() -> Callable[[], float]:
  """CPU time on one core, else wall time.

  On a core that others use too, wall time measures the others. Work in other
  processes is not in it: pass time.perf_counter where there is any.
  """
  alone = jax.default_backend() == 'cpu' and cores() == 1
  return time.process_time if alone else time.perf_counter


def interleave(
  sides: Mapping[str, Callable[[], Any]],
  rounds: int,
  warmup: int = 2,
  read: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
  """Seconds of each side in each round: A B, A B, ...

  A round's sides run within moments of each other, so a load that others put
  on the machine falls on both. Each side must wait for its own result.
  """
  read = read or clock()
  for run in sides.values():
    for _ in range(warmup):
      run()
  seconds: dict[str, list[float]] = {name: [] for name in sides}
  for _ in range(rounds):
    for name, run in sides.items():
      started = read()
      run()
      seconds[name].append(read() - started)
  return seconds


def compare(
  seconds: Mapping[str, list[float]], count: int = 1, ours: str = 'ours'
) -> dict[str, dict]:
  """Median rate of `count` things, and how many times faster `ours` is.

  The ratio is the median over rounds of that round's ratio, with the quarters
  around it: medians of the sides alone would mix rounds of different load.
  """
  found = {}
  for name, times in seconds.items():
    ratios = [t / o for t, o in zip(times, seconds[ours], strict=True)]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    found[name] = {
      'median_s': statistics.median(times),
      'per_s': count / statistics.median(times),
      'rounds': len(times),
    }
    if name != ours:
      found[name]['ours_is_times_faster'] = middle
      found[name]['quartiles'] = [low, high]
  return found


def matmul_peak(dtype: str = 'float32', size: int = 0) -> float:
  """FLOP/s of the best of ten big products: the machine's measured peak."""
  accelerated = jax.default_backend() != 'cpu'
  size = size or (8192 if accelerated else 1536)
  x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
  product = jax.jit(jnp.matmul)
  product(x, x).block_until_ready()
  best, read = np.inf, clock()
  for _ in range(10):
    started = read()
    product(x, x).block_until_ready()
    best = min(best, read() - started)
  return 2 * size**3 / best


def cores() -> int:
  """Cores that this process may use, not those of the machine."""
  return len(os.sched_getaffinity(0))


def machine() -> str:
  """The machine in words."""
  if jax.default_backend() != 'cpu':
    return f'{jax.device_count()} x {jax.devices()[0].device_kind}'
  used, there = cores(), os.cpu_count() or 1
  if used < there:
    return f'{used} of {there} shared x86-64 cores'
  return f'{there} shared x86-64 cores'


def command() -> str:
  """What was typed, but for where results go and whose home it is."""
  name = os.path.splitext(os.path.basename(sys.argv[0]))[0]
  given = [x for x in sys.argv[1:] if not x.startswith('--out=')]
  line = ' '.join(['python -m', f'benchmarks.{name}', *given])
  return line.replace(os.path.expanduser('~'), '~')


def short(x: Any) -> Any:
  """Floats to four digits, all the way down."""
  if isinstance(x, dict):
    return {k: short(v) for k, v in x.items()}
  if isinstance(x, list | tuple):
    return [short(v) for v in x]
  if isinstance(x, float | np.floating):
    return float(f'{x:.4g}')
  return x


def emit(name: str, record: dict, out: str = '') -> None:
  """Prints a table of the sides and a line of JSON; adds it to file `out`."""
  timed = 'CPU' if clock() is time.process_time else 'wall'
  record = {
    'clock': timed,
    **record,
    'command': command(),
    'machine': machine(),
    'load': os.getloadavg()[0],
  }
  record = short(record)
  print(f'{name:<28}{"median s":>12}{"per s":>12}{"ours faster":>14}')
  for side, found in record.get('sides', {}).items():
    ratio = found.get('ours_is_times_faster', '')
    print(f'{side:<28}{found["median_s"]:>12}{found["per_s"]:>12}{ratio:>14}')
  print(json.dumps({'benchmark': name, **record}), flush=True)
  if out:
    add(name, record, out)


def add(name: str, record: dict, out: str) -> None:
  """Puts a record under its name into a JSON file."""
  results: dict[str, Any] = {}
  with contextlib.suppress(FileNotFoundError), open(out) as f:
    results = json.load(f)
  results[name] = short(record)
  part = f'{out}.part'
  with open(part, 'w') as f:
    json.dump(results, f, indent=1, sort_keys=True)
    f.write('\n')
  os.replace(part, out)

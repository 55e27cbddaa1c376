"""What the measurements share: pairing, medians, and how they are told."""

from collections.abc import Callable
import json
import os
import platform
import statistics
import time

import jax


def seconds(call: Callable[[], object]) -> float:
  started = time.perf_counter()
  call()
  return time.perf_counter() - started


def interleave(
  calls: dict[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
  """Seconds of each call, A B A B ..., after one of each that is not counted.

  A machine that others use drifts; neighbours in time are drifted alike.
  """
  for call in calls.values():
    call()
  found: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(repeats):
    for name, call in calls.items():
      found[name].append(seconds(call))
  return found


def ratio(ours: list[float], peer: list[float]) -> tuple[float, float, float]:
  """How many times faster ours is, pair by pair: median, least, most."""
  pairs = [b / a for a, b in zip(ours, peer)]
  return statistics.median(pairs), min(pairs), max(pairs)


def machine() -> dict[str, object]:
  return {
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'processor': platform.machine(),
    'cores': len(os.sched_getaffinity(0)),
    'load_average': os.getloadavg()[0],
    'jax': jax.__version__,
  }


def tell(
  title: str, times: dict[str, list[float]], images: int, record: dict
) -> None:
  """A table of images per second and ratios to the first name; then JSON."""
  first, *others = times
  print(title)
  for name, values in times.items():
    speed = images / statistics.median(values)
    print(f'  {name:34}{speed:12.2f} images/s', end='')
    if name != first:
      middle, low, high = ratio(times[first], values)
      print(f'   {first} is {middle:.2f} times as fast [{low:.2f}, {high:.2f}]')
    else:
      print()
  record = {
    **record,
    'images': images,
    'images_per_s': {
      k: images / statistics.median(v) for k, v in times.items()
    },
    'ratio': {k: ratio(times[first], times[k]) for k in others},
    **machine(),
  }
  print(json.dumps(record))

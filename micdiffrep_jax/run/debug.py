"""Checks that cost speed, and traces that show where it goes."""

from collections.abc import Callable, Iterator
import contextlib
import os
from typing import Any

import jax

from micdiffrep_jax.run import log


@contextlib.contextmanager
def checks(enabled: bool) -> Iterator[None]:
  """Raises where a NaN arises, a key is used twice or ranks are promoted.

  Each result is read back to be checked, so a run is several times slower; its
  numbers are the same. A compiled function that gave NaN is run again operation
  by operation, and the error names the one that did.
  """
  with contextlib.ExitStack() as stack:
    if enabled:
      stack.enter_context(jax.debug_nans(True))
      stack.enter_context(jax.debug_key_reuse(True))
      stack.enter_context(jax.numpy_rank_promotion('raise'))
    yield


def parse_window(window: str) -> range:
  """'START:STOP' -> the steps START to STOP, both included; '' -> none.

  Raises ValueError for anything else.
  """
  if not window:
    return range(0)
  start, _, stop = window.partition(':')
  if not (start.isdigit() and stop.isdigit() and 0 < int(start) <= int(stop)):
    raise ValueError(
      f'profile={window!r} is not START:STOP with 0 < START <= STOP, in steps. '
      'Set for example --config.profile=20:25, or none with --config.profile=.'
    )
  return range(int(start), int(stop) + 1)


@contextlib.contextmanager
def profiler(window: str, workdir: str) -> Iterator[Callable[[int, Any], None]]:
  """Yields tick(step, state), to be called before each step.

  Traces the steps of `window` into workdir/tensorboard, which TensorBoard with
  its profile plugin, Perfetto and XProf open. Choose steps after the first:
  that one compiles. The first process traces for all.
  """
  steps = parse_window(window) if jax.process_index() == 0 else range(0)
  folder = os.path.join(workdir, 'tensorboard')
  tracing = False

  def stop() -> None:
    nonlocal tracing
    jax.profiler.stop_trace()
    tracing = False
    log.get_logger().info('Trace of steps %s in %s.', window, folder)

  def tick(step: int, state: Any) -> None:
    nonlocal tracing
    if tracing and step not in steps:
      jax.block_until_ready(state)
      stop()
    if not tracing and step in steps:
      jax.profiler.start_trace(folder)
      tracing = True

  try:
    yield tick
  finally:
    if tracing:
      stop()

"""What an optimised XLA program says: traffic, operations, collectives.

Every operation of the program's top level reads its operands from memory and
writes its result there; what a fusion does inside stays on the chip. So the sum
of their bytes is the traffic, too high where an operation reads a part of an
operand. Loops count as often as they run, where the compiler knows that.
"""

from collections import Counter
from collections.abc import Iterator
import re
from typing import NamedTuple

import numpy as np

# A declaration at the top of a computation, and one of its lines.
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
_LINE = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?[\]})]) ([\w\-]+)\((.*)')
_SHAPE = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?')
_CALLED = re.compile(r'(?:calls|to_apply|body)=%?([\w.\-]+)')
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_ALLOCATION = re.compile(r'^allocation \d+: size (\d+), (?:color (\d+), )?(.*)')
# They move nothing themselves.
_FREE = frozenset(
  'parameter constant tuple get-tuple-element bitcast after-all '
  'partition-id replica-id opt-barrier iota'.split()
)
# They move what the computation moves that they call.
_INSIDE = frozenset('call while async-start'.split())
_COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)


class Operation(NamedTuple):
  """A line: what it is, its bytes, and how often the program does it."""

  kind: str
  shape: str  # as written: f32[8,16]{1,0}, or a tuple of such
  operands: tuple[str, ...]  # their shapes
  text: str
  times: int

  @property
  def bytes(self) -> int:
    """Read from and written to the device's memory each time."""
    result, operands = self.shape, self.operands
    if self.kind == 'slice' and size(operands[0], near=False):
      # It reads what it makes: a TPU fetches large weights in parts.
      return size(result) + size(result, near=False)
    if self.kind == 'custom-call':  # a library's scratch stands behind it
      result = re.sub(r', [su]8\[\d+\].*', '', result)
    elif self.kind.endswith('-start') and self.kind != 'all-reduce-start':
      operands = ()  # they stand in its result
    return sum(size(x, near=False) for x in (result, *operands))


def memory(text: str) -> dict[str, int]:
  """Bytes of the device's memory by use, from XLA's assignment of buffers.

  results: those that do not take the place of an argument. Other memories, as
  on a TPU's chip, and what a kernel's threads hold are not in it.
  """
  uses = {
    'parameter ': 'arguments',
    'preallocated-temp': 'temporary',
    'constant': 'constants',
    'thread-local': '',
  }
  found = dict.fromkeys(('arguments', 'temporary', 'constants', 'results'), 0)
  for line in text.splitlines():
    said = _ALLOCATION.match(line)
    if said is None or int(said[2] or 0):
      continue
    use = next((uses[x] for x in uses if said[3].startswith(x)), 'results')
    if use:
      found[use] += int(said[1])
  return found


def width(dtype: str) -> float:
  """Bytes of an element: 'bf16' has 2, 'pred' 1."""
  bits = re.search(r'\d+', dtype)
  return int(bits.group()) / 8 if bits else {'pred': 1}.get(dtype, 0)


def size(shape: str, near: bool = True) -> int:
  """Bytes of all arrays in a shape.

  near: those in the memory on the chip itself too, which a TPU's program has.
  """
  return int(
    sum(
      width(dtype) * np.prod([int(d) for d in dims.split(',') if d])
      for dtype, dims, layout in _SHAPE.findall(shape)
      if near or 'S(1)' not in layout
    )
  )


def read(text: str) -> dict[str, list[tuple[str, str, str, str]]]:
  """Lines (name, shape, kind, rest) by computation; 'ENTRY' is the program."""
  found: dict[str, list[tuple[str, str, str, str]]] = {}
  lines: list[tuple[str, str, str, str]] = []
  for line in text.splitlines():
    start = _COMPUTATION.match(line)
    if start:
      lines = found.setdefault(start.group(1), [])
      if line.startswith('ENTRY'):
        found['ENTRY'] = lines
    elif (said := _LINE.match(line)) is not None:
      lines.append(said.groups())  # type: ignore[arg-type]
  return found


def operations(text: str) -> list[Operation]:
  """All that the program does, with what it does inside of loops."""
  computations = read(text)

  def inside(name: str, times: int) -> Iterator[Operation]:
    shapes = {line[0]: line[1] for line in computations.get(name, ())}
    for _, shape, kind, rest in computations.get(name, ()):
      if kind in _FREE or kind.endswith(('-done', '-update')):
        continue
      if kind in _INSIDE:
        trips = _TRIPS.search(rest)
        again = times * (int(trips.group(1)) if trips else 1)
        for called in _CALLED.findall(rest):
          yield from inside(called, again)
        continue
      named = re.findall(r'%([\w.\-]+)', rest.split('), ')[0])
      operands = tuple(shapes[x] for x in named if x in shapes)
      yield Operation(kind, shape, operands, rest, times)

  return list(inside('ENTRY', 1))


def traffic(done: list[Operation]) -> int:
  """Bytes read and written by a device."""
  return sum(x.bytes * x.times for x in done)


def kinds(done: list[Operation]) -> dict[str, tuple[int, int]]:
  """How often each kind of operation is done, and the bytes it moves.

  A call of a library bears its name.
  """
  count: Counter[str] = Counter()
  moved: Counter[str] = Counter()
  for x in done:
    target = re.search(r'custom_call_target="([^"]*)"', x.text)
    kind = target.group(1).strip('_') if target else x.kind
    count[kind] += x.times
    moved[kind] += x.times * x.bytes
  return {kind: (count[kind], moved[kind]) for kind, _ in moved.most_common()}


def collectives(text: str) -> dict[str, tuple[int, int]]:
  """How many of each kind and type stand in the program, and their bytes.

  'all-reduce f32': bytes of the result; of a scatter those that go in.
  """
  count: Counter[str] = Counter()
  moved: Counter[str] = Counter()
  computations = read(text)
  computations.pop('ENTRY', None)  # it stands there by its name too
  for lines in computations.values():
    shapes = {line[0]: line[1] for line in lines}
    for _, shape, kind, rest in lines:
      kind = kind.removesuffix('-start')
      if kind not in _COLLECTIVES:
        continue
      named = re.findall(r'%([\w.\-]+)', rest.split('), ')[0])
      given = sum(size(shapes[x]) for x in named if x in shapes)
      made = size(shape)
      # What is started holds operands and results.
      whole = made - given if made > given and '(' in shape else made
      key = f'{kind} {_SHAPE.findall(shape)[0][0]}'
      count[key] += 1
      moved[key] += max(given, whole)
  return {key: (count[key], moved[key]) for key in sorted(count)}


def convolutions(text: str) -> dict[str, int]:
  """How many convolutions have which layout; channels last: b01f_01io->b01f."""
  return dict(Counter(re.findall(r'dim_labels=(\w+->\w+)', text)).most_common())

"""What a preparation made, in a few aligned lines."""

from collections.abc import Mapping, Sequence
from typing import Any

from micdiffrep_jax.data import splits, store

_SHOWN = 6  # kinds of files that were left out


def next_commands(out: str) -> list[str]:
  """What to run after a preparation into `out`."""
  start = 'python -m micdiffrep_jax.main --config=configs/'
  return [
    f'{start}audit.py --config.data.path={out} --workdir=runs/audit',
    f'{start}pretrain.py:paper --config.data.path={out} --workdir=runs/mine',
  ]


def text(info: store.Info, out: str) -> str:
  """The lines: images, patients, parts, what was left out, what is next."""
  colour = 'colour' if info.channels == 3 else 'grey'
  size = f'{info.size_px} x {info.size_px} px, {colour}'
  facts = [
    ('dataset', out),
    ('images', f'{info.images} of {len(info.classes)} classes, {size}'),
    *_people(info.patients),
    *_parts('split patient', info.counts.get('patient', {})),
    *_parts('split given', info.counts.get(splits.GIVEN, {})),
    *(('left out', line) for line in _left_out(info)),
  ]
  if info.rejected:
    facts.append(('refused', f'{info.rejected} files; rejected.csv says why'))
  if info.rules:
    changed = ', '.join(f'{rule} {n}' for rule, n in info.rules.items())
    facts.append(('by rule', changed))
  facts += [('next', line) for line in next_commands(out)]
  return _aligned(facts)


def _people(patients: Mapping[str, Any]) -> list[tuple[str, str]]:
  """How many patients are known, from where, and the groups made of them."""
  if not patients.get('images'):
    return []
  named = {k: n for k, n in patients['named_by'].items() if k != 'unknown'}
  whence = ', '.join(f'{k} {n}' for k, n in named.items())
  known = f'{patients["patients"]} known' + (
    f' (images by what names them: {whence})' if whence else ''
  )
  unknown = f'; unknown for {patients["unknown"]} images'
  return [
    ('patients', known + (unknown if patients['unknown'] else '')),
    ('groups', f'{patients["groups"]} that stay together in a split'),
  ]


def _parts(
  title: str, parts: Mapping[str, Mapping[str, int]]
) -> list[tuple[str, str]]:
  """A small table: a line for each class, a column for each part."""
  names = [name for name in parts.get('train', {})]
  shown = [
    part
    for part in (*splits.PARTS, splits.EXCLUDED)
    if part != splits.EXCLUDED or any(parts.get(part, {}).values())
  ]
  if not names:
    return []
  wide = max(len(name or '(unlabelled)') for name in names)
  head = ' ' * wide + ''.join(f'{part:>10}' for part in shown)
  rows = [
    f'{name or "(unlabelled)":<{wide}}'
    + ''.join(f'{parts[part][name]:>10}' for part in shown)
    for name in names
  ]
  return [(title, line) for line in (head, *rows)]


def _left_out(info: store.Info) -> list[str]:
  """Kinds of files that were ignored, the most frequent first."""
  kinds = sorted(info.junk.items(), key=lambda item: -item[1])
  lines = [
    f'{n} {kind}'
    + (f', e.g. {info.left_out[kind]}' if kind in info.left_out else '')
    for kind, n in kinds[:_SHOWN]
  ]
  if len(kinds) > _SHOWN:
    lines.append(f'and {len(kinds) - _SHOWN} kinds more, see dataset.json')
  return lines


def _aligned(facts: Sequence[tuple[str, str]]) -> str:
  """Titles in one column; one that repeats is shown once."""
  wide = max(len(title) for title, _ in facts)
  lines, before = [], ''
  for title, line in facts:
    lines.append(f'{"" if title == before else title:<{wide}}  {line}')
    before = title
  return '\n'.join(lines)

"""The findings of an audit as blocks of a page."""

from typing import Any

from micdiffrep_jax.draw.page import (
  Block,
  Facts,
  Section,
  Table,
  Text,
  interval,
)

_COLUMNS = {
  'unit': 'sources',
  'group': 'groups',
  'sha256': 'equal pixels',
}


def sections(record: dict[str, Any]) -> list[Section]:
  """The sections of an audit's page, from its results."""
  return [
    Section('Verdict', verdict(record)),
    Section('Splits', split_blocks(record)),
    Section('Images', image_blocks(record)),
    Section('Shortcuts', shortcut_blocks(record)),
    Section('Provenance', provenance(record)),
  ]


def verdict(record: dict[str, Any]) -> list[Block]:
  """Passed or not, and why."""
  split = record['data']['split']
  blocks: list[Block] = []
  if record['passed']:
    blocks.append(Text(f'The audit passes for split {split!r}.', 'good'))
  else:
    blocks.append(Text(f'The audit fails for split {split!r}.', 'bad'))
    blocks += [Text(reason, 'bad') for reason in record['reasons']]
  return blocks + [Text(w, 'warning') for w in record['warnings']]


def split_blocks(record: dict[str, Any]) -> list[Block]:
  """What each split promises and keeps, and the classes of its parts."""
  rows = []
  for name, split in record['splits'].items():
    twins = split['twins']
    n = max(1, twins['test_sources'])
    rows.append(
      [
        name,
        'kept' if split['passed'] else 'BROKEN',
        *(split['crossings'][c] for c in _COLUMNS),
        twins['test_sources'],
        f'{100 * twins["sha256_seen"] / n:.1f} %',
        f'{100 * twins["group_seen"] / n:.1f} %',
      ]
    )
  promises = '; '.join(
    f'{name}: {", ".join(split["promises"]) or "nothing"}'
    for name, split in record['splits'].items()
  )
  blocks: list[Block] = [
    Text(f'What no two parts of a split may share: {promises}.'),
    Table(
      [
        'split',
        'promise',
        *(f'{word} in several parts' for word in _COLUMNS.values()),
        'test sources',
        'with a pixel twin in train or val',
        'with a near-duplicate there',
      ],
      rows,
      'What lies in several parts of each split.',
    ),
  ]
  for name, split in record['splits'].items():
    classes = list(next(iter(split['counts'].values())))
    blocks.append(
      Table(
        ['part', *classes, 'all', 'groups'],
        [
          [part, *n.values(), sum(n.values()), split['groups'].get(part, '')]
          for part, n in split['counts'].items()
          if part != 'excluded' or sum(n.values())
        ],
        f'Images of split {name!r}, hash {split["split_hash"][:16]}.',
      )
    )
  return blocks


def image_blocks(record: dict[str, Any]) -> list[Block]:
  """Sizes, odd images, near-duplicates, conflicts, refused files."""
  content, near = record['content'], record['near_duplicates']
  pairs: list[tuple[str, Any]] = [
    ('images', record['data']['images']),
    ('of one colour', _listed(content['constant'])),
    ('from files under 8 px', _listed(content['tiny'])),
    ('enlarged', content['enlarged']),
    ('not those of the manifest', _listed(content['changed'])),
    ('equal pixels, several labels', _listed(record['label_conflicts'])),
    ('files refused', len(record['rejected'])),
    ('files ignored', _counts(record['junk'])),
    ('decoding rules applied', _counts(record['rules'])),
  ]
  if near:
    pairs += [
      ('untouched sources', near['sources']),
      ('near-duplicate pairs', near['pairs']),
      ('sources with a partner', near['sources_with_a_partner']),
      ('largest near-duplicate group', near['largest_group']),
      ('nearly equal, several labels', _listed(near['conflicts'])),
      ('images left out for that', near['dropped']),
    ]
  look = record.get('second_look')
  if look:
    pairs.append(
      (
        'second look at the prepared size',
        f'{look["pairs"]} pairs, {look["pairs_not_in_one_group"]} of them not '
        f'in one group, {look["pairs_across_test"]} across test',
      )
    )
  sizes = record['sizes']
  columns = list(next(iter(sizes.values()))) if sizes else []
  blocks: list[Block] = [Facts(pairs)]
  if sizes:
    blocks.append(
      Table(
        ['class', *columns],
        [
          [name, *(_cell(column, row[column]) for column in columns)]
          for name, row in sizes.items()
        ],
        'Sizes of the original files, untouched sources.',
      )
    )
  if record['rejected']:
    blocks.append(
      Table(
        ['file', 'reason'],
        [[r['file'], r['reason']] for r in record['rejected'][:50]],
        'Files refused (at most 50 are shown).',
        text=True,
      )
    )
  return blocks


def shortcut_blocks(record: dict[str, Any]) -> list[Block]:
  """What a forest makes of numbers without anatomy."""
  found = record.get('shortcuts')
  if not found:
    return []
  classes = record['data']['classes']
  rows = []
  for name, scored in found.items():
    if 'skipped' in scored:
      rows.append([name, 'skipped', scored['skipped'], *([''] * len(classes))])
      continue
    rows.append(
      [
        name,
        interval(scored['balanced_accuracy']),
        f'{100 * scored["chance"]:.1f}',
        *(interval(scored['auroc'][c], 1, 2) for c in classes),
      ]
    )
  return [
    Text(
      'A forest, cross-validated by group, on numbers that hold no anatomy. '
      'What it scores above chance, a network may score by the same shortcut.'
    ),
    Table(
      [
        'numbers',
        'balanced accuracy, %',
        'chance, %',
        *(f'AUROC {c}' for c in classes),
      ],
      rows,
      'Untouched sources; 95 % intervals by group bootstrap.',
    ),
  ]


def provenance(record: dict[str, Any]) -> list[Block]:
  """Where the numbers come from."""
  where = record['data']
  return [
    Facts(
      [
        ('dataset', where['path']),
        ('fingerprint', where['fingerprint']),
        ('split', f'{where["split"]}, hash {where["split_hash"]}'),
        ('images', f'{where["size_px"]} px, {where["channels"]} channel(s)'),
        ('command', ' '.join(record.get('command', []))),
        ('finished', record.get('finished', '')),
      ]
    )
  ]


def _listed(items: list) -> str:
  """A count, and the first few items."""
  if not items:
    return '0'
  shown = '; '.join(
    ' / '.join(x) if isinstance(x, list) else x for x in items[:4]
  )
  return f'{len(items)}: {shown}{" ..." if len(items) > 4 else ""}'


def _counts(table: dict[str, int]) -> str:
  return ', '.join(f'{k} {v}' for k, v in table.items()) or 'none'


def _cell(column: str, value: Any) -> Any:
  return f'{100 * value:.0f} %' if column == 'share of it' else value

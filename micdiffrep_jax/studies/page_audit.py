"""What an audit tells, and the same as the sections of a page."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from micdiffrep_jax.data import splits
from micdiffrep_jax.draw.page import (
  Block,
  Facts,
  Section,
  Table,
  Text,
  interval,
)
from micdiffrep_jax.draw.result import Run, patients_in_words, record_of
from micdiffrep_jax.run.records import Record
from micdiffrep_jax.scores.bootstrap import Score

TINY_PX = 8  # a side below which an original is hardly a picture
_SHOWN = 50  # refused files that the page lists
_CROSSING = {
  'unit': 'sources',
  'patient_id': 'patients',
  'near': 'near-duplicate groups',
  'sha256': 'equal pixels',
}


@dataclasses.dataclass(frozen=True)
class Verdict(Record):
  """Whether a split keeps what it promises.

  Attributes:
    promises: what no two of its parts may share, in words.
    passed: whether nothing of this is broken.
    crossings: by column, how many values lie in several parts.
    twins: untouched test sources, and how many share something with the rest.
    split_hash: of the split.
    counts: images by part and class.
    groups: by part.
    reasons: why it failed.
    examples: by column, of what crosses.
  """

  promises: tuple[str, ...]
  passed: bool
  crossings: Mapping[str, int]
  twins: Mapping[str, int]
  split_hash: str
  counts: Mapping[str, Mapping[str, int]]
  groups: Mapping[str, int]
  reasons: tuple[str, ...] = ()
  examples: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Looks(Record):
  """Ids of images that look odd.

  Attributes:
    constant: of one colour.
    tiny: from tiny files.
    enlarged: how many are larger than their files.
    changed: not those of the manifest.
    two_levels: of two grey levels.
    masks: of these, files with the picture of which each has the name.
  """

  constant: tuple[str, ...]
  tiny: tuple[str, ...]
  enlarged: int
  changed: tuple[str, ...]
  two_levels: tuple[str, ...] = ()
  masks: tuple[tuple[str, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Pairs(Record):
  """Pairs of sources that look alike, and how many groups do not join.

  Attributes:
    pairs: all of them.
    pairs_not_in_one_group: of these.
    pairs_across_test: of the latter, one in test and one not.
    test_sources: in such a pair.
    examples: of such pairs, by id.
  """

  pairs: int
  pairs_not_in_one_group: int
  pairs_across_test: int
  test_sources: int
  examples: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class SecondLook(Pairs):
  """Near-duplicates at the prepared size.

  share: of the test sources; neighbours: the same of what looks like slices
  beside each other, near-duplicates among them.
  """

  share: float
  neighbours: Pairs


@dataclasses.dataclass(frozen=True)
class Shortcut(Record):
  """What a forest makes of numbers without anatomy, or why there is none.

  auroc: by class, of it against the rest; numbers: how many an image has.
  """

  skipped: str | None = None
  balanced_accuracy: Score | None = None
  chance: float | None = None
  auroc: Mapping[str, Score] | None = None
  images: int | None = None
  folds: int | None = None
  numbers: int | None = None


@dataclasses.dataclass(frozen=True)
class Audit(Record):
  """All findings; `passed` speaks of the pixels and of the split of data.

  Attributes:
    data: which images.
    splits: verdicts by split.
    content: odd images.
    sizes: of original files, by class.
    label_conflicts: ids of equal pixels with several labels.
    near_duplicates: what prepare found.
    rejected: files that prepare refused, with its reasons.
    junk: files that it ignored, by kind.
    rules: of decoding, and how often each was applied.
    reasons: why the audit fails.
    passed: whether there are none.
    warnings: what does not fail it and should be known.
    second_look: at near-duplicates, where it was asked for.
    shortcuts: by name, where they were asked for.
  """

  data: Mapping[str, Any]
  splits: Mapping[str, Verdict]
  content: Looks
  sizes: Mapping[str, Mapping[str, Any]]
  label_conflicts: tuple[tuple[str, ...], ...]
  near_duplicates: Mapping[str, Any]
  rejected: tuple[Mapping[str, str], ...]
  junk: Mapping[str, int]
  rules: Mapping[str, int]
  reasons: tuple[str, ...]
  passed: bool
  warnings: tuple[str, ...]
  second_look: SecondLook | None = None
  shortcuts: Mapping[str, Shortcut] | None = None


def sections(record: Mapping[str, Any]) -> list[Section]:
  """The sections of an audit's page, from its results."""
  found = Audit.from_json(record)
  where = found.data
  pairs = [
    ('dataset', where['path']),
    ('fingerprint', where['fingerprint']),
    ('split', f'{where["split"]}, hash {where["split_hash"]}'),
    ('images', f'{where["size_px"]} px, {where["channels"]} channel(s)'),
    ('command', ' '.join(record.get('command', []))),
    ('finished', record.get('finished', '')),
  ]
  return [
    Section('Verdict', _verdict(found)),
    Section('Splits', _splits(found.splits)),
    Section('Images', _images(found)),
    Section('Shortcuts', _shortcuts(found)),
    Section('Provenance', [Facts(pairs)]),
  ]


def blocks(run: Run) -> list[Block]:
  """The page without where its numbers come from, which a report tells."""
  shown = sections(record_of(run))[:-1]
  return [block for section in shown for block in section.blocks]


def _verdict(found: Audit) -> list[Text]:
  """Passed or not, and why."""
  verb, tone = ('passes', 'good') if found.passed else ('fails', 'bad')
  return [
    Text(f'The audit {verb} for split {found.data["split"]!r}.', tone),
    *(Text(reason, 'bad') for reason in found.reasons),
    *(Text(warning, 'warning') for warning in found.warnings),
  ]


def _splits(found: Mapping[str, Verdict]) -> list[Block]:
  """What each split promises and keeps, and the classes of its parts."""
  rows = []
  for name, split in found.items():
    twins = split.twins
    share = 100 / max(1, twins['test_sources'])
    rows.append(
      [
        name,
        'kept' if split.passed else 'BROKEN',
        *(split.crossings[c] for c in _CROSSING),
        twins['test_sources'],
        f'{share * twins["sha256_seen"]:.1f} %',
        f'{share * twins["near_seen"]:.1f} %',
        f'{share * twins["patient_id_seen"]:.1f} %',
      ]
    )
  promises = '; '.join(
    f'{name}: {", ".join(split.promises) or "nothing"}'
    for name, split in found.items()
  )
  return [
    Text(f'What no two parts of a split may share: {promises}.'),
    Table(
      [
        'split',
        'promise',
        *(f'{word} in several parts' for word in _CROSSING.values()),
        'test sources',
        'with a pixel twin in train or val',
        'with a near-duplicate there',
        'with a slice of the same patient there',
      ],
      rows,
      'What lies in several parts of each split.',
    ),
    *(
      Table(
        ['part', *next(iter(split.counts.values())), 'all', 'groups'],
        [
          [part, *n.values(), sum(n.values()), split.groups.get(part, '')]
          for part, n in split.counts.items()
          if part != splits.EXCLUDED or any(n.values())
        ],
        f'Images of split {name!r}, hash {split.split_hash[:16]}.',
      )
      for name, split in found.items()
    ),
  ]


def _images(found: Audit) -> list[Block]:
  """Sizes, odd images, near-duplicates, conflicts, refused files."""
  blocks: list[Block] = [Facts(_counts(found))]
  if found.sizes:
    columns = list(next(iter(found.sizes.values())))
    blocks.append(
      Table(
        ['class', *columns],
        [
          [name, *(_cell(c, row[c]) for c in columns)]
          for name, row in found.sizes.items()
        ],
        'Sizes of the original files, untouched sources.',
      )
    )
  if found.rejected:
    blocks.append(
      Table(
        ['file', 'reason'],
        [[r['file'], r['reason']] for r in found.rejected[:_SHOWN]],
        f'Files refused (at most {_SHOWN} are shown).',
        text=True,
      )
    )
  return blocks


def _counts(found: Audit) -> list[tuple[str, Any]]:
  """How many images of which kind."""
  content, near = found.content, found.near_duplicates
  pairs = [
    ('images', found.data['images']),
    ('of one colour', _listed(content.constant)),
    ('of two grey levels', _listed(content.two_levels)),
    ('of them beside a picture', _listed(content.masks)),
    (f'from files under {TINY_PX} px', _listed(content.tiny)),
    ('enlarged', content.enlarged),
    ('not those of the manifest', _listed(content.changed)),
    ('equal pixels, several labels', _listed(found.label_conflicts)),
    ('files refused', len(found.rejected)),
    ('files ignored', _by_kind(found.junk)),
    ('decoding rules applied', _by_kind(found.rules)),
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
  pairs.append(('patients', patients_in_words(found.data['patients'])))
  look = found.second_look
  if look:
    text = (
      f'{look.pairs} pairs, {look.pairs_not_in_one_group} of them not in '
      f'one group, {look.pairs_across_test} across test'
    )
    pairs.append(('second look at the prepared size', text))
    close = look.neighbours
    text = (
      f'{close.pairs_not_in_one_group} pairs not in one group, '
      f'{close.pairs_across_test} across test'
    )
    pairs.append(('pairs like neighbouring slices', text))
  return pairs


def _shortcuts(found: Audit) -> list[Block]:
  """What a forest makes of numbers without anatomy."""
  classes = found.data['classes']
  if not found.shortcuts:
    return []
  rows = []
  for name, scored in found.shortcuts.items():
    if scored.skipped is not None:
      cells = ['skipped', scored.skipped, *([''] * len(classes))]
    else:
      areas = scored.auroc or {}
      cells = [
        interval(scored.balanced_accuracy),
        f'{100 * (scored.chance or 0):.1f}',
        *(interval(areas[c], 1, 2) for c in classes),
      ]
    rows.append([name, *cells])
  heads = [f'AUROC {c}' for c in classes]
  return [
    Text(
      'A forest, cross-validated by group, on numbers that hold no anatomy. '
      'What it scores above chance, a network may score by the same shortcut.'
    ),
    Table(
      ['numbers', 'balanced accuracy, %', 'chance, %', *heads],
      rows,
      'Untouched sources; 95 % intervals by group bootstrap.',
    ),
  ]


def _listed(items: Sequence[str | Sequence[str]]) -> str:
  """A count, and the first few items."""
  if not items:
    return '0'
  shown = '; '.join(
    x if isinstance(x, str) else ' / '.join(x) for x in items[:4]
  )
  return f'{len(items)}: {shown}{" ..." if len(items) > 4 else ""}'


def _by_kind(table: Mapping[str, int]) -> str:
  return ', '.join(f'{k} {v}' for k, v in table.items()) or 'none'


def _cell(column: str, value: Any) -> Any:
  return f'{100 * value:.0f} %' if column == 'share of it' else value

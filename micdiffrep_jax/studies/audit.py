"""Task `audit`: whether a prepared dataset can be trusted, split by split."""

from collections.abc import Mapping, Sequence
import csv
import os
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import duplicates, masks, splits, store
from micdiffrep_jax.data import manifest as tables
from micdiffrep_jax.data import promises as checks
from micdiffrep_jax.draw import page
from micdiffrep_jax.draw.page import (
  Block,
  Facts,
  Section,
  Table,
  Text,
  interval,
)
from micdiffrep_jax.draw.result import Run, patients_in_words, record_of
from micdiffrep_jax.run import files, log
from micdiffrep_jax.studies import base, shortcuts

Record = Mapping[str, Any]
FAILED = 3  # exit status
_BLOCK = 1024
_TINY_PX = 8
_RARE = 0.02  # share of a class that is called rare
_TWO_LEVELS = 0.85  # share of its pixels that a mask has at two grey levels
_APART = 40  # grey levels between these two
_SHORTCUT = 0.8  # area under the curve from which a shortcut is called out
_SHOWN = 50  # refused files that the page lists
_CROSSING = {
  'unit': 'sources',
  'patient_id': 'patients',
  'near': 'near-duplicate groups',
  'sha256': 'equal pixels',
}
# Measured on slices of 154 known patients: of the pairs that correlate so and
# are no near-duplicates, 99 % were of one patient.
_NEIGHBOURS = duplicates.Thresholds(0.93, 0.5, 0.95)


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Writes results.json and audit.html; SystemExit(3) where the audit fails."""
  dataset = data.open_dataset(config.data.path, cache=config.data.cache)
  checks.check(dataset, config.data.split)  # the name, before the work
  results = audit(dataset, config)
  record = files.write_results(workdir, results, config)
  path = os.path.join(workdir, 'audit.html')
  subtitle = f'{dataset.path}, {len(dataset.images)} images'
  html = page.render('Data audit', subtitle, sections(record))
  files.write_whole(path, html.encode())
  for warning in results['warnings']:
    log.get_logger().warning('%s', warning)
  if not results['passed']:
    for reason in results['reasons']:
      log.get_logger().error('%s', reason)
    raise SystemExit(FAILED)
  log.get_logger().info('The audit passes; %s.', path)
  return record


def audit(dataset: data.Dataset, config: ConfigDict) -> files.Results:
  """All findings; `passed` speaks of the pixels and of config.data.split."""
  names = data.split_names(dataset)
  verdicts = {name: verdict(dataset, name) for name in names}
  content = look(dataset)
  labelled = np.flatnonzero(dataset.manifest['class'] != '')
  reasons = list(verdicts[config.data.split]['reasons'])
  if content['changed']:
    reasons.append(
      f'{len(content["changed"])} images are not those of the manifest'
    )
  reasons += mask_reasons(dataset, content)
  results: files.Results = {
    'task': 'audit',
    'data': {
      'path': dataset.path,
      'fingerprint': dataset.fingerprint,
      'split': config.data.split,
      'split_hash': data.split_hash(dataset, config.data.split),
      'classes': dataset.classes,
      'images': len(dataset.images),
      'size_px': dataset.info.size_px,
      'channels': dataset.info.channels,
      'patients': base.count_patients(dataset, labelled),
    },
    'splits': verdicts,
    'content': content,
    'sizes': checks.sizes(dataset),
    'label_conflicts': checks.label_conflicts(dataset),
    'near_duplicates': dataset.info.near_duplicates,
    'rejected': rejected(dataset.path),
    'junk': dataset.info.junk,
    'rules': dataset.info.rules,
  }
  if config.second_look and dataset.classes:
    twins = second_look(dataset, config.data.split)
    results['second_look'] = twins
    promised = 'near' in checks.PROMISES[config.data.split]
    if promised and twins['share'] > config.max_unseen_twins:
      reasons.append(
        f'{twins["test_sources"]} test sources nearly repeat a train or val '
        'source of another group: raise the near-duplicate search of prepare'
      )
  if config.shortcuts and dataset.classes:
    results['shortcuts'] = probe_shortcuts(dataset, config)
  results['reasons'] = reasons
  results['passed'] = not reasons
  results['warnings'] = warnings_of(dataset, results)
  return results


def verdict(dataset: data.Dataset, split: str) -> Record:
  """What a split promises, whether it keeps it, and what crosses its parts."""
  reasons = checks.check(dataset, split)
  crossing = {
    column: checks.crossings(dataset, split, column) for column in checks.WORDS
  }
  manifest = dataset.manifest
  counts = tables.counts(manifest, dataset.classes)[split]
  return {
    'promises': [checks.WORDS[c] for c in checks.PROMISES[split]],
    'passed': not reasons,
    'reasons': reasons,
    'crossings': {column: len(found) for column, found in crossing.items()},
    'examples': {
      column: list(found.values())[:5] for column, found in crossing.items()
    },
    'twins': checks.held_out_twins(dataset, split),
    'split_hash': data.split_hash(dataset, split),
    'counts': {
      part: {name or '(unlabelled)': n for name, n in by_class.items()}
      for part, by_class in counts.items()
    },
    'groups': {
      part: len(np.unique(manifest['group'][manifest[split] == part]))
      for part in splits.PARTS
    },
  }


def look(dataset: data.Dataset) -> Record:
  """Ids of images of one colour or two, from tiny files, or changed.

  Of those of two grey levels, `masks` pairs each with the picture of which it
  has the name.
  """
  manifest = dataset.manifest
  flat, two, changed = [], [], []
  for start in range(0, len(dataset.images), _BLOCK):
    rows = np.arange(start, min(start + _BLOCK, len(dataset.images)))
    for row, image in zip(rows, dataset.images[rows]):
      if image.min() == image.max():
        flat.append(manifest['id'][row])
      elif has_two_levels(image):
        two.append(int(row))
      if store.pixel_hash(image) != manifest['sha256'][row]:
        changed.append(manifest['id'][row])
  smaller = np.minimum(manifest['width'], manifest['height'])
  larger = np.maximum(manifest['width'], manifest['height'])
  names = manifest['file'].tolist()
  pairs = masks.beside([names[i] for i in two], names)
  return {
    'constant': flat,
    'two_levels': manifest['id'][two].tolist(),
    'masks': [list(pair) for pair in pairs.items()],
    'tiny': manifest['id'][smaller < _TINY_PX].tolist(),
    'enlarged': int((larger < dataset.info.size_px).sum()),
    'changed': changed,
  }


def has_two_levels(image: np.ndarray) -> bool:
  """Whether an image (s, s, c) uint8 is a mask, but for edges of resizing."""
  counts = np.bincount(image.mean(-1).astype(np.uint8).ravel(), minlength=256)
  first = int(counts.argmax())
  apart = np.abs(np.arange(256) - first) >= _APART
  second = int(np.where(apart, counts, 0).argmax())
  share = (counts[first] + counts[second]) / counts.sum()
  return bool(counts[second] and share >= _TWO_LEVELS)


def mask_reasons(dataset: data.Dataset, content: Record) -> list[str]:
  """Why masks fail an audit: they lie beside their pictures, unasked for."""
  found = content['masks']
  if not found or not dataset.info.settings.get('skip_masks', True):
    return []
  examples = ', '.join(' / '.join(pair) for pair in found[:5])
  return [
    f'{len(found)} images have two grey levels and lie beside a picture of '
    f'their name, as masks do: {examples}. Move them away, or accept them with '
    '--config.data.skip_masks=False of prepare'
  ]


def second_look(dataset: data.Dataset, split: str) -> Record:
  """Near-duplicates among prepared sources that no group joins.

  The search of prepare saw the original pixels; at the prepared size pairs at
  the threshold may differ, so a few are no alarm.
  """
  manifest = dataset.manifest
  rows = np.flatnonzero(
    (manifest['variant'] == '')
    & (manifest['class'] != '')
    & (manifest[split] != splits.EXCLUDED)
  )
  crops = duplicates.describe(duplicates.crops(dataset.images, rows))

  def pairs(limits: duplicates.Thresholds) -> Record:
    found = rows[duplicates.pairs_within(crops, limits)].reshape(-1, 2)
    return _across(manifest, split, found)

  repeats = pairs(duplicates.Thresholds())
  n_test = int((manifest[split][rows] == 'test').sum())
  return {
    **repeats,
    'share': repeats['test_sources'] / max(1, n_test),
    'neighbours': pairs(_NEIGHBOURS),
  }


def _across(
  manifest: Mapping[str, np.ndarray], split: str, found: np.ndarray
) -> Record:
  """Of pairs (m, 2) of rows, how many no group joins, and lie across test."""
  group, part = manifest['group'], manifest[split]
  apart = found[group[found[:, 0]] != group[found[:, 1]]]
  test = part[apart] == 'test'
  crossing = apart[test[:, 0] != test[:, 1]]
  return {
    'pairs': len(found),
    'pairs_not_in_one_group': len(apart),
    'pairs_across_test': len(crossing),
    'test_sources': len(np.unique(crossing[part[crossing] == 'test'])),
    'examples': [manifest['id'][pair].tolist() for pair in crossing[:10]],
  }


def probe_shortcuts(
  dataset: data.Dataset, config: ConfigDict
) -> dict[str, Record]:
  """Each shortcut on the untouched labelled sources, cross-validated."""
  manifest = dataset.manifest
  rows = np.flatnonzero((manifest['variant'] == '') & (manifest['class'] != ''))
  if len(rows) > config.shortcut_images:
    rng = np.random.default_rng(config.seed)
    rows = np.sort(rng.choice(rows, config.shortcut_images, replace=False))
  labels, groups = data.labels(dataset)[rows], data.groups(dataset)[rows]
  found = shortcuts.descriptors(dataset, rows, config.source, config.columns)
  return {
    name: shortcuts.probe(
      x,
      labels,
      groups,
      dataset.classes,
      config.folds,
      config.seed,
      config.resamples,
    )
    for name, x in log.progress(found.items(), desc='shortcuts')
  }


def rejected(folder: str) -> list[dict[str, str]]:
  """The files that prepare refused, with its reasons."""
  path = os.path.join(folder, store.REJECTED)
  if not os.path.exists(path):
    return []
  with open(path, newline='') as f:
    return list(csv.DictReader(f))


def warnings_of(dataset: data.Dataset, results: Record) -> list[str]:
  """What does not fail an audit and should be known."""
  kinds, content = dataset.manifest['class'], results['content']
  rare = [c for c in dataset.classes if (kinds == c).mean() < _RARE]
  twins = results.get('second_look', {})
  crossing = twins.get('pairs_across_test', 0)
  # Every near-duplicate is a neighbour too.
  close = twins.get('neighbours', {}).get('test_sources', 0)
  counted = (
    (len(content['constant']), 'images are of one colour'),
    (
      len(content['two_levels']),
      'images have two grey levels: look whether they are masks',
    ),
    (len(content['tiny']), f'images come from files under {_TINY_PX} px'),
    (len(results['rejected']), 'files could not be read'),
    (len(results['label_conflicts']), 'pictures carry several labels'),
    (
      crossing,
      'pairs of sources across test look alike at the prepared size but were '
      'not joined',
    ),
    (
      results['data']['patients']['unknown'],
      'labelled images are of unknown patients, whose other slices may be in '
      'another part: name patients with config.data.group_csv of prepare',
    ),
    (
      close - twins.get('test_sources', 0),
      'test sources look like a neighbouring slice of a picture in train or '
      'val: perhaps of one patient',
    ),
  )
  found = [f'{n} {what}.' for n, what in counted if n > 0]
  if rare:
    found.insert(0, f'Rare classes, under {_RARE:.0%} of the images: {rare}.')
  for name, scored in results.get('shortcuts', {}).items():
    areas = {c: x['value'] for c, x in scored.get('auroc', {}).items()}
    high = [f'{c} ({x:.2f})' for c, x in areas.items() if x and x > _SHORTCUT]
    if high:
      found.append(
        f'By {name} alone, classes are told from the rest (area under the '
        f'curve): {", ".join(high)}.'
      )
  return found


def sections(record: Record) -> list[Section]:
  """The sections of an audit's page, from its results."""
  where = record['data']
  pairs = [
    ('dataset', where['path']),
    ('fingerprint', where['fingerprint']),
    ('split', f'{where["split"]}, hash {where["split_hash"]}'),
    ('images', f'{where["size_px"]} px, {where["channels"]} channel(s)'),
    ('command', ' '.join(record.get('command', []))),
    ('finished', record.get('finished', '')),
  ]
  return [
    Section('Verdict', _verdict(record)),
    Section('Splits', _splits(record['splits'])),
    Section('Images', _images(record)),
    Section('Shortcuts', _shortcuts(record)),
    Section('Provenance', [Facts(pairs)]),
  ]


def blocks(run: Run) -> list[Block]:
  """The page without where its numbers come from, which a report tells."""
  shown = sections(record_of(run))[:-1]
  return [block for section in shown for block in section.blocks]


def _verdict(record: Record) -> list[Text]:
  """Passed or not, and why."""
  good = record['passed']
  verb, tone = ('passes', 'good') if good else ('fails', 'bad')
  return [
    Text(f'The audit {verb} for split {record["data"]["split"]!r}.', tone),
    *(Text(reason, 'bad') for reason in record['reasons']),
    *(Text(warning, 'warning') for warning in record['warnings']),
  ]


def _splits(found: Mapping[str, Record]) -> list[Block]:
  """What each split promises and keeps, and the classes of its parts."""
  rows = []
  for name, split in found.items():
    twins = split['twins']
    share = 100 / max(1, twins['test_sources'])
    rows.append(
      [
        name,
        'kept' if split['passed'] else 'BROKEN',
        *(split['crossings'][c] for c in _CROSSING),
        twins['test_sources'],
        f'{share * twins["sha256_seen"]:.1f} %',
        f'{share * twins["near_seen"]:.1f} %',
        f'{share * twins["patient_id_seen"]:.1f} %',
      ]
    )
  promises = '; '.join(
    f'{name}: {", ".join(split["promises"]) or "nothing"}'
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
        ['part', *next(iter(split['counts'].values())), 'all', 'groups'],
        [
          [part, *n.values(), sum(n.values()), split['groups'].get(part, '')]
          for part, n in split['counts'].items()
          if part != splits.EXCLUDED or sum(n.values())
        ],
        f'Images of split {name!r}, hash {split["split_hash"][:16]}.',
      )
      for name, split in found.items()
    ),
  ]


def _images(record: Record) -> list[Block]:
  """Sizes, odd images, near-duplicates, conflicts, refused files."""
  found: list[Block] = [Facts(_counts(record))]
  sizes, refused = record['sizes'], record['rejected']
  if sizes:
    columns = list(next(iter(sizes.values())))
    found.append(
      Table(
        ['class', *columns],
        [
          [name, *(_cell(c, row[c]) for c in columns)]
          for name, row in sizes.items()
        ],
        'Sizes of the original files, untouched sources.',
      )
    )
  if refused:
    found.append(
      Table(
        ['file', 'reason'],
        [[r['file'], r['reason']] for r in refused[:_SHOWN]],
        f'Files refused (at most {_SHOWN} are shown).',
        text=True,
      )
    )
  return found


def _counts(record: Record) -> list[tuple[str, Any]]:
  """How many images of which kind."""
  content, near = record['content'], record['near_duplicates']
  pairs = [
    ('images', record['data']['images']),
    ('of one colour', _listed(content['constant'])),
    ('of two grey levels', _listed(content.get('two_levels', ()))),
    ('of them beside a picture', _listed(content.get('masks', ()))),
    (f'from files under {_TINY_PX} px', _listed(content['tiny'])),
    ('enlarged', content['enlarged']),
    ('not those of the manifest', _listed(content['changed'])),
    ('equal pixels, several labels', _listed(record['label_conflicts'])),
    ('files refused', len(record['rejected'])),
    ('files ignored', _by_kind(record['junk'])),
    ('decoding rules applied', _by_kind(record['rules'])),
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
  pairs.append(('patients', patients_in_words(record['data']['patients'])))
  look = record.get('second_look')
  if look:
    text = (
      f'{look["pairs"]} pairs, {look["pairs_not_in_one_group"]} of them not in '
      f'one group, {look["pairs_across_test"]} across test'
    )
    pairs.append(('second look at the prepared size', text))
    close = look['neighbours']
    text = (
      f'{close["pairs_not_in_one_group"]} pairs not in one group, '
      f'{close["pairs_across_test"]} across test'
    )
    pairs.append(('pairs like neighbouring slices', text))
  return pairs


def _shortcuts(record: Record) -> list[Block]:
  """What a forest makes of numbers without anatomy."""
  found, classes = record.get('shortcuts'), record['data']['classes']
  if not found:
    return []
  rows = []
  for name, scored in found.items():
    if 'skipped' in scored:
      cells = ['skipped', scored['skipped'], *([''] * len(classes))]
    else:
      cells = [
        interval(scored['balanced_accuracy']),
        f'{100 * scored["chance"]:.1f}',
        *(interval(scored['auroc'][c], 1, 2) for c in classes),
      ]
    rows.append([name, *cells])
  areas = [f'AUROC {c}' for c in classes]
  return [
    Text(
      'A forest, cross-validated by group, on numbers that hold no anatomy. '
      'What it scores above chance, a network may score by the same shortcut.'
    ),
    Table(
      ['numbers', 'balanced accuracy, %', 'chance, %', *areas],
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

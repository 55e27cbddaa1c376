"""Task `audit`: whether a prepared dataset can be trusted, split by split."""

from collections.abc import Mapping
import csv
import dataclasses
import os

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import duplicates, masks, splits, store
from micdiffrep_jax.data import manifest as tables
from micdiffrep_jax.data import promises as checks
from micdiffrep_jax.draw import page
from micdiffrep_jax.run import files, log
from micdiffrep_jax.studies import base, shortcuts
from micdiffrep_jax.studies.page_audit import (
  TINY_PX,
  Audit,
  Looks,
  Pairs,
  SecondLook,
  Shortcut,
  Verdict,
  sections,
)

FAILED = 3  # exit status
_BLOCK = 1024
_RARE = 0.02  # share of a class that is called rare
_TWO_LEVELS = 0.85  # share of its pixels that a mask has at two grey levels
_APART = 40  # grey levels between these two
_SHORTCUT = 0.8  # area under the curve from which a shortcut is called out
# Measured on slices of 154 known patients: of the pairs that correlate so and
# are no near-duplicates, 99 % were of one patient.
_NEIGHBOURS = duplicates.Thresholds(0.93, 0.5, 0.95)


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Writes results.json and audit.html; SystemExit(3) where the audit fails."""
  dataset = data.open_dataset(config.data.path, cache=config.data.cache)
  checks.check(dataset, config.data.split)  # the name, before the work
  found = audit(dataset, config)
  results = {'task': 'audit', **found.to_json()}
  record = files.write_results(workdir, results, config)
  path = os.path.join(workdir, 'audit.html')
  subtitle = f'{dataset.path}, {len(dataset.images)} images'
  html = page.render('Data audit', subtitle, sections(record))
  files.write_whole(path, html.encode())
  for warning in found.warnings:
    log.get_logger().warning('%s', warning)
  if not found.passed:
    for reason in found.reasons:
      log.get_logger().error('%s', reason)
    raise SystemExit(FAILED)
  log.get_logger().info('The audit passes; %s.', path)
  return record


def audit(dataset: data.Dataset, config: ConfigDict) -> Audit:
  """All findings, by what the config asks for."""
  split = config.data.split
  verdicts = {
    name: verdict(dataset, name) for name in data.split_names(dataset)
  }
  content = look(dataset)
  labelled = np.flatnonzero(dataset.manifest['class'] != '')
  reasons = list(verdicts[split].reasons)
  if content.changed:
    reasons.append(
      f'{len(content.changed)} images are not those of the manifest'
    )
  reasons += mask_reasons(dataset, content)
  twins = None
  if config.second_look and dataset.classes:
    twins = second_look(dataset, split)
    promised = 'near' in checks.PROMISES[split]
    if promised and twins.share > config.max_unseen_twins:
      reasons.append(
        f'{twins.test_sources} test sources nearly repeat a train or val '
        'source of another group: raise the near-duplicate search of prepare'
      )
  found = Audit(
    {
      'path': dataset.path,
      'fingerprint': dataset.fingerprint,
      'split': split,
      'split_hash': data.split_hash(dataset, split),
      'classes': dataset.classes,
      'images': len(dataset.images),
      'size_px': dataset.info.size_px,
      'channels': dataset.info.channels,
      'patients': base.count_patients(dataset, labelled),
    },
    verdicts,
    content,
    checks.sizes(dataset),
    tuple(map(tuple, checks.label_conflicts(dataset))),
    dataset.info.near_duplicates,
    tuple(rejected(dataset.path)),
    dataset.info.junk,
    dataset.info.rules,
    tuple(reasons),
    not reasons,
    (),
    twins,
    probe_shortcuts(dataset, config)
    if config.shortcuts and dataset.classes
    else None,
  )
  return dataclasses.replace(found, warnings=warnings_of(dataset, found))


def verdict(dataset: data.Dataset, split: str) -> Verdict:
  """What a split promises, whether it keeps it, and what crosses its parts."""
  reasons = checks.check(dataset, split)
  crossing = {
    column: checks.crossings(dataset, split, column) for column in checks.WORDS
  }
  manifest = dataset.manifest
  counts = tables.counts(manifest, dataset.classes)[split]
  return Verdict(
    promises=tuple(checks.WORDS[c] for c in checks.PROMISES[split]),
    passed=not reasons,
    reasons=tuple(reasons),
    crossings={column: len(found) for column, found in crossing.items()},
    examples={
      column: list(found.values())[:5] for column, found in crossing.items()
    },
    twins=checks.held_out_twins(dataset, split),
    split_hash=data.split_hash(dataset, split),
    counts={
      part: {name or '(unlabelled)': n for name, n in by_class.items()}
      for part, by_class in counts.items()
    },
    groups={
      part: len(np.unique(manifest['group'][manifest[split] == part]))
      for part in splits.PARTS
    },
  )


def look(dataset: data.Dataset) -> Looks:
  """Looks at every image."""
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
  return Looks(
    constant=tuple(flat),
    two_levels=tuple(manifest['id'][two].tolist()),
    masks=tuple(pairs.items()),
    tiny=tuple(manifest['id'][smaller < TINY_PX].tolist()),
    enlarged=int((larger < dataset.info.size_px).sum()),
    changed=tuple(changed),
  )


def has_two_levels(image: np.ndarray) -> bool:
  """Whether an image (s, s, c) uint8 is a mask, but for edges of resizing."""
  counts = np.bincount(image.mean(-1).astype(np.uint8).ravel(), minlength=256)
  first = int(counts.argmax())
  apart = np.abs(np.arange(256) - first) >= _APART
  second = int(np.where(apart, counts, 0).argmax())
  share = (counts[first] + counts[second]) / counts.sum()
  return bool(counts[second] and share >= _TWO_LEVELS)


def mask_reasons(dataset: data.Dataset, content: Looks) -> list[str]:
  """Why masks fail an audit: they lie beside their pictures, unasked for."""
  found = content.masks
  if not found or not dataset.info.settings.get('skip_masks', True):
    return []
  examples = ', '.join(' / '.join(pair) for pair in found[:5])
  return [
    f'{len(found)} images have two grey levels and lie beside a picture of '
    f'their name, as masks do: {examples}. Move them away, or accept them with '
    '--config.data.skip_masks=False of prepare'
  ]


def second_look(dataset: data.Dataset, split: str) -> SecondLook:
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

  def pairs(limits: duplicates.Thresholds) -> Pairs:
    found = rows[duplicates.pairs_within(crops, limits)].reshape(-1, 2)
    return _across(manifest, split, found)

  repeats = pairs(duplicates.Thresholds())
  n_test = int((manifest[split][rows] == 'test').sum())
  return SecondLook(
    **repeats.to_json(),
    share=repeats.test_sources / max(1, n_test),
    neighbours=pairs(_NEIGHBOURS),
  )


def _across(
  manifest: Mapping[str, np.ndarray], split: str, found: np.ndarray
) -> Pairs:
  """Of pairs (m, 2) of rows, how many no group joins, and lie across test."""
  group, part = manifest['group'], manifest[split]
  apart = found[group[found[:, 0]] != group[found[:, 1]]]
  test = part[apart] == 'test'
  crossing = apart[test[:, 0] != test[:, 1]]
  return Pairs(
    pairs=len(found),
    pairs_not_in_one_group=len(apart),
    pairs_across_test=len(crossing),
    test_sources=len(np.unique(crossing[part[crossing] == 'test'])),
    examples=tuple(
      tuple(manifest['id'][pair].tolist()) for pair in crossing[:10]
    ),
  )


def probe_shortcuts(
  dataset: data.Dataset, config: ConfigDict
) -> dict[str, Shortcut]:
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


def warnings_of(dataset: data.Dataset, audited: Audit) -> tuple[str, ...]:
  """What does not fail an audit and should be known."""
  kinds, content = dataset.manifest['class'], audited.content
  rare = [c for c in dataset.classes if (kinds == c).mean() < _RARE]
  twins, crossing, close = audited.second_look, 0, 0
  if twins:
    crossing = twins.pairs_across_test
    # Every near-duplicate is a neighbour too.
    close = twins.neighbours.test_sources - twins.test_sources
  counted = (
    (len(content.constant), 'images are of one colour'),
    (
      len(content.two_levels),
      'images have two grey levels: look whether they are masks',
    ),
    (len(content.tiny), f'images come from files under {TINY_PX} px'),
    (len(audited.rejected), 'files could not be read'),
    (len(audited.label_conflicts), 'pictures carry several labels'),
    (
      crossing,
      'pairs of sources across test look alike at the prepared size but were '
      'not joined',
    ),
    (
      audited.data['patients']['unknown'],
      'labelled images are of unknown patients, whose other slices may be in '
      'another part: name patients with config.data.group_csv of prepare',
    ),
    (
      close,
      'test sources look like a neighbouring slice of a picture in train or '
      'val: perhaps of one patient',
    ),
  )
  found = [f'{n} {what}.' for n, what in counted if n > 0]
  if rare:
    found.insert(0, f'Rare classes, under {_RARE:.0%} of the images: {rare}.')
  for name, scored in (audited.shortcuts or {}).items():
    areas = {c: x.value for c, x in (scored.auroc or {}).items()}
    high = [f'{c} ({x:.2f})' for c, x in areas.items() if x > _SHORTCUT]
    if high:
      found.append(
        f'By {name} alone, classes are told from the rest (area under the '
        f'curve): {", ".join(high)}.'
      )
  return tuple(found)

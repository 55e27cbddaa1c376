"""Task `audit`: whether a prepared dataset can be trusted, split by split."""

import csv
import os
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import duplicates, splits, store
from micdiffrep_jax.data import promises as checks
from micdiffrep_jax.draw import page
from micdiffrep_jax.run import log
from micdiffrep_jax.studies import audit_page, shortcuts

FAILED = 3  # exit status
_BLOCK = 1024
_TINY_PX = 8
_RARE = 0.02  # share of a class that is called rare
_SHORTCUT = 0.8  # area under the curve from which a shortcut is called out


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Writes results.json and audit.html; SystemExit(3) where the audit fails."""
  dataset = data.open_dataset(config.data.path, cache=config.data.cache)
  checks.check(dataset, config.data.split)  # the name, before the work
  results = audit(dataset, config)
  record = log.write_results(workdir, results, config)
  sections = audit_page.sections(record)
  subtitle = f'{dataset.path}, {len(dataset.images)} images'
  with open(os.path.join(workdir, 'audit.html'), 'w') as f:
    f.write(page.render('Data audit', subtitle, sections))
  for warning in results['warnings']:
    log.get_logger().warning('%s', warning)
  if not results['passed']:
    for reason in results['reasons']:
      log.get_logger().error('%s', reason)
    raise SystemExit(FAILED)
  log.get_logger().info(
    'The audit passes; %s.', os.path.join(workdir, 'audit.html')
  )
  return record


def audit(dataset: data.Dataset, config: ConfigDict) -> dict[str, Any]:
  """All findings; `passed` speaks of the pixels and of config.data.split."""
  verdicts = {name: verdict(dataset, name) for name in splits.NAMES}
  content = look(dataset)
  reasons = list(verdicts[config.data.split]['reasons'])
  if content['changed']:
    reasons.append(
      f'{len(content["changed"])} images are not those of the manifest'
    )
  results: dict[str, Any] = {
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
  labelled = bool(dataset.classes)
  if config.second_look and labelled:
    twins = second_look(dataset, config.data.split)
    results['second_look'] = twins
    if twins['share'] > config.max_unseen_twins and checks.PROMISES[
      config.data.split
    ].count('group'):
      reasons.append(
        f'{twins["test_sources"]} test sources nearly repeat a train or val '
        'source of another group: raise the near-duplicate search of prepare'
      )
  if config.shortcuts and labelled:
    results['shortcuts'] = probe_shortcuts(dataset, config)
  results['reasons'] = reasons
  results['passed'] = not reasons
  results['warnings'] = warnings_of(dataset, results)
  return results


def verdict(dataset: data.Dataset, split: str) -> dict[str, Any]:
  """What a split promises, whether it keeps it, and what crosses its parts."""
  reasons = checks.check(dataset, split)
  crossing = {
    column: checks.crossings(dataset, split, column) for column in checks.WORDS
  }
  manifest = dataset.manifest
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
      part: {
        name or '(unlabelled)': int(
          ((manifest[split] == part) & (manifest['class'] == name)).sum()
        )
        for name in dict.fromkeys((*dataset.classes, ''))
        if (manifest['class'] == name).any()
      }
      for part in (*splits.PARTS, splits.EXCLUDED)
    },
    'groups': {
      part: len(np.unique(manifest['group'][manifest[split] == part]))
      for part in splits.PARTS
    },
  }


def look(dataset: data.Dataset) -> dict[str, Any]:
  """Ids of images of one colour, from tiny files, enlarged, or changed."""
  manifest = dataset.manifest
  flat, changed = [], []
  for start in range(0, len(dataset.images), _BLOCK):
    rows = np.arange(start, min(start + _BLOCK, len(dataset.images)))
    for row, image in zip(rows, dataset.images[rows]):
      if image.min() == image.max():
        flat.append(manifest['id'][row])
      if store.pixel_hash(image) != manifest['sha256'][row]:
        changed.append(manifest['id'][row])
  smaller = np.minimum(manifest['width'], manifest['height'])
  larger = np.maximum(manifest['width'], manifest['height'])
  return {
    'constant': flat,
    'tiny': manifest['id'][smaller < _TINY_PX].tolist(),
    'enlarged': int((larger < dataset.info.size_px).sum()),
    'changed': changed,
  }


def second_look(dataset: data.Dataset, split: str) -> dict[str, Any]:
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
  crops = duplicates.crops(dataset.images, rows)
  found = rows[
    duplicates.pairs_within(duplicates.describe(crops), duplicates.Thresholds())
  ].reshape(-1, 2)
  apart = found[
    manifest['group'][found[:, 0]] != manifest['group'][found[:, 1]]
  ]
  test = manifest[split][apart] == 'test'
  crossing = apart[test[:, 0] != test[:, 1]]
  hit = np.unique(crossing[manifest[split][crossing] == 'test'])
  n_test = int((manifest[split][rows] == 'test').sum())
  return {
    'pairs': len(found),
    'pairs_not_in_one_group': len(apart),
    'pairs_across_test': len(crossing),
    'test_sources': len(hit),
    'share': len(hit) / max(1, n_test),
    'examples': [manifest['id'][pair].tolist() for pair in crossing[:10]],
  }


def probe_shortcuts(
  dataset: data.Dataset, config: ConfigDict
) -> dict[str, dict[str, Any]]:
  """Each shortcut on the untouched labelled sources, cross-validated."""
  manifest = dataset.manifest
  rows = np.flatnonzero((manifest['variant'] == '') & (manifest['class'] != ''))
  if len(rows) > config.shortcut_images:
    rng = np.random.default_rng(config.seed)
    rows = np.sort(rng.choice(rows, config.shortcut_images, replace=False))
  labels, groups = data.labels(dataset)[rows], data.groups(dataset)[rows]
  found = shortcuts.descriptors(dataset, rows, config.source)
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


def warnings_of(dataset: data.Dataset, results: dict[str, Any]) -> list[str]:
  """What does not fail an audit and should be known."""
  found = []
  rare = [
    name
    for name in dataset.classes
    if (dataset.manifest['class'] == name).mean() < _RARE
  ]
  if rare:
    found.append(f'Rare classes, under {_RARE:.0%} of the images: {rare}.')
  if results['content']['constant']:
    n = len(results['content']['constant'])
    found.append(f'{n} images are of one colour.')
  if results['content']['tiny']:
    n = len(results['content']['tiny'])
    found.append(f'{n} images come from files under {_TINY_PX} px.')
  if results['rejected']:
    found.append(f'{len(results["rejected"])} files could not be read.')
  if results['label_conflicts']:
    found.append(
      f'{len(results["label_conflicts"])} pictures carry several labels.'
    )
  if results.get('second_look', {}).get('pairs_across_test'):
    n = results['second_look']['pairs_across_test']
    found.append(
      f'{n} pairs of sources across test look alike at the prepared size '
      'but were not joined.'
    )
  for name, scored in results.get('shortcuts', {}).items():
    told = [
      f'{label} ({area["value"]:.2f})'
      for label, area in scored.get('auroc', {}).items()
      if area['value'] is not None and area['value'] > _SHORTCUT
    ]
    if told:
      found.append(
        f'By {name} alone, classes are told from the rest (area under the '
        f'curve): {", ".join(told)}.'
      )
  return found

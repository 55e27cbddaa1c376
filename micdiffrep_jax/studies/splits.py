"""Task `splits`: the same probe under several splits: what leakage is worth.

A split that puts relatives of a test image into training flatters every method;
how much, the difference to `grouped` tells, row by row. An encoder pretrained
on the train part of one split has drawn test images of another: the table says
how many.
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np
import pandas as pd

from micdiffrep_jax import tasks
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import splits
from micdiffrep_jax.draw import page
from micdiffrep_jax.draw.result import title
from micdiffrep_jax.run import files, log
from micdiffrep_jax.run.checks import not_empty, one_of
from micdiffrep_jax.scores.metrics import HEADLINE
from micdiffrep_jax.studies import imagenet, probe
from micdiffrep_jax.studies.page_splits import drawn_in_words

HONEST = 'grouped'  # what the other splits are compared with


def check(config: ConfigDict) -> dict[str, ConfigDict]:
  """The probe config of each split; ValueError for what cannot be run."""
  not_empty(config.splits, '--config.splits')
  units = {}
  for name in config.splits:
    one_of(splits.NAMES, name, 'split', '--config.splits')
    unit = config.probe.copy_and_resolve_references()
    with unit.unlocked():
      unit.data.split = name
      unit.checkpoint = config.checkpoints[name] or config.checkpoint
      # What was seen is counted and told; one encoder must do for all splits.
      unit.allow_seen_test = True
    if not unit.checkpoint:
      raise ValueError(
        f'No encoder for split {name!r}. Set --config.checkpoint for all, or '
        f'--config.checkpoints.{name}.'
      )
    probe.check(unit)
    units[name] = unit
  return units


def drawn_in_pretraining(
  info: Mapping[str, Any], ds: data.Dataset, split: str
) -> dict[str, Any]:
  """How many test images of a split the encoder's pretraining drew from.

  images and seen are counts; seen is None where it was pretrained on other
  data. relatives counts the test images of whose group it drew one.
  """
  test = data.rows(ds, split, 'test')
  test = test[data.labels(ds)[test] >= 0]
  found = {'images': len(test), 'pretrained_on': info.get('split')}
  if info.get('fingerprint') != ds.fingerprint:
    return {**found, 'seen': None, 'relatives': None}
  train = data.pretraining_rows(ds, info['split'], info.get('spared', ()))
  groups = data.groups(ds)
  return {
    **found,
    'seen': int(np.isin(test, train).sum()),
    'relatives': int(np.isin(groups[test], groups[train]).sum()),
  }


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Probes under every split; writes splits.csv and results.json.

  A split whose probe has finished with the same config is not run again.
  """
  units = check(config)
  records: dict[str, Any] = {}
  seen: dict[str, Any] = {}
  for name, unit in units.items():
    folder = os.path.join(workdir, name)
    found = tasks.finished(folder, unit)
    if found is None:
      log.get_logger().info('Split %s: in %s.', name, folder)
      found = probe.run(unit, folder)
    records[name] = found
    ds = data.open_dataset(unit.data.path, unit.data.cache)
    seen[name] = drawn_in_pretraining(found['encoder'], ds, name)
  table = compare(records)
  if jax.process_index() == 0:
    path = os.path.join(workdir, 'splits.csv')
    page.write_csv(path, list(table[0]), table)
    print(text(table, seen), flush=True)
  return files.write_results(
    workdir,
    {
      'task': 'splits',
      'table': table,
      'test_images_in_pretraining': seen,
      **imagenet.also_left_out(records.values()),
    },
    config,
  )


def compare(records: Mapping[str, Any]) -> list[dict[str, Any]]:
  """One line per method, split, set of images and metric.

  minus_grouped has no interval: the test images of two splits differ.
  """
  methods = dict.fromkeys(m for r in records.values() for m in r['rows'])
  lines = []
  for method in methods:
    for images in ('all', 'sources'):
      for metric in HEADLINE:
        values = {
          split: record['rows'][method]['test'][images][metric]
          for split, record in records.items()
          if images in record['rows'].get(method, {}).get('test', {})
        }
        honest = values.get(HONEST)
        lines += [
          {
            'method': method,
            'split': split,
            'images': images,
            'metric': metric,
            **value,
            f'minus_{HONEST}': None
            if honest is None
            else value['value'] - honest['value'],
          }
          for split, value in values.items()
        ]
  return lines


def text(
  table: Sequence[Mapping[str, Any]], seen: Mapping[str, Mapping[str, Any]]
) -> str:
  """Plain text: test accuracy on all variants, splits side by side."""
  cells: dict[str, dict[str, str]] = {}
  for line in table:
    if (line['images'], line['metric']) == ('all', 'accuracy'):
      cell, worth = page.brackets(line), line[f'minus_{HONEST}']
      if worth is not None and line['split'] != HONEST:
        cell += f' ({100 * worth:+.1f})'
      cells.setdefault(title(line['method']), {})[line['split']] = cell
  frame = pd.DataFrame.from_dict(cells, orient='index', columns=list(seen))
  lines = [
    'Test accuracy, all variants, percent [95 % over groups]; in brackets the '
    f'difference to {HONEST!r}.',
    frame.to_string(na_rep='-'),
    'Test images of the split that pretraining has drawn:',
    *(f'  {name}: {drawn_in_words(found)}' for name, found in seen.items()),
  ]
  return '\n'.join(lines)

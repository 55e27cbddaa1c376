"""Task `splits`: the same probes under several splits: what each leak is worth.

From leaky to patient every split closes one leak: variants of an image, then
near-duplicates of its source, then other slices of its patient. What a row
loses on the way, it owed to the leak. An encoder pretrained on the train part
of one split has drawn test images of another: the table says how many.
"""

from collections.abc import Mapping, Sequence
import itertools
import os
from typing import Any, NamedTuple

import jax
from matplotlib.figure import Figure
from ml_collections import ConfigDict
import numpy as np
import pandas as pd

from micdiffrep_jax import tasks
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import splits
from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.draw.result import patients_in_words
from micdiffrep_jax.encoders.encoder import EncoderInfo
from micdiffrep_jax.run import files, log
from micdiffrep_jax.run.checks import not_empty, one_of
from micdiffrep_jax.scores.bootstrap import SETS
from micdiffrep_jax.scores.metrics import HEADLINE
from micdiffrep_jax.studies import imagenet, probe
from micdiffrep_jax.studies.page_splits import Seen, row_title

HONEST = 'patient'  # what the other splits are compared with
STAYS_TOGETHER = {
  'leaky': 'nothing',
  'paper': 'variants\nof a source',
  'grouped': 'and its near-\nduplicates',
  'patient': 'and its\npatient',
  'given': 'what folders\nkeep apart',
}


class Unit(NamedTuple):
  """A probe: its encoder ('' is the first), its split, its config."""

  encoder: str
  split: str
  config: ConfigDict


def check(config: ConfigDict) -> list[Unit]:
  """All probes, by encoder and split; ValueError for what cannot be run."""
  not_empty(config.splits, '--config.splits')
  units = []
  for name in config.splits:
    one_of(splits.ALL, name, 'split', '--config.splits')
    first = config.checkpoints[name] or config.checkpoint
    if not first:
      raise ValueError(
        f'No encoder for split {name!r}. Set --config.checkpoint for all, or '
        f'--config.checkpoints.{name}.'
      )
    units.append(Unit('', name, _probe_config(config, name, first)))
  layers = config.other_layers or [''] * len(config.others)
  if len(layers) != len(config.others):
    raise ValueError(
      f'other_layers={config.other_layers!r} for {len(config.others)} others: '
      "give one text of each, '' for all, or leave out --config.other_layers."
    )
  for path, text in zip(config.others, layers):
    for name in config.splits:
      unit = _probe_config(config, name, path)
      with unit.unlocked():
        unit.layers = tuple(text.split('+')) if text else ()
        # The controls are those of the first encoder.
        unit.floors, unit.random_encoder = (), False
      units.append(Unit(path, name, unit))
  for unit in units:
    probe.check(unit.config)
  return units


def _probe_config(
  config: ConfigDict, split: str, checkpoint: str
) -> ConfigDict:
  unit = config.probe.copy_and_resolve_references()
  with unit.unlocked():
    unit.data.split, unit.checkpoint = split, checkpoint
    # What was seen is counted and told; one encoder must do for all splits.
    unit.allow_seen_test = True
  return unit


def drawn_in_pretraining(
  info: EncoderInfo, ds: data.Dataset, split: str
) -> Seen:
  """How many test images of a split the encoder's pretraining drew from."""
  test = data.rows(ds, split, 'test')
  test = test[data.labels(ds)[test] >= 0]
  if info.fingerprint != ds.fingerprint:
    return Seen(len(test), info.split)
  train = data.pretraining_rows(ds, info.split or '', tuple(info.spared or ()))
  groups = data.groups(ds)
  return Seen(
    len(test),
    info.split,
    int(np.isin(test, train).sum()),
    int(np.isin(groups[test], groups[train]).sum()),
  )


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Probes under every split; writes splits.csv, splits.png, results.json.

  A probe that has finished with the same config is not run again.
  """
  records: dict[tuple[str, str], Any] = {}
  seen: dict[str, Seen] = {}
  for encoder, split, unit in check(config):
    number = config.others.index(encoder) + 1 if encoder else 0
    folder = os.path.join(workdir, f'{split}_{number}' if number else split)
    found = tasks.finished(folder, unit)
    if found is None:
      log.get_logger().info('Split %s, %s: %s.', split, unit.checkpoint, folder)
      found = probe.run(unit, folder)
    records[encoder, split] = found
    if not encoder:
      ds = data.open_dataset(unit.data.path, unit.data.cache)
      info = EncoderInfo.from_json(found['encoder'])
      seen[split] = drawn_in_pretraining(info, ds, split)
  table = compare(records)
  results = {
    'task': 'splits',
    'table': table,
    'test_images_in_pretraining': seen,
    'patients': records['', config.splits[0]]['data'].get('patients'),
    **imagenet.also_left_out(records.values()),
  }
  if jax.process_index() == 0:
    path = os.path.join(workdir, 'splits.csv')
    page.write_csv(path, list(table[0]), table)
    plots.save(os.path.join(workdir, 'splits.png'), draw(table))
    print(text(results), flush=True)
  return files.write_results(workdir, results, config)


def compare(
  records: Mapping[tuple[str, str], Any],
) -> list[page.Line]:
  """One line per encoder, method, split, set of images and metric.

  minus_patient has no interval: the test images of two splits differ.
  """
  rows = dict.fromkeys(
    (encoder, method)
    for (encoder, _), record in records.items()
    for method in record['rows']
  )
  lines = []
  for encoder, method in rows:
    for images, metric in itertools.product(SETS, HEADLINE):
      values = {
        split: record['rows'][method]['test'][images][metric]
        for (of, split), record in records.items()
        if of == encoder
        and images in record['rows'].get(method, {}).get('test', {})
      }
      honest = values.get(HONEST)
      lines += [
        {
          'encoder': encoder,
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


def draw(table: Sequence[Mapping[str, Any]]) -> Figure:
  """Accuracy of the best row of each encoder, from the leakiest split on.

  Of random weights and floors too, EfficientNet by itself; the others faint.
  """
  order = [*reversed(splits.NAMES), splits.GIVEN]
  series: dict[str, dict[str, list[float]]] = {}
  kinds: dict[str, str] = {}
  for line in sorted(table, key=lambda x: order.index(x['split'])):
    if (line['images'], line['metric']) == ('all', 'accuracy'):
      name = row_title(line)
      origin, _, row = line['method'].rpartition('/')
      kinds[name] = line['encoder'] + origin + row * (row == imagenet.NAME)
      plots.add_point(series, name, order.index(line['split']), line)
  shown = [n for n in order if any(x['split'] == n for x in table)]
  figure = plots.few_labels(
    series,
    kinds,
    '',  # the ticks say it, on two lines
    'test accuracy, %',
    'What each leak is worth: accuracy by what stays together',
    log_x=False,
  )
  (axes,) = figure.axes
  axes.set_xticks(
    [order.index(n) for n in shown], [STAYS_TOGETHER[n] for n in shown]
  )
  return figure


def text(results: Mapping[str, Any]) -> str:
  """Plain text: test accuracy on all variants, splits side by side."""
  seen = results['test_images_in_pretraining']
  cells: dict[str, dict[str, str]] = {}
  for line in results['table']:
    if (line['images'], line['metric']) == ('all', 'accuracy'):
      cell, worth = page.brackets(line), line[f'minus_{HONEST}']
      if worth is not None and line['split'] != HONEST:
        cell += f' ({100 * worth:+.1f})'
      cells.setdefault(row_title(line), {})[line['split']] = cell
  frame = pd.DataFrame.from_dict(cells, orient='index', columns=list(seen))
  lines = [
    'Test accuracy, all variants, percent [95 % over groups]; in brackets the '
    f'difference to {HONEST!r}; {patients_in_words(results["patients"])}.',
    frame.to_string(na_rep='-'),
    'Test images of the split that pretraining has drawn:',
    *(f'  {name}: {found}' for name, found in seen.items()),
  ]
  return '\n'.join(lines)

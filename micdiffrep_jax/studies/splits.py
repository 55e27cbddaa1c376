"""Task `splits`: the same probes under several splits: what each leak is worth.

From leaky to patient every split closes one leak: variants of an image, then
near-duplicates of its source, then other slices of its patient. What a row
loses on the way, it owed to the leak. An encoder pretrained on the train part
of one split has drawn test images of another: the table says how many.
"""

from collections.abc import Mapping
import itertools
import math
import os
from typing import NamedTuple

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
from micdiffrep_jax.scores.bootstrap import BOUNDS, SETS
from micdiffrep_jax.scores.metrics import HEADLINE
from micdiffrep_jax.studies import imagenet, probe
from micdiffrep_jax.studies.page_probe import rows_of
from micdiffrep_jax.studies.page_splits import Point, Seen, Splits

COLUMNS = (
  *('encoder', 'method', 'split', 'images', 'metric'),
  *BOUNDS,
  'minus_patient',
)  # of splits.csv
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
  records: dict[tuple[str, str], files.Results] = {}
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
  patients = records['', config.splits[0]]['data'].get('patients')
  study = Splits(compare(records), seen, patients)
  if jax.process_index() == 0:
    lines = [point.to_json() for point in study.table]
    page.write_csv(os.path.join(workdir, 'splits.csv'), COLUMNS, lines)
    plots.save(os.path.join(workdir, 'splits.png'), draw(study))
    print(text(study), flush=True)
  absent = imagenet.also_left_out(records.values())
  results = {'task': 'splits', **study.to_json(), **absent}
  return files.write_results(workdir, results, config)


def compare(
  records: Mapping[tuple[str, str], files.Results],
) -> tuple[Point, ...]:
  """A point per encoder, method, split, set of images and metric.

  records: the results of the probes, by encoder and split.
  """
  tests = {
    (encoder, method, split): row.test
    for (encoder, split), record in records.items()
    for method, row in rows_of(record).items()
  }
  points = []
  for encoder, method in dict.fromkeys(key[:2] for key in tests):
    for images, metric in itertools.product(SETS, HEADLINE):
      values = {
        split: test[images].scores[metric]
        for (*of, split), test in tests.items()
        if of == [encoder, method] and images in test
      }
      honest = values[HONEST].value if HONEST in values else math.nan
      points += [
        Point(
          method, split, images, metric, *score, encoder, score.value - honest
        )
        for split, score in values.items()
      ]
  return tuple(points)


def draw(study: Splits) -> Figure:
  """Accuracy of the best row of each encoder, from the leakiest split on.

  Of random weights and floors too, EfficientNet by itself; the others faint.
  """
  order = [*reversed(splits.NAMES), splits.GIVEN]
  series: dict[str, dict[str, list[float]]] = {}
  kinds: dict[str, str] = {}
  for point in sorted(study.shown, key=lambda x: order.index(x.split)):
    origin, _, row = point.method.rpartition('/')
    kinds[point.title] = point.encoder + origin + row * (row == imagenet.NAME)
    plots.add_point(series, point.title, order.index(point.split), point)
  shown = [n for n in order if any(x.split == n for x in study.table)]
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


def text(study: Splits) -> str:
  """Plain text: test accuracy on all variants, splits side by side."""
  seen = study.test_images_in_pretraining
  cells: dict[str, dict[str, str]] = {}
  for point in study.shown:
    cell, worth = page.brackets(point), point.minus_patient
    if not math.isnan(worth) and point.split != HONEST:
      cell += f' ({100 * worth:+.1f})'
    cells.setdefault(point.title, {})[point.split] = cell
  frame = pd.DataFrame.from_dict(cells, orient='index', columns=list(seen))
  lines = [
    'Test accuracy, all variants, percent [95 % over groups]; in brackets the '
    f'difference to {HONEST!r}; {patients_in_words(study.patients or {})}.',
    frame.to_string(na_rep='-'),
    'Test images of the split that pretraining has drawn:',
    *(f'  {name}: {found}' for name, found in seen.items()),
  ]
  return '\n'.join(lines)

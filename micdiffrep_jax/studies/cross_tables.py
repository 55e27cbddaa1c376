"""Scores, comparisons, files and a picture of a cross-validation.

Letters: n predicted rows, k classes.
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.draw.result import FLOOR
from micdiffrep_jax.run import files
from micdiffrep_jax.scores import bootstrap
from micdiffrep_jax.scores.bootstrap import BOUNDS
from micdiffrep_jax.scores.metrics import HEADLINE as METRICS
from micdiffrep_jax.studies import page_folds
from micdiffrep_jax.studies.probe_rows import image_sets


class Key(NamedTuple):
  """A row: encoder '' is of a floor, a head 'random/...' of random weights."""

  encoder: str
  head: str


def pairs(keys: Sequence[Key]) -> list[tuple[Key, Key]]:
  """The first encoder's heads with all others of their kind, and floors.

  Floors stand against its first head alone.
  """
  first = keys[0].encoder
  found = []
  for a in (key for key in keys if key.encoder == first and '/' not in key[1]):
    for b in keys:
      twin = b.encoder == first and b.head == f'random/{a.head}'
      floor = a == keys[0] and b.head.startswith(FLOOR)
      if twin or floor or (b.encoder != first and b.head == a.head):
        found.append((a, b))
  return found


def score(
  probs: Mapping[Key, np.ndarray],
  told: Mapping[Key, Mapping[str, Any]],
  ds: data.Dataset,
  rows: np.ndarray,
  cuts: Sequence[tuple[np.ndarray, ...]],
  config: ConfigDict,
) -> dict[str, Any]:
  """`rows` and `comparisons` of the results, from probabilities (n, k).

  Intervals resample groups, the same for all, so that differences are paired;
  that folds share most of their training rows is not in them.
  """
  labels, groups = data.labels(ds)[rows], data.groups(ds)[rows]
  subsets = image_sets(ds, rows)
  spread = {
    (key, name): bootstrap.resample(
      labels[keep],
      p.argmax(1)[None, keep],
      groups[keep],
      len(ds.classes),
      config.resamples,
      config.seed,
    )
    for key, p in probs.items()
    for name, keep in subsets.items()
  }
  lines = [
    {
      **key._asdict(),
      **told.get(key, {}),
      'folds': [
        float((p[test].argmax(1) == labels[test]).mean()) for *_, test in cuts
      ],
      **{
        name: {
          metric: _bounds(bootstrap.interval_over_draws(found))
          for metric, found in spread[key, name].items()
        }
        for name in subsets
      },
    }
    for key, p in probs.items()
  ]
  comparisons = [
    {
      'a': a._asdict(),
      'b': b._asdict(),
      'images': name,
      **{
        metric: bootstrap.difference(found, spread[b, name][metric])
        for metric, found in spread[a, name].items()
      },
    }
    for a, b in pairs(list(probs))
    for name in subsets
  ]
  return {'rows': lines, 'comparisons': comparisons}


def _bounds(found: Mapping[str, Any]) -> dict[str, float]:
  return {name: found[name] for name in BOUNDS}


def write(workdir: str, results: Mapping[str, Any]) -> None:
  """cross_validation.csv, comparisons.csv and cross_validation.png."""
  rows, differences = results['rows'], results['comparisons']
  subsets = [name for name in ('all', 'sources') if name in rows[0]]
  page.write_csv(
    os.path.join(workdir, 'cross_validation.csv'),
    ('encoder', 'head', 'images', 'metric', *BOUNDS),
    [
      (
        row['encoder'],
        row['head'],
        name,
        metric,
        *(row[name][metric][x] for x in BOUNDS),
      )
      for row in rows
      for name in subsets
      for metric in METRICS
    ],
  )
  page.write_csv(
    os.path.join(workdir, 'comparisons.csv'),
    ('a', 'a_head', 'b', 'b_head', 'images', 'metric', *BOUNDS),
    [
      (
        *c['a'].values(),
        *c['b'].values(),
        c['images'],
        metric,
        *(c[metric][x] for x in BOUNDS),
      )
      for c in differences
      for metric in METRICS
    ],
  )
  figure = plots.intervals(
    [
      (
        page_folds.row_title(row),
        row['all']['accuracy'],
        'first' if row is rows[0] else row['head'],
      )
      for row in rows
    ],
    'first',
    'accuracy in percent, each group predicted by heads that saw none of it',
  )
  plots.save(os.path.join(workdir, 'cross_validation.png'), figure)


def save_predictions(
  workdir: str,
  probs: Mapping[Key, np.ndarray],
  ds: data.Dataset,
  rows: np.ndarray,
) -> None:
  """predictions.npz, without pickle.

  index, id, label, group of each predicted row; probs.<number of the row in
  results.json> (n, k) float32.
  """
  arrays = {
    'classes': np.array(ds.classes),
    'index': rows,
    'label': data.labels(ds)[rows],
    **{
      field: ds.manifest[field][rows].astype(np.str_)
      for field in ('id', 'group')
    },
    **{
      f'probs.{i}': p.astype(np.float32) for i, p in enumerate(probs.values())
    },
  }
  files.write_arrays(os.path.join(workdir, 'predictions.npz'), arrays)


def text(results: Mapping[str, Any]) -> str:
  """Plain text: accuracy of every row, and differences to the first."""
  told = results['data']
  lines = [
    f'Cross-validation, {told["predicted"]} images of {told["groups"]} groups, '
    'percent [95 % over groups]; the test part was not read.',
    f'{"":60}{"accuracy":22}first minus this',
  ]
  minus = {
    tuple(c['b'].values()): c['accuracy']
    for c in results['comparisons']
    if c['images'] == 'all'
  }
  for row in results['rows']:
    line = f'{page_folds.row_title(row)[:59]:60}'
    line += f'{page.brackets(row["all"]["accuracy"]):22}'
    found = minus.get((row['encoder'], row['head']))
    if found:
      line += page.brackets(found, '+')
    lines.append(line.rstrip())
  return '\n'.join(lines)

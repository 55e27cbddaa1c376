"""The table of a cross-validation: scores, pairs, files, pictures, text.

Letters: n labelled rows of train and validation, k classes.
"""

from collections.abc import Mapping, Sequence
import os
import re
from typing import Any

from ml_collections import ConfigDict
import numpy as np
import pandas as pd

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.draw.result import (
  FLOOR,
  RANDOM,
  patients_in_words,
)
from micdiffrep_jax.run import files
from micdiffrep_jax.scores import bootstrap
from micdiffrep_jax.scores.bootstrap import BOUNDS
from micdiffrep_jax.studies import base, tuned
from micdiffrep_jax.studies.base import Parts
from micdiffrep_jax.studies.page_folds import (
  Comparison,
  CrossValidation,
  Key,
  Row,
)


def pairs(keys: Sequence[Key]) -> list[tuple[Key, Key]]:
  """What is compared at each share of the labels."""
  shares = dict.fromkeys(key.share for key in keys)
  return [
    pair
    for share in shares
    for pair in _pairs([key for key in keys if key.share == share])
  ]


def _pairs(keys: Sequence[Key]) -> list[tuple[Key, Key]]:
  """The first encoder's heads with all others of their kind, and floors.

  Floors stand against its first head alone; without an encoder, against the
  first floor. Of every encoder the first head stands against its other heads,
  and fine-tuned against frozen.
  """
  if keys[0].head.startswith(FLOOR):
    return [(keys[0], key) for key in keys[1:]]
  first = keys[0].encoder
  found = []
  for a in (
    key for key in keys if key.encoder == first and '/' not in key.head
  ):
    for b in keys:
      twin = b.encoder == first and b.head == RANDOM + a.head
      floor = a == keys[0] and b.head.startswith(FLOOR)
      if twin or floor or (b.encoder != first and b.head == a.head):
        found.append((a, b))
  heads: dict[str, list[Key]] = {}
  for key in keys:
    if '/' not in key.head:
      heads.setdefault(key.encoder, []).append(key)
  own = [(a, b) for a, *others in heads.values() for b in others]
  own += [
    (a, b)
    for mine in heads.values()
    for a in mine
    for b in mine
    if a.head.startswith(tuned.TUNED) and b.head == tuned.FROZEN
  ]
  return found + own


def score(
  probs: Mapping[Key, np.ndarray],
  told: Mapping[Key, Mapping[str, Any]],
  members: Mapping[Key, Sequence[Key]],
  ds: data.Dataset,
  rotated: Sequence[Parts],
  config: ConfigDict,
  about: Mapping[str, Any],
) -> CrossValidation:
  """The table and its comparisons, from probabilities (n, k).

  members: of each committee, which is compared with all of them too; about:
  which images these are.
  Intervals resample groups, the same for all, so that differences are paired;
  that folds share most of their training rows is not in them.
  """
  rows = rotated[0].rows
  labels, slices = data.labels(ds)[rows], base.slices_of(ds, rows)
  spread = {
    key: {
      name: bootstrap.resample(
        x.labels,
        x.probs.argmax(1)[None],
        x.groups,
        len(ds.classes),
        config.resamples,
        config.seed,
      )
      for name, x in bootstrap.sets_of(labels, p, slices).items()
    }
    for key, p in probs.items()
  }
  lines = []
  for key, p in probs.items():
    scores = {
      name: {m: bootstrap.score(found.mean) for m, found in by_metric.items()}
      for name, by_metric in spread[key].items()
    }
    lines.append(
      Row(
        key.encoder,
        key.head,
        tuple(
          float((p[x.test].argmax(1) == labels[x.test]).mean()) for x in rotated
        ),
        scores['all'],
        scores.get('sources'),
        scores.get('patients'),
        key.share,
        told.get(key, {}),
      )
    )
  own = [(key, one) for key, mine in members.items() for one in mine]
  both = dict.fromkeys([*pairs(list(probs)), *own])
  comparisons = tuple(
    Comparison(
      a,
      b,
      name,
      {
        metric: bootstrap.difference(found, spread[b][name][metric])
        for metric, found in spread[a][name].items()
      },
    )
    for a, b in both
    for name in spread[a]
  )
  return CrossValidation(tuple(lines), comparisons, about)


def write(workdir: str, found: CrossValidation) -> None:
  """cross_validation.csv, comparisons.csv and cross_validation.png."""
  rows = found.rows
  page.write_csv(
    os.path.join(workdir, 'cross_validation.csv'),
    (*Key._fields, 'images', 'metric', *BOUNDS),
    [
      line
      for row in rows
      for name, scores in row.subsets.items()
      for line in base.by_metric({**row.key._asdict(), 'images': name}, scores)
    ],
  )
  page.write_csv(
    os.path.join(workdir, 'comparisons.csv'),
    ('a', 'a_head', 'b', 'b_head', 'share', 'images', 'metric', *BOUNDS),
    [
      line
      for c in found.comparisons
      for line in base.by_metric(
        {
          'a': c.a.encoder,
          'a_head': c.a.head,
          'b': c.b.encoder,
          'b_head': c.b.head,
          'share': c.a.share,
          'images': c.images,
        },
        c.scores,
      )
    ],
  )
  figure = plots.intervals(
    [
      (
        row.key.title,
        row.all['accuracy'],
        'first' if row is rows[0] else row.head,
      )
      for row in rows
    ],
    'first',
    'accuracy in percent, each group predicted by heads that saw none of it',
  )
  plots.save(os.path.join(workdir, 'cross_validation.png'), figure)
  if len({row.share for row in rows}) > 1:
    draw_shares(workdir, rows)
  draw_images(workdir, rows)


def short_names(encoders: Sequence[str]) -> dict[str, str]:
  """Each name without the words that all have, and without folders.

  A name of which nothing is left keeps its words, and folders stay where two
  names would be one.
  """
  words = {name: name.split(' ') for name in encoders}
  common = set.intersection(*map(set, words.values())) if words else set()
  own = {
    name: [x for x in mine if x not in common] or mine
    for name, mine in words.items()
  }
  short = {
    name: ' '.join(os.path.basename(x) for x in mine).rstrip(',')
    for name, mine in own.items()
  }
  if len(set(short.values())) < len(short):
    short = {name: ' '.join(mine).rstrip(',') for name, mine in own.items()}
  return short


def draw_shares(workdir: str, rows: Sequence[Row]) -> None:
  """label_efficiency.png: of each encoder the best head, against the share."""
  short = short_names([*{r.encoder: 0 for r in rows if r.encoder}])
  several = len({row.head for row in rows if row.encoder}) > 1
  series: dict[str, dict[str, list[float]]] = {}
  kinds: dict[str, str] = {}
  for row in sorted(rows, key=lambda row: row.share):
    encoder = short.get(row.encoder, '')
    name = Key(encoder, row.head).title
    if encoder and not several:
      name = encoder
    origin, _, head = row.head.rpartition('/')
    way = 'fine-tuned' if head.startswith(tuned.TUNED) else ''
    kinds[name] = f'{encoder} {origin}{way}' if encoder else name
    plots.add_point(series, name, 100 * row.share, row.all['accuracy'])
  figure = plots.few_labels(
    series,
    kinds,
    'labelled groups to fit on, %',
    'accuracy, %',
    'Each group predicted by heads that saw none of it',
  )
  plots.save(os.path.join(workdir, 'label_efficiency.png'), figure)


def run_of(encoder: str) -> str:
  """The name of an encoder without the step of its run."""
  return re.sub(r'/(checkpoints/)?\d+(?= |,|$)', '', encoder, count=1)


def by_images(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
  """Each run's first head against thousands of images drawn; floors level.

  With the largest share of the labels; {} where no run has two checkpoints.
  """
  most, head = max(row.share for row in rows), rows[0].head
  rows = [row for row in rows if row.share == most]
  drawn = [r for r in rows if r.head == head and r.told.get('images_seen')]
  drawn.sort(key=lambda row: row.told['images_seen'])
  runs = [run_of(row.encoder) for row in drawn]
  series: dict[str, dict[str, list[float]]] = {}
  if len(set(runs)) == len(runs):
    return series
  short, x = short_names([*dict.fromkeys(runs)]), 0.0
  for run, row in zip(runs, drawn):
    x = row.told['images_seen'] / 1000
    plots.add_point(series, short[run], x, row.all['accuracy'])
  for row in (row for row in rows if row.head.startswith(FLOOR)):
    for end in (drawn[0].told['images_seen'] / 1000, x):
      plots.add_point(series, row.key.title, end, row.all['accuracy'])
  return series


def draw_images(workdir: str, rows: Sequence[Row]) -> None:
  """images_drawn.png: what longer pretraining is worth, where runs show it."""
  series = by_images(rows)
  if not series:
    return
  figure = plots.few_labels(
    series,
    {name: name for name in series},
    'thousands of images drawn in pretraining',
    'accuracy, %',
    'Each group predicted by heads that saw none of it',
  )
  plots.save(os.path.join(workdir, 'images_drawn.png'), figure)


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


def text(found: CrossValidation) -> str:
  """Plain text: accuracy of every row, and differences to the first."""
  told, first = found.data, found.rows[0].encoder
  minus = {
    c.b: page.brackets(score, '+')
    for c, score in found.shown
    if c.a.encoder == first
  }
  lines = {
    row.key.title: {
      'accuracy': page.brackets(row.all['accuracy']),
      'patients': page.brackets((row.patients or {}).get('accuracy')),
      'first minus this': minus.get(row.key, ''),
    }
    for row in found.rows
  }
  committee = [
    f'{c.a.title} - {c.b.title}: {page.brackets(score, "+")}'
    for c, score in found.shown
    if c.a.encoder != first
  ]
  return (
    f'Cross-validation, {told["predicted"]} images of {told["groups"]} groups, '
    f'{patients_in_words(told["predicted_patients"])}, percent [95 % over '
    'groups]; the test part was not read.\n'
    + '\n'.join(
      [pd.DataFrame.from_dict(lines, orient='index').to_string(), *committee]
    )
  )

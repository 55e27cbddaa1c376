"""Task `probe`: what a frozen encoder's features are worth, head by head.

Layer, timestep, pooling, learning rate and weight decay are chosen on
validation rows. Test labels are read by `score` alone, when every head is
final, and by what saves the predictions.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
import shutil
from typing import Any

from ml_collections import ConfigDict
import numpy as np
import pandas as pd

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import promises
from micdiffrep_jax.draw import decision as draw_decision
from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.draw import result as words
from micdiffrep_jax.draw.result import FLOOR, RANDOM, patients_in_words
from micdiffrep_jax.encoders import features
from micdiffrep_jax.encoders.cache import Cache
from micdiffrep_jax.heads import classic, head_file
from micdiffrep_jax.heads import table as head_table
from micdiffrep_jax.heads.base import Settings
from micdiffrep_jax.heads.nets import HEADS
from micdiffrep_jax.methods import Reader
from micdiffrep_jax.methods.views import check_augment
from micdiffrep_jax.run import files, log
from micdiffrep_jax.run.checks import in_range, lookup, not_empty, one_of
from micdiffrep_jax.scores import (
  bootstrap,
  decision,
  metrics,
  pooling,
  summary,
)
from micdiffrep_jax.scores.summary import RowSummary, Spread, Summary
from micdiffrep_jax.studies import base, cuts, grid, imagenet
from micdiffrep_jax.studies.base import Parts, Study
from micdiffrep_jax.studies.cuts import Cut
from micdiffrep_jax.studies.grid import Row

# (a, b): is a better than b, on the same test groups?
PAIRS = (
  ('mlp_concat', 'linear_single'),  # the paper's comparison
  ('mlp_concat', 'mlp_single'),  # the same with equal heads
  ('mlp_concat', 'linear_concat'),
  ('mlp_concat', 'random/mlp_concat'),
  ('mlp_concat', 'floor/nearest_pixels'),
  ('mlp_concat', 'floor/nearest_hog'),
  ('mlp_concat', 'floor/imagenet'),
  ('mlp_layers_concat', 'mlp_concat'),
  ('attention_concat', 'mlp_concat'),
  ('logistic', 'random/logistic'),
  ('logistic', 'floor/logistic_hog'),
  ('knn', 'random/knn'),
  ('kernel', 'mlp_concat'),
  ('kernel', 'knn'),
  ('kernel', 'random/kernel'),
  ('kernel', 'floor/nearest_pixels'),
  ('kernel', 'floor/nearest_hog'),
  ('kernel', 'floor/kernel_pixels'),
  ('kernel', 'floor/kernel_hog'),
  ('kernel', 'floor/imagenet'),
  ('kernel_layers', 'kernel'),
  ('kernel_layers', 'random/kernel_layers'),
  ('kernel_layers', 'floor/imagenet'),
  ('finetuned', 'frozen'),
  ('finetuned', 'floor/nearest_pixels'),
  ('finetuned', 'floor/nearest_hog'),
  ('finetuned', 'floor/kernel_hog'),
  ('finetuned', 'floor/imagenet'),
)


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before anything runs."""
  for kind in config.heads.kinds:
    lookup(HEADS, kind, 'head', '--config.heads.kinds')
  for name in config.classic:
    lookup(classic.HEADS, name, 'probe', '--config.classic')
  imagenet.check(config.floors)
  lookup(metrics.CRITERIA, config.criterion, 'metric', '--config.criterion')
  _check_select(config)
  lookup(pooling.POOLS, config.pooling, 'pooling', '--config.pooling')
  not_empty(config.heads.kinds, '--config.heads.kinds')
  for name in ('timesteps', 'seeds', 'grids'):
    not_empty(config[name], f'--config.{name}')
  bad = [g for g in config.grids if g not in grid.POOLINGS]
  if bad:
    raise ValueError(
      f'Grids {bad} given; one of {grid.POOLINGS}. Set them with '
      '--config.grids.'
    )
  if config.online.views < 0:
    raise ValueError(
      f'online.views={config.online.views} is negative; 0 means none. Set '
      '--config.online.views.'
    )
  check_augment(config.online.augment)
  if not config.checkpoint:
    raise ValueError(
      'No encoder given. Set --config.checkpoint to a pretraining folder.'
    )
  rows = [f'{k}_{s}' for k in config.heads.kinds for s in ('single', 'concat')]
  # Nearest neighbours need the training images' features: no head.
  rows += [name for name in config.classic if head_table.HEADS[name].kind]
  one_of(rows, config.bundle, 'row', '--config.bundle')


def _check_select(config: ConfigDict) -> None:
  if 'select' not in config:  # a study that chooses on validation alone
    return
  if config.select in metrics.CRITERIA:
    raise ValueError(
      f'select={config.select!r} is a metric; give it as '
      f'--config.criterion={config.select}.'
    )
  one_of(cuts.SELECT, config.select, 'choice', '--config.select')
  in_range(config.folds, 2, 100, '--config.folds')


def layers_of(method: Reader, config: ConfigDict) -> tuple[str, ...]:
  """The layers to read, all where none is named."""
  timesteps = features.timesteps_of(method, config.timesteps)
  return features.check_request(method, config.layers, timesteps)


def suite(
  cache: Cache,
  parts: Parts,
  config: ConfigDict,
  desc: str,
  choosing: Sequence[Cut],
) -> tuple[dict[str, Row], list[page.Line]]:
  """The rows of one encoder by name, and all that was tried.

  Rows: {linear, mlp}_{single, concat}, where mlp_concat is MSFA; then the heads
  of config.classic, on the concatenation at the timestep and grid that the best
  concatenated head chose. Choices are the best of all cuts of `choosing`.
  """
  training = grid.training_of(config)
  choices = [*((layer,) for layer in cache.layers), cache.layers]
  # The other seeds measure the spread of what was chosen.
  first = training._replace(seeds=config.seeds[:1])
  tried = grid.average(
    grid.search(
      cache,
      parts,
      choices,
      cache.timesteps,
      config.grids,
      first,
      desc,
      choosing,
    ),
    config.criterion,
  )
  log.get_logger().info('Final heads: %d seeds.', len(config.seeds))
  rows = {
    name: grid.finish_trial(cache, parts, trial, training)
    for name, trial in grid.choose(tried, config.heads.kinds).items()
  }
  spot = grid.best(tried[tried['part'] == 'concat']).spot
  rows |= grid.classic_rows(cache, parts, spot, config.classic, choosing)
  return rows, [trial.record() for trial in grid.trials_of(tried)]


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Probes config.checkpoint; writes results.json, predictions, head, plots."""
  check(config)
  study = base.open_study(config, layers_of, config.step or None)
  ds, parts, split = study.ds, study.parts, config.data.split
  doubts = promises.refuse(ds, split, config.allow_failed_audit)
  normal = base.normal_class(config.normal_class, ds.classes)
  absent = imagenet.told(config.floors)
  choosing = cuts.cuts_of(ds, parts, config.select, config.folds, config.seed)
  os.makedirs(workdir, exist_ok=True)

  rows: dict[str, Row] = {}
  trials: dict[str, list[page.Line]] = {}
  folder = os.path.join(workdir, 'features')
  place = os.path.join(folder, '{}')
  timesteps = features.timesteps_of(study.encoder.method, config.timesteps)
  for source in base.sources(study, config, place):
    cache = source.extract(timesteps)
    desc = source.name + 'heads'
    found, tried = suite(cache, parts, config, desc, choosing)
    trials[base.who_of(source.name)] = tried
    rows |= {source.name + name: row for name, row in found.items()}
    if not source.name:
      save_head(workdir, rows[config.bundle], study, config)
  rows |= grid.floor_rows(ds, [parts], config.floors, config.seed, folder)[0]

  results = score(
    rows, ds, parts, normal, config.resamples, config.seed, config.pooling
  )
  results |= {
    'bundle': config.bundle,
    'chosen_on': cuts.in_words(choosing),
    'task': 'probe',
    'trials': trials,
    'audit_reasons': doubts,
    **absent,
    **base.told(study, split),
  }
  draw(workdir, results)
  decide(workdir, rows, ds, parts, config)
  save_predictions(workdir, rows, ds, parts)
  if not config.keep_features:
    shutil.rmtree(folder, ignore_errors=True)
  print(text(results), flush=True)
  return files.write_results(workdir, results, config)


def save_head(workdir: str, row: Row, study: Study, config: ConfigDict) -> None:
  """Writes the head of a row, with what its features and classes are."""
  assert row.head is not None
  side, split = max(config.grids), config.data.split
  info = dataclasses.replace(
    base.head_info(row.head.info, study.ds, split, side, config),
    encoder=study.encoder.info.to_json(),
    checkpoint=config.checkpoint,
  )
  head_file.save(workdir, row.head._replace(info=info))


def _spread(name: str, labels: np.ndarray, probs: np.ndarray) -> Spread:
  """A metric of the probabilities of every seed (s, q, k)."""
  each = np.array([metrics.value(name, labels, p) for p in probs])
  std = float(each.std(ddof=1)) if len(probs) > 1 else None
  return Spread(each.tolist(), float(each.mean()), std)


def _before(labels: np.ndarray, row: Row) -> dict[str, float] | None:
  """Calibration of the first seed before its temperature."""
  if row.test_uncalibrated is None:
    return None
  return {
    name: metrics.value(name, labels, row.test_uncalibrated)
    for name in ('ece', 'nll')
  }


def _summaries(
  rows: Mapping[str, Row],
  ds: data.Dataset,
  parts: Parts,
  normal: str,
  resamples: int,
  seed: int,
  how: str,
) -> dict[str, RowSummary]:
  """Every metric of each row, on validation and on test rows."""

  def of(at: np.ndarray, probs: np.ndarray) -> dict[str, Summary]:
    return summary.summarise(
      data.labels(ds)[at],
      probs,
      base.slices_of(ds, at),
      ds.classes,
      normal,
      resamples,
      seed,
      how,
    )

  val, test = parts.rows[parts.val], parts.rows[parts.test]
  labels = data.labels(ds)[test]
  return {
    name: RowSummary(
      row.chosen,
      row.temperature,
      _before(labels, row),
      {x: _spread(x, labels, row.test) for x in metrics.HEADLINE},
      of(val, row.val),
      of(test, row.test[0]),
    )
    for name, row in rows.items()
  }


def _comparisons(
  rows: Mapping[str, Row],
  ds: data.Dataset,
  at: np.ndarray,
  resamples: int,
  seed: int,
) -> list[page.Line]:
  """Paired comparisons of PAIRS, first seeds, on all images and on sources."""
  labels, groups = data.labels(ds)[at], data.groups(ds)[at]
  return [
    {
      'row_a': a,
      'row_b': b,
      'images': name,
      **bootstrap.compare(
        labels[keep],
        rows[a].test[0][keep],
        rows[b].test[0][keep],
        groups[keep],
        metric,
        resamples,
        seed,
      ),
    }
    for a, b in PAIRS
    if a in rows and b in rows
    for name, keep in base.image_sets(ds, at).items()
    for metric in metrics.HEADLINE
  ]


def score(
  rows: Mapping[str, Row],
  ds: data.Dataset,
  parts: Parts,
  normal: str,
  resamples: int,
  seed: int,
  how: str,
) -> files.Results:
  """The results of all rows: summaries, 2 x 2 table, paired comparisons.

  Summaries and comparisons are of the first seed, the head that is bundled;
  `seeds` tells how the others did.
  """
  scored = _summaries(rows, ds, parts, normal, resamples, seed, how)
  test = parts.rows[parts.test]
  return {
    'rows': scored,
    'two_by_two': {
      prefix.strip('/') or 'encoder': two_by_two(scored, prefix)
      for prefix in ('', RANDOM)
      if prefix + 'linear_single' in scored
    },
    'comparisons': _comparisons(rows, ds, test, 2 * resamples, seed),
    'normal_class': normal,
  }


def two_by_two(
  scored: Mapping[str, RowSummary], prefix: str
) -> dict[str, dict[str, dict[str, float | None]]]:
  """{linear, mlp} x {single, concat}: test accuracy with interval and seeds."""
  return {
    kind: {
      part: {
        **scored[name].test['all'].scores['accuracy'].to_json(),
        'seeds_mean': scored[name].seeds['accuracy'].mean,
        'seeds_std': scored[name].seeds['accuracy'].std,
      }
      for part in ('single', 'concat')
      if (name := f'{prefix}{kind}_{part}') in scored
    }
    for kind in ('linear', 'mlp')
    if f'{prefix}{kind}_single' in scored
  }


def draw(workdir: str, results: Mapping[str, Any]) -> None:
  """confusion.png of the bundled head, reliability.png of it and others."""
  rows, name = results['rows'], results['bundle']
  test = rows[name].test['all']
  split = results['data']['split']
  title = f'{words.title(name)}\ntest part, split {split}'
  plots.save(
    os.path.join(workdir, 'confusion.png'),
    plots.confusion(test.confusion, test.classes, title),
  )
  shown = [n for n in (name, 'linear_single', 'logistic') if n in rows]
  curves = {
    words.title(n): rows[n].test['all'].reliability._asdict()
    for n in dict.fromkeys(shown)
  }
  path = os.path.join(workdir, 'reliability.png')
  plots.save(path, plots.reliability(curves))


def decide(
  workdir: str,
  rows: Mapping[str, Row],
  ds: data.Dataset,
  parts: Parts,
  config: ConfigDict,
) -> None:
  """decision.png and decision.csv of the bundled head, beside two floors."""
  at = parts.rows[parts.test]
  shown = (config.bundle, FLOOR + 'kernel_hog', FLOOR + 'imagenet')
  curves = decision.curves(
    data.labels(ds)[at],
    {name: rows[name].test[0] for name in shown if name in rows},
    data.groups(ds)[at],
    ds.classes,
    config.resamples,
    config.seed,
  )
  draw_decision.write(workdir, curves)


def save_predictions(
  workdir: str, rows: Mapping[str, Row], ds: data.Dataset, parts: Parts
) -> None:
  """predictions.npz, without pickle.

  For `part` in val, test: part.index (dataset rows), part.id, part.label,
  part.patient_id, part.group, part.variant; part.probs.<row> (n, k) float32 of
  the first seed.
  """
  arrays: dict[str, np.ndarray] = {'classes': np.array(ds.classes)}
  labels = data.labels(ds)
  for part in ('val', 'test'):
    at = parts.rows[getattr(parts, part)]
    arrays[f'{part}.index'] = at
    arrays[f'{part}.label'] = labels[at]
    for field in ('id', 'patient_id', 'group', 'variant'):
      arrays[f'{part}.{field}'] = ds.manifest[field][at].astype(np.str_)
    for name, row in rows.items():
      probs = row.val if part == 'val' else row.test[0]
      arrays[f'{part}.probs.{name}'] = probs.astype(np.float32)
  files.write_arrays(os.path.join(workdir, 'predictions.npz'), arrays)


def _percent(found: Summary | None, metric: str) -> str:
  if found is None or np.isnan(found.scores[metric].value):
    return '-'
  return page.brackets(found.scores[metric])


def _chosen(chosen: Settings) -> str:
  if not chosen:
    return ''
  layers = chosen['layers']
  what = layers[0] if len(layers) == 1 else f'{len(layers)} layers'
  return f'{what}, t = {chosen["timestep"]}, grid {chosen["grid"]}'


def text(results: Mapping[str, Any]) -> str:
  """Plain text: test scores of every row in percent, and comparisons."""
  lines = {}
  for name, row in results['rows'].items():
    lines[name] = {
      f'{metric.removesuffix("_accuracy")}, {part}': _percent(
        row.test.get(part), metric
      )
      for part in bootstrap.SETS
      for metric in metrics.HEADLINE
    } | {'chosen': _chosen(row.chosen)}
  note = (
    f'Test part of split {results["data"]["split"]!r}, percent, 95 % interval '
    f'over groups; chosen on {results["chosen_on"]}; mlp_concat is MSFA; '
    + patients_in_words(results['data']['patients'])
  )
  pairs = [
    f'{c["row_a"]} - {c["row_b"]}: {100 * c["difference"]:+.1f} '
    f'[{100 * c["low"]:+.1f}, {100 * c["high"]:+.1f}], p = {c["p_value"]:.3g}'
    for c in results['comparisons']
    if c['images'] == 'all' and c['metric'] == 'accuracy'
  ]
  table = pd.DataFrame.from_dict(lines, orient='index').to_string()
  return '\n'.join(['', table, note, '', *pairs])

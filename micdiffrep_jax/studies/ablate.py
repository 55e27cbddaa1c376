"""Task `ablate`: timestep x layer x pooling x head, from one pass per timestep.

One forward pass gives every layer of an image; its pooled features are kept on
disk, and all heads of a timestep are trained from there. What validation says
of them is kept in one file per timestep, so that an interrupted study goes on
from the finished ones. Layer, timestep, pooling, learning rate and decay are
chosen on validation rows; only the chosen cells are tested, once.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import os
import shutil
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np
import pandas as pd
from scipy import stats

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders import features
from micdiffrep_jax.encoders.cache import Cache
from micdiffrep_jax.encoders.encoder import Encoder
from micdiffrep_jax.heads.trained import Setting
from micdiffrep_jax.methods import Reader
from micdiffrep_jax.run import files, log
from micdiffrep_jax.run.checks import not_empty, one_of
from micdiffrep_jax.studies import base, grid, imagenet, probe
from micdiffrep_jax.studies.base import Parts, Source
from micdiffrep_jax.studies.grid import Row

TAPS = ('all', 'encoder', 'decoder')
MSFA = 'MSFA (MLP, all layers)'

Level = tuple[int, ...]  # one timestep, or several whose features are fused
Key = Mapping[str, Any]  # all that decides some scores, by name


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before anything runs."""
  probe.check(config)
  one_of(TAPS, config.taps, 'choice of taps', '--config.taps')
  not_empty(config.search_seeds, '--config.search_seeds')
  if config.layers and config.taps != 'all':
    raise ValueError(
      f'--config.taps={config.taps} and --config.layers={config.layers} both '
      'choose layers. Leave one of them.'
    )


def levels_of(config: ConfigDict) -> list[Level]:
  """What is searched: each timestep, then each fusion of several."""
  return [
    *((t,) for t in config.timesteps),
    *(grid.parse_level(text) for text in config.fused),
  ]


def choose_layers(method: Reader, config: ConfigDict) -> tuple[str, ...]:
  """The layers to read, of the encoder or decoder alone where taps says so.

  Without the decoder the compiler leaves its computation out.
  """
  timesteps = [t for level in levels_of(config) for t in level]
  names = features.check_request(method, config.layers, timesteps)
  return of_taps(method, names, config.taps)


def of_taps(
  method: Reader, names: tuple[str, ...], taps: str
) -> tuple[str, ...]:
  """Those of the layers that are of `taps`: all, encoder or decoder."""
  if taps == 'all':
    return names
  wanted = taps == 'decoder'
  chosen = tuple(n for n in names if (n in method.decoder) == wanted)
  if not chosen:
    raise ValueError(
      f'None of {names} is of the {taps}. Set --config.taps=all.'
    )
  return chosen


def size_bytes(feature_fn: Callable, encoder: Encoder, images: int) -> int:
  """Bytes on disk of the features of one timestep."""
  return images * feature_cache.image_bytes(feature_fn, encoder, 1)


def check_space(folder: str, need: int, timesteps: int, images: int) -> None:
  """States the size of the features; ValueError where they do not fit."""
  os.makedirs(folder, exist_ok=True)
  total, free = need * timesteps, shutil.disk_usage(folder).free
  log.get_logger().info(
    'Features: %d timesteps x %d images = %.2f GiB float16 in %s (%.0f GiB '
    'free).',
    timesteps,
    images,
    total / 2**30,
    folder,
    free / 2**30,
  )
  feature_cache.check_space(folder, total)


def key(source: Source, level: Level, config: ConfigDict) -> Key:
  """All that decides the scores of a timestep."""
  heads = {k: v for k, v in config.heads.items() if k != 'memory_mb'}
  fields = (
    'grids',
    'deviation',
    'draws',
    'seed',
    'standardise',
    'search_seeds',
    'online',
  )
  return files.plain(
    {
      'encoder': source.encoder.info.to_json(),
      'encoder_config': source.encoder.config,
      'weights_seed': source.weights_seed,
      'dataset': source.ds.fingerprint,
      'split_hash': data.split_hash(source.ds, config.data.split),
      'layers': source.layers,
      'timesteps': level,
      'heads': heads,
      **{field: config[field] for field in fields},
    }
  )


def records(scores: pd.DataFrame) -> list[page.Line]:
  """The lines of a table as files hold them, with layers as a list."""
  lines = grid.lines_of(scores.drop(columns='part'))
  return [{**line, 'layers': line['layers'].split('+')} for line in lines]


def write(path: str, want: Key, scores: pd.DataFrame) -> None:
  """Keeps the scores of a timestep, under what decides them."""
  files.write_json(path, {'key': want, 'heads': records(scores)})


def read(
  path: str, want: Key, criterion: str = 'accuracy'
) -> pd.DataFrame | None:
  """The scores of a finished timestep; None where they are of something else.

  The file is written whole or not at all, so what is there can be trusted.
  """
  try:
    with open(path) as f:
      record = json.load(f)
  except (OSError, ValueError):
    return None
  if record.get('key') != want or criterion not in record['heads'][0]:
    return None
  parts = ('single', 'concat')
  return pd.DataFrame(
    {
      **head,
      'layers': '+'.join(head['layers']),
      'part': parts[len(head['layers']) > 1],
    }
    for head in record['heads']
  )


def search(
  cache: Cache, parts: Parts, config: ConfigDict, level: Level, desc: str = ''
) -> pd.DataFrame:
  """Trains all heads of one timestep: their scores on validation rows."""
  choices: list[tuple[str, ...]] = [(layer,) for layer in cache.layers]
  if len(cache.layers) > 1:
    choices.append(cache.layers)
  training = grid.training_of(config)._replace(seeds=config.search_seeds)
  return grid.search(
    cache, parts, choices, [level], config.grids, training, desc
  )


def search_levels(
  folder: str, source: Source, parts: Parts, config: ConfigDict
) -> pd.DataFrame:
  """Validation scores of the whole grid; what is finished is not done again.

  folder gets one results file per timestep.
  """
  levels = levels_of(config)
  keys = [key(source, level, config) for level in levels]
  paths = [os.path.join(folder, f't{grid.level_name(x)}.json') for x in levels]
  found = [read(p, k, config.criterion) for p, k in zip(paths, keys)]
  todo = [i for i, scores in enumerate(found) if scores is None]
  log.get_logger().info(
    '%d of %d timesteps are finished.', len(levels) - len(todo), len(levels)
  )
  if not todo:
    return pd.concat(found, ignore_index=True)
  method = source.encoder.method
  feature_fn = features.make_feature_fn(
    method, source.layers, source.grid, source.deviation
  )
  images = len(parts.rows) + config.online.views * len(parts.train)
  need = size_bytes(feature_fn, source.encoder, images)
  new = {t for i in todo for t in levels[i]}
  check_space(folder, need, len(new), len(parts.rows))
  started = time.monotonic()
  for done, i in enumerate(todo, 1):
    cache = source.extract(levels[i], feature_fn)
    desc = f't = {grid.level_name(levels[i])}, heads'
    scores = search(cache, parts, config, levels[i], desc)
    found[i] = scores
    if jax.process_index() == 0:
      write(paths[i], keys[i], scores)
    elapsed = time.monotonic() - started
    _tell(scores, config.criterion, done, len(todo), elapsed)
  return pd.concat(found, ignore_index=True)


def _tell(
  scores: pd.DataFrame, criterion: str, done: int, of: int, elapsed_s: float
) -> None:
  """Logs the best head of a timestep, and how long the rest will take."""
  (best,) = grid.lines_of(scores.nlargest(1, criterion))
  log.get_logger().info(
    't = %s done, best %.1f %% on validation (%s, %s, grid %d). %d of %d; '
    'about %.0f min to go.',
    best['timestep'],
    100 * best[criterion],
    best['kind'],
    best['layers'] if best['part'] == 'single' else 'all layers',
    best['grid'],
    done,
    of,
    elapsed_s / done * (of - done) / 60,
  )


def final_rows(
  averaged: pd.DataFrame, source: Source, parts: Parts, config: ConfigDict
) -> dict[str, Row]:
  """The chosen cells, trained with config.seeds and predicted on test rows."""
  training = grid.training_of(config)
  chosen = grid.choose(averaged, config.heads.kinds)
  rows = {}
  for name, trial in chosen.items():
    step = trial.spot.timestep
    cache = source.extract(step if isinstance(step, tuple) else (step,))
    log.get_logger().info('Final heads: %s.', name)
    rows[name] = grid.finish_trial(cache, parts, trial, training)
  concat = [chosen.get(f'{kind}_concat') for kind in config.heads.kinds]
  best = max(filter(None, concat), key=lambda t: t.score, default=None)
  if best:
    rows |= grid.classic_rows(cache, parts, best.spot, config.classic)
  return rows


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Studies config.checkpoint; writes grid.csv, grid.json, plots, results."""
  check(config)
  study = base.open_study(config, choose_layers, config.step or None)
  ds, parts = study.ds, study.parts
  normal = base.normal_class(config.normal_class, ds.classes)
  absent = imagenet.told(config.floors)
  rows: dict[str, Row] = {}
  scores: dict[str, pd.DataFrame] = {}
  averaged: dict[str, pd.DataFrame] = {}
  place = os.path.join(workdir, 'timesteps', '{}', 'features')
  sources = base.sources(study, config, place)
  for source in sources:
    who = base.who_of(source.name)
    folder = os.path.dirname(source.folder)
    scores[who] = search_levels(folder, source, parts, config)
    averaged[who] = grid.average(scores[who], config.criterion)
    found = final_rows(averaged[who], source, parts, config)
    rows |= {source.name + name: row for name, row in found.items()}
  folder = place.format('floors')
  rows |= grid.floor_rows(ds, [parts], config.floors, config.seed, folder)[0]

  results = probe.score(
    rows, ds, parts, normal, config.resamples, config.seed, config.pooling
  )
  results |= {
    # An encoder of one layer has no MSFA.
    'bundle': config.bundle if config.bundle in rows else next(iter(rows)),
    'task': 'ablate',
    'chosen_on': 'validation images',
    'trials': {
      who: [trial.record() for trial in grid.trials_of(table)]
      for who, table in averaged.items()
    },
    **absent,
    **base.told(study, config.data.split),
  }
  if jax.process_index() == 0:
    write_grid(workdir, scores, config.criterion)
    draw(workdir, scores['encoder'], averaged['encoder'], config.criterion)
    probe.draw(workdir, results)
    probe.save_predictions(workdir, rows, ds, parts)
    print(probe.text(results), text(results), sep='\n', flush=True)
  results = files.write_results(workdir, results, config)
  if not config.keep_features:
    for done in (*(source.folder for source in sources), folder):
      shutil.rmtree(done, ignore_errors=True)
  return results


def write_grid(
  workdir: str, scores: Mapping[str, pd.DataFrame], criterion: str
) -> None:
  """grid.csv and grid.json: validation scores of every head of the grid."""
  lines = [
    {'encoder': who, **line}
    for who, table in scores.items()
    for line in grid.lines_of(table.drop(columns='part'))
  ]
  page.write_csv(os.path.join(workdir, 'grid.csv'), list(lines[0]), lines)
  record = {
    'scores': 'validation rows; nothing here is a test score',
    'select': criterion,
    'heads': {who: records(table) for who, table in scores.items()},
  }
  files.write_json(os.path.join(workdir, 'grid.json'), record)


def band(scores: Sequence[float]) -> tuple[float, float, float]:
  """Mean of shares and 95 % t-interval of it over seeds, within [0, 1].

  The interval of one seed is its value.
  """
  mean = float(np.mean(scores))
  if len(scores) < 2:
    return mean, mean, mean
  error = float(np.std(scores, ddof=1)) / len(scores) ** 0.5
  reach = float(stats.t.ppf(0.975, len(scores) - 1)) * error
  return mean, max(0.0, mean - reach), min(1.0, mean + reach)


def best_by_timestep(
  scores: pd.DataFrame, criterion: str
) -> dict[str, tuple[float, float, float]]:
  """At each timestep, the setting with the best mean over seeds: its band."""
  keys = ['layers', 'grid', *Setting._fields]
  found = {}
  for t, at in scores.groupby('timestep', sort=False):
    over_seeds = at.groupby(keys, sort=False)[criterion].agg(list)
    found[str(t)] = band(max(over_seeds, key=lambda s: float(np.mean(s))))
  return found


def figure4(
  path: str, scores: pd.DataFrame, criterion: str, single: str, title: str
) -> None:
  """Score against timestep: one curve per layer, MSFA drawn on top.

  single: the head of the single layers; the paper's is linear. Each point is
  the best pooling and setting there; bands are 95 % intervals over seeds.
  """
  is_fused = scores['timestep'].str.contains('+', regex=False)
  is_msfa = (scores['part'] == 'concat') & (scores['kind'] == 'mlp')
  is_single = (scores['part'] == 'single') & (scores['kind'] == single)
  series: dict[str, dict[str, list[float]]] = {
    str(layer): _line(mine, criterion)
    for layer, mine in scores[is_single & ~is_fused].groupby(
      'layers', sort=False
    )
  }
  if (is_msfa & ~is_fused).any():
    series[MSFA] = _line(scores[is_msfa & ~is_fused], criterion)
  if not series:
    return
  steps = [t for line in series.values() for t in line['x']]
  dotted = {
    f'MSFA, t = {t} fused': {
      'x': [min(steps), max(steps)],
      'y': [100 * mean, 100 * mean],
    }
    for t, (mean, *_) in best_by_timestep(
      scores[is_msfa & is_fused], criterion
    ).items()
  }
  figure = plots.curves(
    series | dotted,
    'timestep',
    f'validation {criterion.replace("_", " ")}, %',
    title,
    bold=MSFA,
    dotted=list(dotted),
    log_x=min(steps) > 0,
  )
  plots.save(path, figure)


def _line(scores: pd.DataFrame, criterion: str) -> dict[str, list[float]]:
  best = best_by_timestep(scores, criterion)
  steps = sorted(best, key=int)
  mean, low, high = (100 * np.array(v) for v in zip(*(best[t] for t in steps)))
  return {
    'x': [int(t) for t in steps],
    'y': mean.tolist(),
    'low': low.tolist(),
    'high': high.tolist(),
  }


def draw(
  workdir: str, scores: pd.DataFrame, averaged: pd.DataFrame, criterion: str
) -> None:
  """figure4*.png and heatmap*.png, overall and for each pooling."""
  trials = grid.trials_of(averaged)
  for kind in scores['kind'].unique():
    suffix = '' if kind == 'linear' else f'_{kind}'
    title = f'Single layers: {kind} head'
    path = os.path.join(workdir, f'figure4{suffix}.png')
    figure4(path, scores, criterion, kind, f'{title}, best pooling')
    for side in scores['grid'].unique():
      mine = scores[scores['grid'] == side]
      path = os.path.join(workdir, f'figure4{suffix}_grid{side}.png')
      figure4(path, mine, criterion, kind, f'{title}, {side} x {side} cells')
      mine_alone = [
        trial.record()
        for trial in trials
        if (trial.kind, trial.spot.grid) == (kind, side)
        and not isinstance(trial.spot.timestep, tuple)
      ]
      path = os.path.join(workdir, f'heatmap_{kind}_grid{side}.png')
      plots.save(path, plots.layers_by_timestep(mine_alone))


def text(results: Mapping[str, Any]) -> str:
  """Plain text: {linear, MLP} x {single, all layers}, test accuracy."""
  lines = []
  for encoder, table in results['two_by_two'].items():
    cells = {
      kind: {
        title: _cell(found.get(part))
        for part, title in (
          ('single', 'best single layer'),
          ('concat', 'all layers'),
        )
      }
      for kind, found in table.items()
    }
    lines += ['', f'2 x 2, {encoder}: test accuracy, %, seeds mean (deviation)']
    lines.append(pd.DataFrame.from_dict(cells, orient='index').to_string())
  return '\n'.join(lines)


def _cell(found: Mapping[str, Any] | None) -> str:
  if not found:
    return '-'
  cell = f'{page.brackets(found)}, {100 * found["seeds_mean"]:.1f}'
  if found['seeds_std'] is not None:
    cell += f' ({100 * found["seeds_std"]:.1f})'
  return cell

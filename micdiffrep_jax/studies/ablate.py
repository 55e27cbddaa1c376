"""Task `ablate`: timestep x layer x pooling x head, from one pass per timestep.

One forward pass gives every layer of an image; its pooled features are kept on
disk, and all heads of a timestep are trained from there. Layer, timestep,
pooling, learning rate and decay are chosen on validation rows; only the chosen
cells are tested, once.
"""

import os
import shutil
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.heads import floors
from micdiffrep_jax.methods import Reader
from micdiffrep_jax.run import files, log
from micdiffrep_jax.run.checks import lookup
from micdiffrep_jax.studies import (
  ablate_grid,
  ablate_pass,
  ablate_tables,
  grid,
  probe,
  probe_report,
  probe_rows,
)
from micdiffrep_jax.studies.ablate_grid import Scored
from micdiffrep_jax.studies.grid import Trial
from micdiffrep_jax.studies.probe_rows import Parts, Row

TAPS = ('all', 'encoder', 'decoder')


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before anything runs."""
  probe.check(config)
  lookup(dict.fromkeys(TAPS), config.taps, 'choice of taps', '--config.taps')
  if not config.search_seeds:
    raise ValueError('--config.search_seeds is empty; give at least one.')
  if config.layers and config.taps != 'all':
    raise ValueError(
      f'--config.taps={config.taps} and --config.layers={config.layers} both '
      'choose layers. Leave one of them.'
    )


def choose_layers(method: Reader, config: ConfigDict) -> tuple[str, ...]:
  """The layers to read, of the encoder or decoder alone where taps says so.

  Without the decoder the compiler leaves its computation out.
  """
  levels = [t for text in config.fused for t in ablate_grid.parse(text)]
  names = features.check_request(
    method, config.layers, (*config.timesteps, *levels)
  )
  if config.taps == 'all':
    return names
  wanted = config.taps == 'decoder'
  chosen = tuple(n for n in names if (n in method.decoder) == wanted)
  if not chosen:
    raise ValueError(
      f'None of {names} is of the {config.taps}. Set --config.taps=all.'
    )
  return chosen


def final_rows(
  chosen: dict[str, Trial],
  cache: feature_cache.Cache,
  encoder: encoders.Encoder,
  ds: data.Dataset,
  parts: Parts,
  config: ConfigDict,
  weights_seed: int,
) -> dict[str, Row]:
  """The chosen cells, trained with config.seeds and predicted on test rows."""
  rows = {}
  for name, trial in chosen.items():
    step = trial.timestep
    level = step if isinstance(step, tuple) else (step,)
    ablate_pass.extract(cache, encoder, ds, parts, level, config, weights_seed)
    log.get_logger().info('Final heads: %s.', name)
    rows[name], _ = grid.finish(cache, parts, len(ds.classes), trial, config)
  concat = [t for n, t in chosen.items() if n in _CONCAT]
  if concat:
    best = max(concat, key=lambda t: t.score)
    classic, _ = grid.classic_rows(cache, parts, len(ds.classes), best, config)
    rows |= classic
  return rows


_CONCAT = ('linear_concat', 'mlp_concat')


def floor_rows(
  ds: data.Dataset, parts: Parts, config: ConfigDict
) -> dict[str, Row]:
  """The baselines without learned features, on the same rows."""
  if not config.floors:
    return {}
  query = parts.rows[np.concatenate([parts.val, parts.test])]
  found = floors.predict(
    ds, parts.rows[parts.train], query, config.floors, config.seed
  )
  rows = {}
  for name, probs in found.items():
    val, test = np.split(probs, [len(parts.val)])
    rows['floor/' + name] = probe_rows.Row({}, val, test[None])
  return rows


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Studies config.checkpoint; writes grid.csv, grid.json, plots, results."""
  check(config)
  started = time.monotonic()
  encoder = encoders.load_encoder(config.checkpoint, config.step or None)
  ds = data.open_dataset(config.data.path, config.data.cache)
  features.check_images(encoder, ds)
  layers = choose_layers(encoder.method, config)
  normal = probe.normal_class(config.normal_class, ds.classes)
  split = config.data.split
  seen = probe.seen_in_pretraining(
    encoder.info, ds, split, config.allow_seen_test
  )
  parts = probe.labelled_parts(ds, split)

  by_prefix = encoders.with_twin(encoder, config.random_encoder, config.seed)
  rows: dict[str, Row] = {}
  grids: dict[str, list[Scored]] = {}
  for prefix, one in by_prefix.items():
    folder = os.path.join(workdir, 'timesteps', prefix.strip('/') or 'encoder')
    weights_seed = config.seed if prefix else 0
    heads, cache = ablate_pass.fill(
      folder, one, ds, parts, layers, config, weights_seed
    )
    grids[prefix.strip('/') or 'encoder'] = heads
    trials = ablate_grid.average(heads, config.select)
    chosen = ablate_grid.choose(trials, config.heads.kinds)
    found = final_rows(chosen, cache, one, ds, parts, config, weights_seed)
    rows |= {prefix + name: row for name, row in found.items()}
  rows |= floor_rows(ds, parts, config)

  results = probe_report.score(rows, ds, parts, config, normal)
  if results['bundle'] not in rows:  # an encoder of one layer has no MSFA
    results['bundle'] = next(iter(rows))
  results |= {
    'task': 'ablate',
    'trials': {
      name: [
        {**t._asdict(), 'setting': t.setting._asdict()}
        for t in ablate_grid.average(heads, config.select)
      ]
      for name, heads in grids.items()
    },
    'encoder': encoder.info.as_dict(),
    'pretraining_saw_test_images': seen,
    'data': probe.describe(ds, split, parts),
    'elapsed_s': round(time.monotonic() - started, 1),
  }
  if jax.process_index() == 0:
    ablate_tables.write(workdir, grids, config.select)
    ablate_tables.draw(workdir, grids, config.select)
    probe_report.draw(workdir, results)
    probe_report.save_predictions(workdir, rows, ds, parts)
    print(probe_report.table(results), flush=True)
    print(ablate_tables.two_by_two(results), flush=True)
  results = files.write_results(workdir, results, config)
  if not config.keep_features:
    for name in grids:
      shutil.rmtree(
        os.path.join(workdir, 'timesteps', name, 'features'), ignore_errors=True
      )
  return results

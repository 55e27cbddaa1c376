"""Task `probe_curve`: probe accuracy against images drawn in pretraining.

Each kept checkpoint gets the grid of task `ablate`, small, on validation rows:
a curve is for choosing, so nothing here is tested.
"""

from collections.abc import Sequence
import os
import shutil
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.heads import floors
from micdiffrep_jax.run import checkpoint, files, log
from micdiffrep_jax.scores import metrics
from micdiffrep_jax.studies import (
  ablate,
  ablate_grid,
  ablate_pass,
  ablate_tables,
  probe,
)
from micdiffrep_jax.studies.ablate_grid import Scored
from micdiffrep_jax.studies.probe_rows import Parts

_COLUMNS = (
  'step',
  'images_seen',
  'row',
  'layers',
  'timestep',
  'grid',
  'learning_rate',
  'weight_decay',
  'mean',
  'low',
  'high',
)


def kept_steps(path: str, wanted: Sequence[int]) -> list[int]:
  """The steps to probe, () meaning all that are kept; ValueError if absent."""
  directory, _ = checkpoint.find(path)
  kept = checkpoint.sealed_steps(directory)
  missing = sorted(set(wanted) - set(kept))
  if missing:
    raise ValueError(
      f'No checkpoint of step {missing} under {directory}; there are {kept}. '
      'Set --config.steps.'
    )
  return sorted(wanted) or kept


def points(
  heads: Sequence[Scored], kinds: Sequence[str], criterion: str
) -> list[dict[str, Any]]:
  """The best cell of each row on validation, with its band over seeds."""
  found = []
  trials = ablate_grid.average(heads, criterion)
  for row, best in ablate_grid.choose(trials, kinds).items():
    step = best.timestep
    at = ablate_grid.name(step if isinstance(step, tuple) else (step,))
    mean, low, high = ablate_tables.band(
      [
        getattr(h, criterion)
        for h in heads
        if (h.kind, h.layers, h.timestep, h.grid)
        == (best.kind, best.layers, at, best.grid)
        and (h.learning_rate, h.weight_decay) == best.setting
      ]
    )
    found.append(
      {
        'row': row,
        'layers': '+'.join(best.layers),
        'timestep': at,
        'grid': best.grid,
        **best.setting._asdict(),
        'mean': mean,
        'low': low,
        'high': high,
      }
    )
  return found


def _floors(
  ds: data.Dataset, parts: Parts, config: ConfigDict
) -> dict[str, float]:
  """Validation scores of the baselines without learned features."""
  rows = parts.rows
  probs = floors.predict(
    ds, rows[parts.train], rows[parts.val], config.floors, config.seed
  )
  y = parts.labels[parts.val]
  return {name: metrics.value(config.select, y, p) for name, p in probs.items()}


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Probes kept checkpoints; writes curve.csv, curve.png and results.json."""
  ablate.check(config)
  started = time.monotonic()
  steps = kept_steps(config.checkpoint, config.steps)
  ds = data.open_dataset(config.data.path, config.data.cache)
  split = config.data.split
  parts = probe.labelled_parts(ds, split)
  newest = encoders.load_encoder(config.checkpoint, steps[-1])
  features.check_images(newest, ds)
  layers = ablate.choose_layers(newest.method, config)
  seen = probe.seen_in_pretraining(
    newest.info, ds, split, config.allow_seen_test
  )
  found: list[dict[str, Any]] = []
  for step in ([0] if config.random_encoder else []) + steps:
    encoder = (
      encoders.load_encoder(config.checkpoint, step)
      if step
      else encoders.random_encoder(newest, config.seed)
    )
    images = int(encoder.info.images_seen or 0)
    log.get_logger().info('Step %d, %d images drawn.', step, images)
    folder = os.path.join(workdir, 'steps', str(step))
    heads, cache = ablate_pass.fill(
      folder, encoder, ds, parts, layers, config, 0 if step else config.seed
    )
    for point in points(heads, config.heads.kinds, config.select):
      found.append({'step': step, 'images_seen': images, **point})
    if not config.keep_features:
      shutil.rmtree(cache.folder, ignore_errors=True)
  baselines = _floors(ds, parts, config) if config.floors else {}
  if jax.process_index() == 0:
    write(workdir, found, baselines, config.select)
  return files.write_results(
    workdir,
    {
      'task': 'probe_curve',
      'scores': 'validation rows; nothing here is a test score',
      'points': found,
      'floors': baselines,
      'encoder': newest.info.as_dict(),
      'pretraining_saw_test_images': seen,
      'data': probe.describe(ds, split, parts),
      'elapsed_s': round(time.monotonic() - started, 1),
    },
    config,
  )


def write(
  workdir: str,
  found: Sequence[dict[str, Any]],
  baselines: dict[str, float],
  criterion: str,
) -> None:
  """curve.csv and curve.png."""
  page.write_csv(
    os.path.join(workdir, 'curve.csv'),
    _COLUMNS,
    [[point[c] for c in _COLUMNS] for point in found],
  )
  series: dict[str, dict[str, Any]] = {}
  for row in dict.fromkeys(point['row'] for point in found):
    mine = [point for point in found if point['row'] == row]
    series[row] = {'x': [p['images_seen'] for p in mine]} | {
      axis: (100 * np.array([p[name] for p in mine])).tolist()
      for axis, name in (('y', 'mean'), ('low', 'low'), ('high', 'high'))
    }
  ends = [min(p['images_seen'] for p in found)]
  ends.append(max(p['images_seen'] for p in found))
  for name, value in baselines.items():
    series[name] = {'x': ends, 'y': [100 * value] * 2}
  figure = plots.curves(
    series,
    'images drawn in pretraining',
    f'validation {criterion.replace("_", " ")}, %',
    bold='mlp_concat',
    dotted=list(baselines),
  )
  plots.save(os.path.join(workdir, 'curve.png'), figure)

"""Task `probe_curve`: probe accuracy against images drawn in pretraining.

Each kept checkpoint gets the grid of task `ablate`, small, on validation rows:
a curve is for choosing, so nothing here is tested.
"""

from collections.abc import Mapping, Sequence
import os
import shutil

import jax
from ml_collections import ConfigDict
import numpy as np
import pandas as pd

from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.draw.result import FLOOR, RANDOM
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.run import checkpoint, files, log
from micdiffrep_jax.scores import metrics
from micdiffrep_jax.studies import ablate, base, grid, imagenet


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
  scores: pd.DataFrame, kinds: Sequence[str], criterion: str
) -> list[page.Line]:
  """The best cell of each row on validation, with its band over seeds."""
  averaged = grid.average(scores, criterion)
  found = []
  for row, best in grid.choose(averaged, kinds).items():
    cell = {
      'layers': '+'.join(best.spot.layers),
      'timestep': grid.level_name(best.spot.timestep),
      'grid': best.spot.grid,
      **best.setting._asdict(),
    }
    wanted = pd.Series({'kind': best.kind, **cell})
    is_mine = (scores[wanted.index] == wanted).all(axis=1)
    band = ablate.band(scores.loc[is_mine, criterion].tolist())
    bounds = dict(zip(('mean', 'low', 'high'), band))
    found.append({'row': row, **cell, **bounds})
  return found


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Probes kept checkpoints; writes curve.csv, curve.png and results.json."""
  ablate.check(config)
  steps = kept_steps(config.checkpoint, config.steps)
  study = base.open_study(config, ablate.choose_layers, steps[-1])
  parts = study.parts
  absent = imagenet.told(config.floors)
  found: list[page.Line] = []
  for step in ([0] if config.random_encoder else []) + steps:
    encoder = (
      encoders.load_encoder(config.checkpoint, step)
      if step
      else encoders.random_encoder(study.encoder, config.seed)
    )
    images = int(encoder.info.images_seen or 0)
    log.get_logger().info('Step %d, %d images drawn.', step, images)
    folder = os.path.join(workdir, 'steps', str(step))
    source = base.source_of(
      study,
      config,
      os.path.join(folder, 'features'),
      encoder,
      '' if step else RANDOM,
    )
    scores = ablate.search_levels(folder, source, parts, config)
    for point in points(scores, config.heads.kinds, config.criterion):
      found.append({'step': step, 'images_seen': images, **point})
    if not config.keep_features:
      shutil.rmtree(source.folder, ignore_errors=True)
  folder = os.path.join(workdir, 'steps', 'floors')
  (rows,) = grid.floor_rows(
    study.ds, [parts], config.floors, config.seed, folder
  )
  if not config.keep_features:
    shutil.rmtree(folder, ignore_errors=True)
  y = parts.labels[parts.val]
  baselines = {
    name.removeprefix(FLOOR): metrics.value(config.criterion, y, row.val)
    for name, row in rows.items()
  }
  if jax.process_index() == 0:
    write(workdir, found, baselines, config.criterion)
  return files.write_results(
    workdir,
    {
      'task': 'probe_curve',
      'scores': 'validation rows; nothing here is a test score',
      'points': found,
      'floors': baselines,
      **absent,
      **base.told(study, config.data.split),
    },
    config,
  )


def write(
  workdir: str,
  found: Sequence[page.Line],
  baselines: Mapping[str, float],
  criterion: str,
) -> None:
  """curve.csv and curve.png."""
  page.write_csv(os.path.join(workdir, 'curve.csv'), list(found[0]), found)
  series: dict[str, dict[str, list[float]]] = {}
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

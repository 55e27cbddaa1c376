"""Task `table1`: every method pretrained on the same images, under one probe.

The same training images, the same number of them drawn, the same heads and the
same candidate settings chosen on validation; beside each method its own
architecture with random weights, and the floors once.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from micdiffrep_jax import tasks
from micdiffrep_jax.data import splits
from micdiffrep_jax.draw import page
from micdiffrep_jax.draw.page import Section
from micdiffrep_jax.draw.result import Run
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.methods.base import trainable
from micdiffrep_jax.pretrain import monitor, train
from micdiffrep_jax.run import checkpoint as checkpoints
from micdiffrep_jax.run import files, log
from micdiffrep_jax.run.checks import lookup
from micdiffrep_jax.studies import (
  page_table1,
  probe,
  table1_rows,
)


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before anything runs."""
  for field in ('methods', 'splits'):
    if not config[field]:
      raise ValueError(f'--config.{field} is empty; give at least one.')
  for name in config.methods:
    if name not in config.checkpoints or not config.checkpoints[name]:
      lookup(config.pretrain, name, 'method', '--config.methods')
  for field in ('splits', 'random_splits'):
    for name in config[field]:
      lookup(dict.fromkeys(splits.NAMES), name, 'split', f'--config.{field}')
  if config.images_drawn < 1:
    raise ValueError(
      f'images_drawn={config.images_drawn}: set --config.images_drawn to 1 or '
      'more.'
    )
  kinds, classic = config.probe.heads.kinds, config.probe.classic
  names = [f'{kind}_{on}' for kind in kinds for on in ('single', 'concat')]
  rows = dict.fromkeys([*names, *classic])
  lookup(rows, config.headline, 'row', '--config.headline')


def pretrain_config(config: ConfigDict, name: str) -> ConfigDict:
  """The pretraining of a method on what no split of the table tests."""
  unit = config.pretrain[name].copy_and_resolve_references()
  with unit.unlocked():
    unit.data.path, unit.data.cache = config.data.path, config.data.cache
    unit.data.split = config.splits[0]
    unit.data.spare = tuple(config.splits[1:])
    unit.steps = -(-config.images_drawn // unit.batch_size)
    warmup = unit.optim.warmup_steps  # of a longer run, maybe
    unit.optim.warmup_steps = min(warmup, unit.steps // 10)
  return unit


def probe_config(
  config: ConfigDict, name: str, checkpoint: str, split: str, timesteps: int
) -> ConfigDict:
  """One probe for all; methods without noise have the one timestep 0."""
  unit = config.probe.copy_and_resolve_references()
  with unit.unlocked():
    unit.data.path, unit.data.cache = config.data.path, config.data.cache
    unit.data.split, unit.checkpoint = split, checkpoint
    unit.layers = config.layers[name]
    unit.random_encoder = split in config.random_splits
    if timesteps == 1:
      unit.timesteps = (0,)
    if name != config.methods[0]:
      unit.floors = ()  # they are those of the first
  return unit


def finished(config: ConfigDict, folder: str, task: Any) -> dict[str, Any]:
  """The results of a cell, which is run unless it has been."""
  found = tasks.finished(folder, config)
  return task(config, folder) if found is None else found


def flops_per_image(encoder: encoders.Encoder) -> float | None:
  """Of a training step, forward and backward; None where XLA does not say.

  Counted before compilation, so nothing is fused or dropped yet.
  """
  config, info = encoder.config, encoder.info
  if not info.images_seen:
    return None  # nothing was trained here
  b, size, c = config.batch_size, info.size_px, info.channels
  method = trainable(encoders.make_method(config, size, c), config.method)
  params, extra = jax.eval_shape(method.init, jax.random.key(0))
  rows = {'image': jax.ShapeDtypeStruct((size, size, c), jnp.uint8)}
  batch = {
    name: jax.ShapeDtypeStruct((b, *row.shape), row.dtype)
    for name, row in {**rows, **method.row}.items()
  }
  grad = jax.grad(lambda p, e, x, k: method.loss(p, e, x, k)[0])
  lowered = jax.jit(grad).lower(params, extra, batch, jax.random.key(0))
  cost = lowered.cost_analysis()
  return None if not cost else float(cost['flops']) / b


def cost(encoder: encoders.Encoder) -> dict[str, Any]:
  """What stands in the table beside a method's accuracy.

  training_s is None where no run's folder tells: external weights, a bundle.
  """
  method, info = encoder.method, encoder.info
  drawn = info.images_seen or 0
  trained_s = None
  if not encoders.is_bundle(info.path or ''):
    directory, _ = checkpoints.find(info.path or '')
    trained_s = monitor.training_s(os.path.dirname(directory), drawn)
  weights = jax.tree.leaves(method.encoder(encoder.variables))
  return {
    'images_drawn': drawn,
    'training_s': trained_s,
    'flops_per_image': flops_per_image(encoder),
    'parameters': sum(x.size for x in weights),
    'flags': [name for name, told in method.facts.items() if told is True],
    'checkpoint': info.path,
  }


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Pretrains and probes what is not finished; writes the table.

  As table1.csv, table1.md, table1.html, table1.png and results.json.
  """
  check(config)
  cells: dict[str, dict[str, Any]] = {}
  costs: dict[str, dict[str, Any]] = {}
  for name in config.methods:
    checkpoint = config.checkpoints.get(name, '')
    if not checkpoint:
      checkpoint = os.path.join(workdir, name, 'pretrain')
      log.get_logger().info('%s: pretraining in %s.', name, checkpoint)
      finished(pretrain_config(config, name), checkpoint, train.run)
    encoder = encoders.load_encoder(checkpoint)
    costs[name] = cost(encoder)
    drawn = costs[name]['images_drawn']
    if drawn and abs(drawn - config.images_drawn) > encoder.config.batch_size:
      log.get_logger().warning(
        '%s drew %d images, not the %d of the others.',
        checkpoint,
        drawn,
        config.images_drawn,
      )
    for split in config.splits:
      unit = probe_config(
        config, name, checkpoint, split, encoder.method.timesteps
      )
      folder = os.path.join(workdir, name, f'probe_{split}')
      log.get_logger().info('%s: probing in %s.', name, folder)
      found = finished(unit, folder, probe.run)
      cells.setdefault(name, {})[split] = (found, folder)
  scores = table1_rows.rows_of(
    {
      name: {split: found for split, (found, _) in by_split.items()}
      for name, by_split in cells.items()
    },
    costs,
    config.headline,
  )
  results = {
    'task': 'table1',
    'table': scores,
    'costs': costs,
    'candidates': {
      name: {
        split: table1_rows.trials(found)
        for split, (found, _) in by_split.items()
      }
      for name, by_split in cells.items()
    },
    'comparisons': table1_rows.comparisons(cells, config),
    'headline': config.headline,
    'splits': config.splits,
  }
  if jax.process_index() == 0:
    path = os.path.join(workdir, 'table1.csv')
    page.write_csv(
      path, list(scores[0]), [list(row.values()) for row in scores]
    )
    table1_rows.draw(os.path.join(workdir, 'table1.png'), results)
    blocks = page_table1.blocks(Run('table1', workdir, results))
    written = ('Table 1', '', [Section('Results', blocks)])
    text = page.markdown(*written)
    files.write_whole(os.path.join(workdir, 'table1.md'), text.encode())
    html = page.render(*written)
    files.write_whole(os.path.join(workdir, 'table1.html'), html.encode())
    print(text, flush=True)
  return files.write_results(workdir, results, config)

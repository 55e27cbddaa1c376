"""Task `table1`: every method pretrained on the same images, under one probe.

The same training images, the same number of them drawn, the same heads and the
same candidate settings chosen on validation; beside each method its own
architecture with random weights, and the floors once.
"""

from collections.abc import Mapping
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax import tasks
from micdiffrep_jax.bundle import classifier
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import splits
from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.draw.page import Line, Section
from micdiffrep_jax.draw.result import FLOOR, RANDOM, Run, title
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.methods.base import trainable
from micdiffrep_jax.pretrain import monitor, train
from micdiffrep_jax.pretrain import teacher as teachers
from micdiffrep_jax.run import checkpoint as checkpoints
from micdiffrep_jax.run import files, log
from micdiffrep_jax.run.checks import lookup, not_empty, one_of, whole_number
from micdiffrep_jax.scores import bootstrap
from micdiffrep_jax.studies import (
  base,
  committees,
  imagenet,
  page_table1,
  probe,
)
from micdiffrep_jax.studies.page_table1 import Cost

PAPER_METHOD = 'ddpm'  # the paper's own
MSFA = 'mlp_concat'
# Accuracy in percent, Zhu and Zhao 2024, table 1; its split is not stated.
PAPER = {'mae': 69.0, 'moco': 73.0, 'byol': 77.0, 'clip': 82.0}
PAPER_OURS = {'linear_single': 83.0, MSFA: 88.0}
COSTS = ('images_drawn', 'training_s', 'flops_per_image', 'parameters')


class Cell(NamedTuple):
  """The probe of a method under a split: its results, and where they lie."""

  found: files.Results
  folder: str


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before anything runs."""
  for field in ('methods', 'splits'):
    not_empty(config[field], f'--config.{field}')
  for name in config.methods:
    if name not in config.checkpoints or not config.checkpoints[name]:
      lookup(config.pretrain, name, 'method', '--config.methods')
      if 'teacher' in config.pretrain[name]:
        flag = f'--config.pretrain.{name}.teacher.'
        teachers.check_given(config.pretrain[name].teacher, flag)
  for field in ('splits', 'spare', 'random_splits'):
    for name in config[field]:
      one_of(splits.ALL, name, 'split', f'--config.{field}')
  if config.images_drawn < 1:
    raise ValueError(
      f'images_drawn={config.images_drawn}: set --config.images_drawn to 1 or '
      'more.'
    )
  for name, own in config.drawn.items():
    whole_number(own, 0, float('inf'), f'--config.drawn.{name}')
  every = (*config.pretrain, 'external')
  one_of(every, config.ours, 'method', '--config.ours')
  for name in config.random_methods:
    one_of(every, name, 'method', '--config.random_methods')
  for text in config.committees:
    committees.parse(text, config.methods, config.probe.floors)
  kinds, classic = config.probe.heads.kinds, config.probe.classic
  names = [f'{kind}_{on}' for kind in kinds for on in ('single', 'concat')]
  one_of([*names, *classic], config.headline, 'row', '--config.headline')


def open_given(config: ConfigDict) -> dict[str, encoders.Encoder]:
  """The encoders that are given; ValueError where one has seen test images.

  The probe of a column would say so too, after those of all before it; none
  would of what is spared, which all other rows have not seen.
  """
  found = {}
  for name in config.methods:
    path = config.checkpoints.get(name, '')
    if not path:
      continue
    found[name] = encoders.load_encoder(path)
    ds = data.open_dataset(config.data.path, config.data.cache)
    for split in (*config.splits, *config.spare):
      base.seen_in_pretraining(
        found[name].info,
        ds,
        split,
        config.probe.allow_seen_test,
        f'Leave {split!r} out of --config.splits and --config.spare, take '
        f'another --config.checkpoints.{name}, or set '
        '--config.probe.allow_seen_test=True',
      )
  return found


def images_drawn(config: ConfigDict, name: str) -> int:
  """How many images a method draws: its own number, or that of all."""
  own: int = config.drawn.get(name, 0)
  return own or config.images_drawn


def pretrain_config(config: ConfigDict, name: str) -> ConfigDict:
  """The pretraining of a method: on no test image of splits and spare."""
  unit = config.pretrain[name].copy_and_resolve_references()
  with unit.unlocked():
    unit.data.path, unit.data.cache = config.data.path, config.data.cache
    unit.data.split = config.splits[0]
    unit.data.spare = (*config.splits[1:], *config.spare)
    unit.steps = -(-images_drawn(config, name) // unit.batch_size)
    warmup = unit.optim.warmup_steps  # of a longer run, maybe
    unit.optim.warmup_steps = min(warmup, unit.steps // 10)
  return unit


def probe_config(
  config: ConfigDict, name: str, checkpoint: str, split: str
) -> ConfigDict:
  """One probe for all."""
  unit = config.probe.copy_and_resolve_references()
  with unit.unlocked():
    unit.data.path, unit.data.cache = config.data.path, config.data.cache
    unit.data.split, unit.checkpoint = split, checkpoint
    unit.layers = config.layers[name]
    rows = config.random_methods or config.methods
    unit.random_encoder = split in config.random_splits and name in rows
    if name != config.methods[0]:
      unit.floors = ()  # they are those of the first
  return unit


def finished(config: ConfigDict, folder: str, task: Any) -> files.Results:
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


def flags(facts: Mapping[str, Any]) -> list[str]:
  """What a method had that others had not, a word each; a text joins it."""
  found = [name for name, told in facts.items() if told is True]
  texts = {k: '_'.join(v.split()) for k, v in facts.items() if type(v) is str}
  return found + [f'{name}:{text}' for name, text in texts.items()]


def parameters(
  encoder: encoders.Encoder, layers: tuple[str, ...]
) -> int | None:
  """Of the encoder, those that these layers are made of; None of a table."""
  if encoder.table is not None:
    return None
  method, info = encoder.method, encoder.info
  needed = classifier.needed(encoder, layers, info.size_px, info.channels)
  leaves, tree = jax.tree.flatten(encoder.variables)
  sizes = [x.size * used for x, used in zip(leaves, needed.values())]
  counted = method.encoder(jax.tree.unflatten(tree, sizes))
  return sum(jax.tree.leaves(counted))


def cost(encoder: encoders.Encoder, layers: tuple[str, ...] = ()) -> Cost:
  """What a method cost whose heads read these layers, () for all it has.

  No run tells the seconds of external weights.
  """
  method, info = encoder.method, encoder.info
  drawn = info.images_seen or 0
  trained_s = None
  if not encoders.is_bundle(info.path or ''):
    directory, _ = checkpoints.find(info.path or '')
    trained_s = monitor.training_s(os.path.dirname(directory), drawn)
  return Cost(
    drawn,
    trained_s,
    flops_per_image(encoder),
    parameters(encoder, layers or method.layers),
    tuple(flags(method.facts)),
    info.path,
  )


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Pretrains and probes what is not finished; writes the table.

  As table1.csv, table1.md, table1.html, table1.png and results.json.
  """
  check(config)
  given = open_given(config)
  cells: dict[str, dict[str, Cell]] = {}
  costs: dict[str, Cost] = {}
  for name in config.methods:
    encoder = given.get(name) or pretrained(config, name, workdir)
    drawn, wanted = encoder.info.images_seen or 0, images_drawn(config, name)
    if drawn and abs(drawn - wanted) > encoder.config.batch_size:
      log.get_logger().warning(
        '%s drew %d images, not %d.', encoder.info.path, drawn, wanted
      )
    for split in config.splits:
      unit = probe_config(config, name, encoder.info.path or '', split)
      if encoder.table is not None:  # no network, so none of its layers
        with unit.unlocked():
          unit.layers, unit.random_encoder = (), False
      folder = os.path.join(workdir, name, f'probe_{split}')
      log.get_logger().info('%s: probing in %s.', name, folder)
      found = finished(unit, folder, probe.run)
      cells.setdefault(name, {})[split] = Cell(found, folder)
    # After the probes, which say what is wrong with the layers.
    costs[name] = cost(encoder, config.layers[name])
  candidates = {
    name: {
      # How many candidates validation chose from: layers times settings.
      split: len(cell.found['trials']['encoder'])
      for split, cell in by_split.items()
    }
    for name, by_split in cells.items()
  }
  for text in config.committees:
    cells[text], costs[text] = committee(config, text, cells, costs, workdir)
  results = {
    'task': 'table1',
    'table': rows_of(cells, costs, config.headline),
    'costs': costs,
    'candidates': candidates,
    'comparisons': comparisons(
      cells, config.ours, config.headline, config.resamples, config.probe.seed
    ),
    'ours': config.ours,
    'headline': config.headline,
    'splits': config.splits,
    **imagenet.also_left_out(
      cell.found for found in cells.values() for cell in found.values()
    ),
  }
  if jax.process_index() == 0:
    write(workdir, results)
  return files.write_results(workdir, results, config)


def committee(
  config: ConfigDict,
  text: str,
  cells: Mapping[str, Mapping[str, Cell]],
  costs: Mapping[str, Cost],
  workdir: str,
) -> tuple[dict[str, Cell], Cost]:
  """A committee's cells by split, of the rows that its methods share; costs.

  The costs are the sums of its methods', None where one is not known.
  """
  parts = committees.parse(text, config.methods, config.probe.floors)
  methods = [name for name in parts if name in cells]
  found = {}
  for split in config.splits:
    rows = [
      row
      for row in cells[methods[0]][split].found['rows']
      if '/' not in row
      and all(row in cells[name][split].found['rows'] for name in methods)
    ]
    folder = os.path.join(workdir, text, f'probe_{split}')
    # The floors are those of the first method.
    places = {
      part: cells.get(part, cells[config.methods[0]])[split].folder
      for part in parts
    }
    joined = committees.join(
      places, rows, folder, config.resamples, config.probe.seed
    )
    found[split] = Cell(joined, folder)
  each = {key: [getattr(costs[name], key) for name in methods] for key in COSTS}
  flagged = [flag for name in methods for flag in costs[name].flags]
  if len(methods) < len(parts):
    flagged += ['external', 'imagenet_supervised']
  sums = {k: None if None in x else sum(x) for k, x in each.items()}
  return found, Cost(
    **sums, flags=tuple(dict.fromkeys(flagged)), checkpoint=text
  )


def pretrained(config: ConfigDict, name: str, workdir: str) -> encoders.Encoder:
  """The encoder of a method, which is pretrained unless it has been."""
  path = os.path.join(workdir, name, 'pretrain')
  log.get_logger().info('%s: pretraining in %s.', name, path)
  finished(pretrain_config(config, name), path, train.run)
  return encoders.load_encoder(path)


def write(workdir: str, results: Mapping[str, Any]) -> None:
  """table1.csv, table1.png, table1.md and table1.html; prints the table."""
  lines = results['table']
  path = os.path.join(workdir, 'table1.csv')
  page.write_csv(path, list(lines[0]), lines)
  draw(os.path.join(workdir, 'table1.png'), results)
  blocks = page_table1.blocks(Run('table1', workdir, files.plain(results)))
  written = ('Table 1', '', [Section('Results', blocks)])
  text = page.markdown(*written)
  files.write_whole(os.path.join(workdir, 'table1.md'), text.encode())
  html = page.render(*written)
  files.write_whole(os.path.join(workdir, 'table1.html'), html.encode())
  print(text, flush=True)


def in_paper(method: str, row: str, headline: str) -> float | None:
  """The paper's number; it gives others one, stood beside our headline row."""
  if method == PAPER_METHOD:
    return PAPER_OURS.get(row)
  return PAPER.get(method) if row == headline else None


def rows_of(
  cells: Mapping[str, Mapping[str, Cell]],
  costs: Mapping[str, Cost],
  headline: str,
) -> list[Line]:
  """One line per method, row of its probe, and split.

  What pretraining cost and which labels it had stands beside rows of its
  weights only, not beside floors and random ones.
  """
  lines = []
  for name, by_split in cells.items():
    for split, cell in by_split.items():
      for row, scored in cell.found['rows'].items():
        value = scored['test']['all']['accuracy']
        floor = row.startswith(FLOOR)
        trained = not floor and not row.startswith(RANDOM)
        cost = costs[name] if trained else None
        lines.append(
          {
            'method': page_table1.FLOOR if floor else name,
            'row': row.removeprefix(FLOOR),
            'paper': in_paper(name, row, headline),
            'split': split,
            'accuracy': value['value'],
            'low': value['low'],
            'high': value['high'],
            'flags': ' '.join(cost.flags if cost else ()),
            **{key: getattr(cost, key, None) for key in COSTS},
          }
        )
  return lines


def _predictions(folder: str, row: str) -> dict[str, np.ndarray]:
  with np.load(os.path.join(folder, 'predictions.npz')) as z:
    names = {'label': 'test.label', 'group': 'test.group', 'id': 'test.id'}
    found = {name: z[key] for name, key in names.items()}
    return {**found, 'probs': z[f'test.probs.{row}']}


def comparisons(
  cells: Mapping[str, Mapping[str, Cell]],
  ours: str,
  headline: str,
  resamples: int,
  seed: int,
) -> list[Line]:
  """Ours minus each other method on the same test groups, row by row."""
  lines: list[Line] = []
  if ours not in cells:
    return lines
  for name, by_split in cells.items():
    for split, cell in by_split.items():
      first = cells[ours][split]
      for row in dict.fromkeys((headline, 'knn', 'kernel', MSFA)):
        both = (first.found['rows'], cell.found['rows'])
        if name == ours or not all(row in found for found in both):
          continue
        a = _predictions(first.folder, row)
        b = _predictions(cell.folder, row)
        assert (a['id'] == b['id']).all()
        lines.append(
          {
            'other': name,
            'row': row,
            'split': split,
            **bootstrap.compare(
              a['label'],
              a['probs'],
              b['probs'],
              a['group'],
              'accuracy',
              resamples,
              seed,
            ),
          }
        )
  return lines


def draw(path: str, results: Mapping[str, Any]) -> None:
  """The headline row and MSFA of each method, on the first split."""
  split, headline = results['splits'][0], results['headline']
  of_encoders, floors = [], []
  for line in (x for x in results['table'] if x['split'] == split):
    method, row = line['method'], line['row']
    scored = {**line, 'value': line['accuracy']}
    if method == page_table1.FLOOR:
      floors.append((title(row), scored, FLOOR))
    elif row == MSFA or row.removeprefix(RANDOM) == headline:
      name = f'{page_table1.flagged(line)}, {title(row)}'
      # One row stands out: the headline of ours.
      others = method != results['ours'] and not row.startswith(RANDOM)
      of_encoders.append((name, scored, '' if others else row))
  figure = plots.intervals(
    of_encoders + floors,
    headline,
    f'accuracy in percent, test part of {split!r}',
  )
  plots.save(path, figure)

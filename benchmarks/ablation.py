"""Times a grid of probes: one pass per timestep against a pass per epoch.

python -m benchmarks.ablation [--rows=1024] [--preset=tiny] \
  [--checkpoint=RUN] [--data=DATASET]

Both ways train the same probes (layer x pooling x head x rate x seed) on the
same rows with the same UNet, at one timestep; all timesteps cost the same.

ours      features of all rows once, pooled, kept as float16; then all epochs
          of all heads, trained together. Measured whole.
ancestor  in every epoch, fresh noise and a forward pass over the training rows,
          then one jitted step per probe and batch in a Python loop; one more
          pass over the validation rows to score at the end. Measured: one epoch
          and one scoring pass, after compilation. Multiplied: the epoch by
          --config.heads.epochs.

Compilation is outside both. The ancestor (DDAE, linear.py) gets the forward
pass shared by all its probes, learning rates and seeds here; as published, a
run has one rate and one seed, so a second ratio multiplies its passes by those.
Prints a table, and a line of JSON at the end.
"""

import argparse
import tempfile
from typing import NamedTuple

from absl import flags
import numpy as np

from benchmarks import common
from benchmarks.ancestor import Ancestor, probe_step, read
from configs import ablate as ablate_config
from configs import pretrain
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import prepare
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.studies import ablate
from micdiffrep_jax.studies.base import Parts


def arguments():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rows', type=int, default=1024, help='to train on')
  parser.add_argument('--preset', default='tiny', help='of configs/ablate.py')
  parser.add_argument('--checkpoint', default='', help="'': random weights")
  parser.add_argument('--encoder', default='tiny', help='of configs/pretrain')
  parser.add_argument('--data', default='phantom:size_px=64,patients=240')
  parser.add_argument('--grids', default='', help='e.g. 1,4')
  parser.add_argument('--kinds', default='', help='e.g. linear')
  parser.add_argument('--out', default='', help='JSON file to add to')
  return parser.parse_args()


def make_encoder(args, ds):
  if args.checkpoint:
    return encoders.load_encoder(args.checkpoint)
  config = pretrain.get_config(args.encoder)
  size, channels = ds.info.size_px, ds.info.channels
  method = encoders.make_method(config, size, channels)
  info = encoders.EncoderInfo(size, channels, path='', step=0)
  return encoders.random_encoder(encoders.Encoder(method, None, config, info))


def ours(encoder, ds, parts, layers, config, level, feature_fn):
  """Seconds of the features and of the heads of one timestep."""
  with tempfile.TemporaryDirectory() as folder:
    started = read()
    cache = feature_cache.fill(
      folder,
      encoder,
      ds,
      parts.rows,
      layers,
      level,
      max(config.grids),
      config.draws,
      config.seed,
      config.batch_size,
      0,
      feature_fn,
    )
    extracted = read()
    ablate.search(cache, parts, config, level)
    return extracted - started, read() - extracted


def whole_batches(rows, count, size):
  """`count` rows rounded down to whole batches, at least one."""
  count = max(size, min(count, len(rows)) // size * size)
  if len(rows) < count:
    raise SystemExit(f'{len(rows)} rows are not one batch of {size}.')
  return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


class Ancestors(NamedTuple):
  """Seconds of the ancestor: an epoch, the passes in it, one scoring pass."""

  passes: float
  epoch: float
  score: float

  def whole(self, epochs: int, runs: int = 1) -> float:
    """Of all epochs; the passes are done again for each further run."""
    return epochs * (self.epoch + (runs - 1) * self.passes) + self.score


def ancestors(ancestor, train, val):
  """Times it, once everything is compiled."""
  size = ancestor.config.heads.batch_size
  ancestor.start(ancestor.features(train[:size]))
  for _ in range(2):  # the second step's inputs lie otherwise: compiles anew
    ancestor.epoch(train[:size])
  ancestor.score(val[:size])
  compiled = probe_step._cache_size()
  started = read()
  passes = ancestor.epoch(train)
  epoch = read() - started
  assert probe_step._cache_size() == compiled, 'compiled while timed'
  started = read()
  ancestor.score(val)
  return Ancestors(passes, epoch, read() - started)


def configured(args):
  """configs/ablate.py as the arguments change it."""
  config = ablate_config.get_config(args.preset)
  if args.grids:
    config.grids = tuple(int(g) for g in args.grids.split(','))
  if args.kinds:
    config.heads.kinds = tuple(args.kinds.split(','))
  config.batch_size = config.heads.batch_size
  return config


def drawn(ds, count, size):
  """Labelled rows to train on and to score, in whole batches of `size`."""
  labels = data.labels(ds)
  split = [data.rows(ds, 'grouped', part) for part in ('train', 'val')]
  train, val = (rows[labels[rows] >= 0] for rows in split)
  scored = max(size, count // 6)
  return whole_batches(train, count, size), whole_batches(val, scored, size)


def record_of(config, parts, layers, probes, own, theirs):
  """All that is written down; own: seconds of features and of heads."""
  features_s, heads_s = own
  ours_s = features_s + heads_s
  epochs, steps = config.heads.epochs, len(config.timesteps)
  runs = len(config.heads.learning_rates) * len(config.search_seeds)
  theirs_s, published_s = theirs.whole(epochs), theirs.whole(epochs, runs)
  return {
    'train_rows': len(parts.train),
    'val_rows': len(parts.val),
    'probes_per_timestep': probes,
    'layers': len(layers),
    'grids': config.grids,
    'kinds': config.heads.kinds,
    'epochs': epochs,
    'measured_ours_features_s': features_s,
    'measured_ours_heads_all_epochs_s': heads_s,
    'measured_ancestor_one_epoch_s': theirs.epoch,
    'measured_ancestor_one_epoch_passes_s': theirs.passes,
    'measured_ancestor_scoring_s': theirs.score,
    'multiplied_ancestor_timestep_s': theirs_s,
    'multiplied_ancestor_as_published_s': published_s,
    'multiplied_by': {'epochs': epochs, 'runs_as_published': runs},
    'ratio': theirs_s / ours_s,
    'ratio_as_published': published_s / ours_s,
    'timesteps': steps,
    'multiplied_ours_all_timesteps_s': steps * ours_s,
    'multiplied_ancestor_all_timesteps_s': steps * theirs_s,
    'unit': 'probes',
    'sides': common.compare(
      {
        'ours': [ours_s],
        'a pass per epoch': [theirs_s],
        'a pass per epoch, rate and seed': [published_s],
      },
      probes,
    ),
  }


def show(record, theirs):
  """Prints the record as a table."""
  r, epochs = record, record['epochs']
  ours_s = record['sides']['ours']['median_s']
  lines = [
    (
      f'one timestep, {r["train_rows"]} + {r["val_rows"]} rows',
      'ours',
      'ancestor',
    ),
    ('forward passes', r['measured_ours_features_s'], epochs * theirs.passes),
    (
      'heads',
      r['measured_ours_heads_all_epochs_s'],
      epochs * (theirs.epoch - theirs.passes),
    ),
    ('scoring', 0.0, theirs.score),
    ('together', ours_s, r['multiplied_ancestor_timestep_s']),
    (
      '  one run per rate and seed',
      ours_s,
      r['multiplied_ancestor_as_published_s'],
    ),
  ]
  for name, a, b in lines:
    a, b = (x if isinstance(x, str) else f'{x:.1f} s' for x in (a, b))
    print(f'{name:36}{a:>12}{b:>12}')
  print(
    f'{r["probes_per_timestep"]} probes a timestep; the ancestor is one '
    f'measured epoch x {epochs}. {r["ratio"]:.1f} times faster; '
    f'{r["ratio_as_published"]:.1f} times with one run per rate and seed.'
  )


def main():
  args = arguments()
  flags.FLAGS.mark_as_parsed()
  config = configured(args)
  ds = data.open_dataset(prepare.resolve(args.data))
  train, val = drawn(ds, args.rows, config.heads.batch_size)
  rows = np.concatenate([train, val])
  parts = Parts(
    rows,
    np.arange(len(train)),
    np.arange(len(train), len(rows)),
    np.arange(0),
    data.labels(ds)[rows].astype(int),
    len(ds.classes),
  )
  encoder = make_encoder(args, ds)
  layers, t = encoder.method.layers, config.timesteps[0]
  feature_fn = features.make_feature_fn(
    encoder.method, layers, max(config.grids)
  )
  ancestor = Ancestor(encoder, ds, layers, config, t, feature_fn)
  theirs = ancestors(ancestor, train, val)
  # The second run has everything compiled; the first is not counted.
  for _ in range(2):
    own = ours(encoder, ds, parts, layers, config, (t,), feature_fn)
  record = record_of(config, parts, layers, len(ancestor.probes), own, theirs)
  show(record, theirs)
  common.emit(f'ablation {args.preset or "default"}', record, args.out)


if __name__ == '__main__':
  main()

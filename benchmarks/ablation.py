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
import functools
import tempfile

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import common
from configs import ablate as ablate_config
from configs import pretrain
from micdiffrep_jax import features, sharding
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.heads import feature_cache
from micdiffrep_jax.models.heads import HEADS
from micdiffrep_jax.probing import ablate_grid
from micdiffrep_jax.probing.probe_rows import Parts

read = common.clock()  # CPU time on one core


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
    return features.load_encoder(args.checkpoint)
  config = pretrain.get_config(args.encoder)
  size, channels = ds.info['size_px'], ds.info['channels']
  method = features.make_method(config, size, channels)
  info = {'size_px': size, 'channels': channels, 'path': '', 'step': 0}
  return features.random_encoder(features.Encoder(method, None, config, info))


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
    k = len(ds.classes)
    ablate_grid.search(cache, parts, k, config, level)
    return extracted - started, read() - extracted


@functools.partial(jax.jit, static_argnums=0)
def probe_step(kind, params, state, rate, x, y):
  def loss(p):
    logits = HEADS[kind].apply(p, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  grads = jax.grad(loss)(params)
  updates, state = optax.scale_by_adam().update(grads, state)
  params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
  return params, state


@functools.partial(jax.jit, static_argnums=0)
def probe_hits(kind, params, x, y):
  return jnp.sum(HEADS[kind].apply(params, x).argmax(-1) == y)


@functools.partial(jax.jit, static_argnums=1)
def pooled(maps, grid):
  """Flat features of every layer and of all of them, averaged to a grid."""
  flat = {
    (name,): features.pool_map(x, grid).reshape(len(x), -1)
    for name, x in maps.items()
  }
  return {**flat, tuple(maps): jnp.concatenate(list(flat.values()), 1)}


class Ancestor:
  """Probes that learn one after another, from features made anew."""

  def __init__(self, encoder, ds, layers, config, t, feature_fn):
    self.encoder, self.ds, self.config = encoder, ds, config
    self.feature_fn = feature_fn
    self.mesh = sharding.make_mesh()
    # Placed once: each call of `replicate` compiles anew.
    self.root = sharding.replicate(jax.random.key(0), self.mesh)
    self.level = sharding.replicate(np.int32(t), self.mesh)
    self.labels = data.labels(ds)
    self.probes = []
    self.layers = layers
    self.draw = 0

  def features(self, rows):
    """A forward pass with noise that was never drawn before."""
    self.draw += 1
    images = self.ds.images[rows]
    batch = features.place_whole(
      (images, features.image_seeds(images)), self.mesh
    )
    key = jax.random.fold_in(self.root, self.draw)
    maps = self.feature_fn(self.encoder.variables, *batch, key, self.level)
    return {
      (layers, grid): x
      for grid in self.config.grids
      for layers, x in pooled(maps, grid).items()
    }

  def start(self, found):
    heads, k = self.config.heads, len(self.ds.classes)
    for place, x in found.items():
      for kind in heads.kinds:
        for rate in heads.learning_rates:
          for seed in self.config.search_seeds:
            d = x.shape[-1]
            params = HEADS[kind].init(
              jax.random.key(seed), d, d, heads.hidden, k, heads.bias
            )
            state = optax.scale_by_adam().init(params)
            self.probes.append([place, kind, rate, params, state])

  def epoch(self, rows):
    size = self.config.heads.batch_size
    order = np.random.default_rng(self.draw).permutation(rows)
    passes = 0.0
    for start in range(0, len(order) - size + 1, size):
      at = order[start : start + size]
      before = read()
      found = jax.block_until_ready(self.features(at))
      passes += read() - before
      y = jnp.asarray(self.labels[at])
      for probe in self.probes:
        place, kind, rate, params, state = probe
        probe[3:] = probe_step(kind, params, state, rate, found[place], y)
    jax.block_until_ready([probe[3] for probe in self.probes])
    return passes

  def score(self, rows):
    size = self.config.heads.batch_size
    hits = np.zeros(len(self.probes))
    for start in range(0, len(rows) - size + 1, size):
      at = rows[start : start + size]
      found, y = self.features(at), jnp.asarray(self.labels[at])
      hits += [probe_hits(p[1], p[3], found[p[0]], y) for p in self.probes]
    return hits


def whole_batches(rows, count, size):
  """`count` rows rounded down to whole batches, at least one."""
  count = max(size, min(count, len(rows)) // size * size)
  if len(rows) < count:
    raise SystemExit(f'{len(rows)} rows are not one batch of {size}.')
  return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def main():
  args = arguments()
  flags.FLAGS.mark_as_parsed()
  config = ablate_config.get_config(args.preset)
  if args.grids:
    config.grids = tuple(int(g) for g in args.grids.split(','))
  if args.kinds:
    config.heads.kinds = tuple(args.kinds.split(','))
  ds = data.open_dataset(args.data)
  labels = data.labels(ds)
  size = config.heads.batch_size
  config.batch_size = size
  split = [data.rows(ds, 'grouped', part) for part in ('train', 'val')]
  split = [rows[labels[rows] >= 0] for rows in split]
  train = whole_batches(split[0], args.rows, size)
  val = whole_batches(split[1], max(size, args.rows // 6), size)
  rows = np.concatenate([train, val])
  n = len(train)
  none = np.arange(0)
  parts = Parts(
    rows, np.arange(n), np.arange(n, len(rows)), none, labels[rows].astype(int)
  )
  encoder = make_encoder(args, ds)
  layers = encoder.method.layers
  t = config.timesteps[0]
  feature_fn = features.make_feature_fn(
    encoder.method, layers, max(config.grids)
  )

  ancestor = Ancestor(encoder, ds, layers, config, t, feature_fn)
  ancestor.start(ancestor.features(train[:size]))
  for _ in range(2):  # the second step's inputs lie otherwise: compiles anew
    ancestor.epoch(train[:size])
  ancestor.score(val[:size])
  compiled = probe_step._cache_size()
  started = read()
  passes_s = ancestor.epoch(train)
  epoch_s = read() - started
  assert probe_step._cache_size() == compiled, 'compiled while timed'
  started = read()
  ancestor.score(val)
  score_s = read() - started

  # The second run has everything compiled; the first is not counted.
  for _ in range(2):
    features_s, heads_s = ours(
      encoder, ds, parts, layers, config, (t,), feature_fn
    )

  epochs, steps = config.heads.epochs, len(config.timesteps)
  theirs_s = epochs * epoch_s + score_s
  runs = len(config.heads.learning_rates) * len(config.search_seeds)
  published_s = theirs_s + (runs - 1) * (epochs * passes_s)
  ours_s = features_s + heads_s
  record = {
    'train_rows': n,
    'val_rows': len(val),
    'probes_per_timestep': len(ancestor.probes),
    'layers': len(layers),
    'grids': config.grids,
    'kinds': config.heads.kinds,
    'epochs': epochs,
    'measured_ours_features_s': features_s,
    'measured_ours_heads_all_epochs_s': heads_s,
    'measured_ancestor_one_epoch_s': epoch_s,
    'measured_ancestor_one_epoch_passes_s': passes_s,
    'measured_ancestor_scoring_s': score_s,
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
      len(ancestor.probes),
    ),
  }
  lines = [
    (f'one timestep, {n} + {len(val)} rows', 'ours', 'ancestor'),
    ('forward passes', features_s, epochs * passes_s),
    ('heads', heads_s, epochs * (epoch_s - passes_s)),
    ('scoring', 0.0, score_s),
    ('together', ours_s, theirs_s),
    ('  one run per rate and seed', ours_s, published_s),
  ]
  for name, a, b in lines:
    a, b = (x if isinstance(x, str) else f'{x:.1f} s' for x in (a, b))
    print(f'{name:36}{a:>12}{b:>12}')
  print(
    f'{len(ancestor.probes)} probes a timestep; the ancestor is one measured '
    f'epoch x {epochs}. {theirs_s / ours_s:.1f} times faster; '
    f'{published_s / ours_s:.1f} times with one run per rate and seed.'
  )
  common.emit(f'ablation {args.preset or "default"}', record, args.out)


if __name__ == '__main__':
  main()

"""The ancestor's way to probe: features made anew in each epoch, in a loop.

After DDAE's linear.py; a benchmark's peer, see ablation.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import common
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import features
from micdiffrep_jax.heads.nets import HEADS
from micdiffrep_jax.run import devices

read = common.clock()  # CPU time on one core


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
    self.mesh = devices.make_mesh()
    # Placed once: each call of `replicate` compiles anew.
    self.root = devices.replicate(jax.random.key(0), self.mesh)
    self.level = devices.replicate(np.int32(t), self.mesh)
    self.labels = data.labels(ds)
    self.probes = []
    self.layers = layers
    self.draw = 0

  def features(self, rows):
    """A forward pass with noise that was never drawn before."""
    self.draw += 1
    images = self.ds.images[rows]
    batch = devices.place_whole(
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

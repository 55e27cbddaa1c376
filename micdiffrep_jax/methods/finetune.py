"""Trains an encoder on with labels: all of it, its last stages, or LoRA.

A head reads the encoder's layers as a frozen encoder's are read: noised to one
step, pooled, standardised by statistics that stay. Cross-entropy goes through
both. A stage is a layer with all weights that no earlier layer depends on, so
any reader has stages, from its stem to the head. Ours: running averages of
batch norms stay as they are, and nothing is dropped out: what is trained is
exactly what is used.
Source of low-rank additions: Hu et al. 2021 (LoRA), here of every matrix; of
rates that fall from head to stem: Bao et al. 2021 (BEiT).
Letters: b batch, h w pixels, c channels, d features, k classes, r rank.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.heads.matrix import Maps, layout
from micdiffrep_jax.heads.nets import HEADS, Net
from micdiffrep_jax.methods import views
from micdiffrep_jax.methods.base import (
  Batch,
  Loss,
  Method,
  Reader,
  State,
  Taps,
  Tree,
  bearing,
  no_sums,
  to_float,
  unchanged,
)
from micdiffrep_jax.methods.pooling import pool_map
from micdiffrep_jax.run import archive
from micdiffrep_jax.run.checks import in_range, lookup, one_of, whole_number

TUNE = ('full', 'last', 'lora')
HEAD = 'head'  # the stage after all others
Leaves = dict[str, jax.Array]


class Tuning(NamedTuple):
  """An encoder, the head on it, and which of its weights move.

  Attributes:
    base: how the encoder is read.
    tree: structure of its variables.
    shapes: of its leaves, by name, in flattening order.
    stages: names, from the stem to the head.
    stage: of each weight that the head depends on its number in `stages`.
    moved: names of the weights that are trained, or that get additions.
    lora: what additions are multiplied by; None where there are none.
    rank: of the additions.
    layers, timestep, grid, deviation: what the head reads.
    net, maps, width, hidden, bias, classes: the head, on `width` features.
    decay: of the learning rate from one stage to the one before.
  """

  base: Reader
  tree: Any
  shapes: Mapping[str, jax.ShapeDtypeStruct]
  stages: tuple[str, ...]
  stage: Mapping[str, int]
  moved: tuple[str, ...]
  lora: float | None
  rank: int
  layers: tuple[str, ...]
  timestep: int
  grid: int
  deviation: bool
  net: Net
  maps: Maps
  width: int
  hidden: int
  bias: bool
  classes: int
  decay: float

  def variables(self, leaves: Mapping[str, Any]) -> Tree:
    """The encoder's variables from its leaves by name."""
    return jax.tree.unflatten(self.tree, [leaves[n] for n in self.shapes])

  def leaves(self, variables: Tree) -> Leaves:
    """The inverse of `variables`."""
    return dict(zip(self.shapes, jax.tree.leaves(variables), strict=True))


def read_layers(reader: Reader, layers: tuple[str, ...]) -> tuple[str, ...]:
  """Layers that a head reads; () is the one that stands for an image."""
  known = {name: name for name in reader.layers}
  found = tuple(lookup(known, n, 'layer', '--config.layers') for n in layers)
  return found or (reader.output or reader.layers[-1],)


def _stages(
  base: Reader, shapes: Tree, read: tuple[str, ...], size_px: int, channels: int
) -> tuple[tuple[str, ...], dict[str, int]]:
  """Layers that those read depend on, and of each weight the first of them."""
  names = archive.leaf_names(shapes)
  numbers = jax.tree.unflatten(
    jax.tree.structure(shapes), list(range(len(names)))
  )
  weights = set(jax.tree.leaves(base.encoder(numbers)))
  uses = bearing(base, shapes, base.layers, size_px, channels)
  rows = [base.layers.index(name) for name in read]
  used = np.any(uses[rows], axis=0).tolist()
  stage_of = {
    i: base.layers[int(np.argmax(uses[:, i]))]
    for i in range(len(names))
    if used[i] and i in weights
  }
  # Layers in which no weight is new are no stages.
  stages = tuple(n for n in base.layers if n in stage_of.values())
  return stages, {names[i]: stages.index(n) for i, n in stage_of.items()}


def _moved(
  config: ConfigDict,
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  stages: tuple[str, ...],
  stage: Mapping[str, int],
) -> tuple[str, ...]:
  """The weights that config.tune and config.from_stage leave to be trained."""
  tune = one_of(TUNE, config.tune, 'way to fine-tune', '--config.tune')
  first = config.from_stage
  if tune == 'full':
    if first:
      raise ValueError(
        f'from_stage={first!r} and tune=full, which trains all stages. Set '
        '--config.tune=last or --config.tune=lora, or leave out '
        '--config.from_stage.'
      )
    return tuple(stage)
  numbers = {name: i for i, name in enumerate((*stages, HEAD))}
  default = stages[-1] if tune == 'last' else stages[0]
  start = lookup(numbers, first or default, 'stage', '--config.from_stage')
  inside = [name for name, i in stage.items() if i >= start]
  if tune == 'last':
    return tuple(inside)
  matrices = tuple(n for n in inside if _is_matrix(n, shapes[n].shape))
  whole_number(config.lora.rank, 0, 4096, '--config.lora.rank')
  if config.lora.rank and not matrices:
    raise ValueError(
      f'lora.rank={config.lora.rank}, but the stages from {first!r} on have no '
      f'matrix. Set --config.from_stage to one of {list(stages)} before it, or '
      '--config.lora.rank=0.'
    )
  return matrices if config.lora.rank else ()


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
  return name.split('/')[-1] == 'kernel' and len(shape) > 1


def tuning(
  methods: Mapping[str, Callable[..., Reader]],
  config: ConfigDict,
  size_px: int,
  channels: int,
) -> Tuning:
  """What a config fine-tunes; ValueError before a compile where it cannot.

  methods: by name, as METHODS. config.base is the config of the encoder.
  """
  base = lookup(methods, config.base.method, 'method')(
    config.base, size_px, channels
  )
  read = read_layers(base, tuple(config.layers))
  tree = jax.eval_shape(
    lambda key: base.frozen(*base.init(key)), jax.random.key(0)
  )
  shapes = dict(zip(archive.leaf_names(tree), jax.tree.leaves(tree)))
  stages, stage = _stages(base, tree, read, size_px, channels)
  in_range(config.layer_decay, 0.01, 1, '--config.layer_decay')
  images = jax.ShapeDtypeStruct((1, size_px, size_px, channels), jnp.uint8)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))

  def pooled(variables: Tree, images: jax.Array, keys: jax.Array) -> list:
    taps = base.features(variables, images, keys, jnp.int32(0))
    return [pool_map(taps[n], config.grid, config.deviation) for n in read]

  maps = layout(
    (x.shape for x in jax.eval_shape(pooled, tree, images, keys)), config.grid
  )
  lora = config.lora
  return Tuning(
    base,
    jax.tree.structure(tree),
    shapes,
    stages,
    stage,
    _moved(config, shapes, stages, stage),
    lora.alpha / max(lora.rank, 1) if config.tune == 'lora' else None,
    lora.rank,
    read,
    config.timestep,
    config.grid,
    config.deviation,
    lookup(HEADS, config.net.kind, 'head', '--config.head'),
    maps,
    sum(one.width for one in maps),
    config.net.hidden,
    config.net.bias,
    len(config.classes),
    config.layer_decay,
  )


def initial(
  t: Tuning,
  variables: Tree,
  head: Tree,
  shift: jax.Array,
  scale: jax.Array,
  key: jax.Array,
) -> State:
  """The state from which an encoder and a head on it are trained on.

  head: params of t.net; shift and scale (d,) of its features.
  """
  leaves = t.leaves(variables)
  if t.lora is None:
    moved: Any = {name: leaves.pop(name) for name in t.moved}
  else:
    moved = {}
    for name, k in zip(t.moved, jax.random.split(key, max(len(t.moved), 1))):
      *inward, out = t.shapes[name].shape
      n = int(np.prod(inward))
      moved[name] = {
        'a': jax.random.normal(k, (n, t.rank)) / np.sqrt(n),
        'b': jnp.zeros((t.rank, out)),  # so it starts as the encoder it was
      }
  extra = {'net': leaves, 'shift': shift, 'scale': scale}
  return {'net': moved, 'head': head}, extra


def _init(t: Tuning, key: jax.Array) -> State:
  """Random weights: what fits, before those of a checkpoint are put in."""
  k_base, k_head, k_lora = jax.random.split(key, 3)
  head = t.net.init(
    k_head, t.width, t.width, t.hidden, t.classes, t.bias, t.maps
  )
  variables = t.base.frozen(*t.base.init(k_base))
  zero, one = jnp.zeros(t.width), jnp.ones(t.width)
  return initial(t, variables, head, zero, one, k_lora)


def frozen(t: Tuning, params: Tree, extra: Tree) -> Tree:
  """Encoder and head as they are used: additions are added up."""
  leaves = dict(extra['net'])
  for name, moved in params['net'].items():
    if t.lora is None:
      leaves[name] = moved
    else:
      added = jnp.matmul(moved['a'], moved['b'], precision='highest')
      whole = leaves[name]
      leaves[name] = whole + t.lora * added.reshape(whole.shape)
  return {
    'net': t.variables(leaves),
    'head': params['head'],
    'shift': extra['shift'],
    'scale': extra['scale'],
  }


def logits(
  t: Tuning, variables: Tree, images: jax.Array, keys: jax.Array, level: Any
) -> jax.Array:
  """What the head says (b, k) of images (b, h, w, c) at a step.

  uint8, or float32 of the same range, [0, 255].
  """
  taps = t.base.features(variables['net'], images, keys, level)
  cells = [pool_map(taps[n], t.grid, t.deviation) for n in t.layers]
  x = jnp.concatenate([c.reshape(len(images), -1) for c in cells], axis=1)
  x = (x - variables['shift'][None]) * variables['scale'][None]
  return t.net.apply(variables['head'], x, t.maps)


def weighted_cross_entropy(
  logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> jax.Array:
  """Mean over rows by their weights (b,); logits (b, k), labels (b,)."""
  log_p = jax.nn.log_softmax(logits)
  each = -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
  return jnp.sum(weights * each) / jnp.maximum(jnp.sum(weights), 1e-12)


def _loss(
  t: Tuning,
  policy: str,
  params: Tree,
  extra: Tree,
  batch: Batch,
  key: jax.Array,
) -> Loss:
  k_view, k_noise = jax.random.split(key)
  images = batch['image']
  if policy:
    x = views.draw_view(k_view, to_float(images), views.get_policy(policy)[0])
    images = (x + 1) * 127.5
  keys = jax.random.split(k_noise, len(images))
  said = logits(
    t, frozen(t, params, extra), images, keys, jnp.int32(t.timestep)
  )
  value = weighted_cross_entropy(said, batch['label'], batch['weight'])
  return value, (extra, {'loss': value})


def rates(t: Tuning, params: Tree) -> Tree:
  """decay^(stages from there to the head) of each leaf; the head has 1."""

  def of(name: str, moved: Tree) -> Tree:
    rate = t.decay ** (len(t.stages) - t.stage[name])
    return jax.tree.map(lambda _: rate, moved)

  return {
    'net': {name: of(name, moved) for name, moved in params['net'].items()},
    'head': jax.tree.map(lambda _: 1.0, params['head']),
  }


def _features(
  t: Tuning, variables: Tree, images: jax.Array, keys: jax.Array, level: Any
) -> Taps:
  return t.base.features(variables['net'], images, keys, level)


def method_of(t: Tuning, config: ConfigDict) -> Method:
  """The method that trains it. Whoever runs it sets `side`: which rows count.

  Those are 'label' and 'weight' of each image.
  """
  if config.views:
    views.get_policy(config.views)
  base = t.base
  return Method(
    init=functools.partial(_init, t),
    loss=functools.partial(_loss, t, config.views),
    after=unchanged,
    frozen=functools.partial(frozen, t),
    features=functools.partial(_features, t),
    validate=no_sums,
    layers=base.layers,
    decoder=base.decoder,
    timesteps=base.timesteps,
    output=base.output,
    row={
      'label': jax.ShapeDtypeStruct((), jnp.int32),
      'weight': jax.ShapeDtypeStruct((), jnp.float32),
    },
    encoder=lambda variables: base.encoder(variables['net']),
    facts={**base.facts, 'supervised': True, 'finetuned': config.tune},
    rates=functools.partial(rates, t) if t.decay < 1 else None,
  )


def make(
  methods: Mapping[str, Callable[..., Reader]],
  config: ConfigDict,
  size_px: int,
  channels: int,
) -> Method:
  """The method of a fine-tuning config, for images of one size."""
  return method_of(tuning(methods, config, size_px, channels), config)

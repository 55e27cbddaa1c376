"""Supervised from scratch: the control that reads the labels.

A linear layer on the average of a ResNet or on the class token of the vision
transformer that MAE trains; cross-entropy. Images without a label weigh
nothing; labels of validation and test images are never handed over.
Letters: b batch, h w pixels, c channels, d features, k classes.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.heads.nets import HEADS
from micdiffrep_jax.methods import two_view, views
from micdiffrep_jax.methods.base import (
  Batch,
  Loss,
  Method,
  State,
  Taps,
  Tree,
  apply,
  no_sums,
  noiseless,
  to_float,
  unchanged,
)
from micdiffrep_jax.models import resnet, vit


class Tower(NamedTuple):
  """An encoder; stats are the running averages of its batch norms, or {}.

  init: key, x (b, h, w, c) -> params, stats. vectors: params, stats, x -> what
  the head reads (b, d), stats. taps: params, stats, x -> {layer: (b, h', w',
  d)}; layers names them.
  """

  init: Callable[..., tuple[Tree, Tree]]
  vectors: Callable[..., tuple[jax.Array, Tree]]
  taps: Callable[..., Taps]
  layers: tuple[str, ...]


def _resnet(config: ConfigDict, size_px: int) -> Tower:
  model = two_view.make_encoder(config, size_px)

  def init(key: jax.Array, x: jax.Array) -> State:
    variables = model.init(key, x)
    return variables['params'], variables['batch_stats']

  return Tower(
    init,
    functools.partial(two_view.train_pass, model),
    lambda params, stats, x: two_view.eval_pass(model, params, stats, x)[1],
    resnet.tap_names(config.model.blocks),
  )


def _vit(config: ConfigDict, size_px: int) -> Tower:
  fields = config.model.to_dict()
  vit.check_encoder(size_px, **fields)
  model = vit.Encoder(**fields)

  return Tower(
    lambda key, x: (model.init(key, x)['params'], {}),
    lambda params, stats, x: (apply(model, params, x)[0][:, 0], stats),
    lambda params, stats, x: apply(model, params, x)[1],
    vit.tap_names(config.model.depth),
  )


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Mean over rows with a label; logits (b, k), labels (b,), -1 for none."""
  import optax  # for training alone; a bundle needs none

  known = (labels >= 0).astype(jnp.float32)
  each = optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.maximum(labels, 0)
  )
  return jnp.sum(known * each) / jnp.maximum(jnp.sum(known), 1.0)


def _init(
  tower: Tower, shape: tuple[int, int, int], classes: int, key: jax.Array
) -> State:
  k_model, k_head = jax.random.split(key)
  x = jnp.zeros((1, *shape))
  encoder, stats = tower.init(k_model, x)
  vectors, _ = jax.eval_shape(tower.vectors, encoder, stats, x)
  d = vectors.shape[-1]
  head = HEADS['linear'].init(k_head, d, d, 0, classes, True)
  return {'encoder': encoder, 'head': head}, {'stats': stats}


def _loss(
  tower: Tower,
  augment: ConfigDict,
  params: Tree,
  extra: Tree,
  batch: Batch,
  key: jax.Array,
) -> Loss:
  x = views.augment(key, to_float(batch['image']), augment)
  vectors, stats = tower.vectors(params['encoder'], extra['stats'], x)
  logits = HEADS['linear'].apply(params['head'], vectors)
  value = cross_entropy(logits, batch['label'])
  return value, ({**extra, 'stats': stats}, {'loss': value})


def _frozen(params: Tree, extra: Tree) -> Tree:
  return {'params': params['encoder'], 'stats': extra['stats']}


def _labels(
  classes: int, rows_of: ConfigDict, dataset: data.Dataset
) -> dict[str, np.ndarray]:
  """The labels of the training images, (N,) int32; -1 for all others."""
  if len(dataset.classes) != classes:
    raise ValueError(
      f'{dataset.path} has {len(dataset.classes)} classes, the head '
      f'{classes}. Set --config.classes={len(dataset.classes)}.'
    )
  labels = np.full(len(dataset.images), -1, np.int32)
  rows = data.pretraining_rows(dataset, rows_of.split, rows_of.spare)
  labels[rows] = data.labels(dataset)[rows]
  return {'label': labels}


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a pretraining config, for images of one size."""
  views.check_augment(config.augment)
  if config.classes < 2:
    raise ValueError(
      f'classes={config.classes}: give at least 2. Set --config.classes.'
    )
  is_vit = 'patch' in config.model
  tower = (_vit if is_vit else _resnet)(config, size_px)
  shape = (size_px, size_px, channels)
  return Method(
    init=functools.partial(_init, tower, shape, config.classes),
    loss=functools.partial(_loss, tower, config.augment),
    after=unchanged,
    frozen=_frozen,
    features=noiseless(
      lambda v, x: tower.taps(v['params'], v['stats'], to_float(x))
    ),
    validate=no_sums,
    layers=tower.layers,
    side=functools.partial(_labels, config.classes, config.data),
    row={'label': jax.ShapeDtypeStruct((), jnp.int32)},
    encoder=lambda variables: variables['params'],
    facts={'supervised': True},
  )

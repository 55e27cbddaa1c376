"""Supervised from scratch: the control that reads the labels.

A linear layer on the average of a ResNet or on the class token of the vision
transformer that MAE trains; cross-entropy. Images without a label weigh
nothing; labels of validation and test images are never handed over.
Letters: b batch, h w pixels, c channels, d features, k classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.heads.nets import HEADS
from micdiffrep_jax.methods import augment, two_view
from micdiffrep_jax.methods.base import Method, to_float, unchanged
from micdiffrep_jax.models import vit

Tree = Any


class Tower(NamedTuple):
  """An encoder; stats are the running averages of its batch norms, or {}.

  init: key, x (b, h, w, c) -> params, stats. vectors: params, stats, x -> what
  the head reads (b, d), stats. taps: params, stats, x -> {layer: (b, h', w',
  d)}; layers names them.
  """

  init: Callable[..., tuple[Tree, Tree]]
  vectors: Callable[..., tuple[jax.Array, Tree]]
  taps: Callable[..., dict[str, jax.Array]]
  layers: tuple[str, ...]


def _resnet(config: ConfigDict, size_px: int) -> Tower:
  model = two_view.make_encoder(config, size_px)

  def init(key, x):
    variables = model.init(key, x)
    return variables['params'], variables['batch_stats']

  return Tower(
    init,
    lambda params, stats, x: two_view.train_pass(model, params, stats, x),
    lambda params, stats, x: two_view.eval_pass(model, params, stats, x)[1],
    two_view.layer_names(config),
  )


def _vit(config: ConfigDict, size_px: int) -> Tower:
  fields = config.model.to_dict()
  vit.check_encoder(size_px, **fields)
  model = vit.Encoder(**fields)

  def apply(params, x):
    return model.apply({'params': params}, x)

  return Tower(
    lambda key, x: (model.init(key, x)['params'], {}),
    lambda params, stats, x: (apply(params, x)[0][:, 0], stats),
    lambda params, stats, x: apply(params, x)[1],
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


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a pretraining config, for images of one size."""
  augment.check(config.augment)
  if config.classes < 2:
    raise ValueError(
      f'classes={config.classes}: give at least 2. Set --config.classes.'
    )
  is_vit = 'patch' in config.model
  tower = (_vit if is_vit else _resnet)(config, size_px)
  head = HEADS['linear']

  def init(key):
    k_model, k_head = jax.random.split(key)
    x = jnp.zeros((1, size_px, size_px, channels))
    encoder, stats = tower.init(k_model, x)
    shape, _ = jax.eval_shape(tower.vectors, encoder, stats, x)
    d = shape.shape[-1]
    params = {
      'encoder': encoder,
      'head': head.init(k_head, d, d, 0, config.classes, True),
    }
    return params, {'stats': stats}

  def loss(params, extra, batch, key):
    x = augment.augment(key, to_float(batch['image']), config.augment)
    vectors, stats = tower.vectors(params['encoder'], extra['stats'], x)
    value = cross_entropy(head.apply(params['head'], vectors), batch['label'])
    return value, ({**extra, 'stats': stats}, {'loss': value})

  def features(variables, images, keys, t):
    del keys, t  # nothing is drawn
    return tower.taps(variables['params'], variables['stats'], to_float(images))

  def side(dataset: data.Dataset) -> dict[str, np.ndarray]:
    if len(dataset.classes) != config.classes:
      raise ValueError(
        f'{dataset.path} has {len(dataset.classes)} classes, the head '
        f'{config.classes}. Set --config.classes={len(dataset.classes)}.'
      )
    labels = np.full(len(dataset.images), -1, np.int32)
    rows = data.pretraining_rows(dataset, config.data.split, config.data.spare)
    labels[rows] = data.labels(dataset)[rows]
    return {'label': labels}

  return Method(
    init=init,
    loss=loss,
    after=unchanged,
    frozen=lambda params, extra: {
      'params': params['encoder'],
      'stats': extra['stats'],
    },
    features=features,
    # Labels of validation images stay unread: probes judge this method.
    validate=lambda variables, images, keys, weights: {},
    sample=None,
    layers=tower.layers,
    timesteps=1,
    side=side,
    row={'label': jax.ShapeDtypeStruct((), jnp.int32)},
    encoder=lambda variables: variables['params'],
    facts={'supervised': True},
  )

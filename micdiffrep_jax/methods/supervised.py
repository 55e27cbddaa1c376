"""Supervised from scratch: the control that reads the labels.

A ResNet and a linear layer on its average, cross-entropy. Images without a
label weigh nothing; labels of validation and test images are never handed over.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from micdiffrep_jax import augment
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.methods import two_view
from micdiffrep_jax.methods.method import Method, to_float, unchanged
from micdiffrep_jax.models.heads import HEADS


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Mean over rows with a label; logits (b, k), labels (b,), -1 for none."""
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
  model = two_view.make_encoder(config, size_px)
  head = HEADS['linear']

  def init(key):
    k_model, k_head = jax.random.split(key)
    x = jnp.zeros((1, size_px, size_px, channels))
    (pooled, _), variables = model.init_with_output(k_model, x)
    d = pooled.shape[-1]
    params = {
      'encoder': variables['params'],
      'head': head.init(k_head, d, d, 0, config.classes, True),
    }
    return params, {'stats': variables['batch_stats']}

  def loss(params, extra, batch, key):
    x = augment.augment(key, to_float(batch['image']), config.augment)
    pooled, stats = two_view.train_pass(
      model, params['encoder'], extra['stats'], x
    )
    value = cross_entropy(head.apply(params['head'], pooled), batch['label'])
    return value, ({**extra, 'stats': stats}, {'loss': value})

  def features(variables, images, keys, t):
    del keys, t  # nothing is drawn
    return two_view.eval_pass(
      model, variables['params'], variables['stats'], to_float(images)
    )[1]

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
    layers=two_view.layer_names(config),
    timesteps=1,
    side=side,
    row={'label': jax.ShapeDtypeStruct((), jnp.int32)},
    encoder=lambda variables: variables['params'],
    facts={'supervised': True},
  )

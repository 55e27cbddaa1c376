"""Contrastive image-text pretraining: an image finds its caption in the batch.

Sources: Radford et al. 2021 (softmax), Zhai et al. 2023 (sigmoid). Ours: equal
captions share the target, for radiology reports repeat and templates more so;
images without a caption take no part.
Letters: b batch, l tokens, d features.
"""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.methods import captions, views
from micdiffrep_jax.methods.base import (
  Batch,
  Loss,
  Method,
  State,
  Tree,
  apply,
  no_sums,
  noiseless,
  to_float,
  unchanged,
)
from micdiffrep_jax.models import vit
from micdiffrep_jax.run.checks import lookup, one_of

_MAX_SCALE = math.log(100.0)
_MASKED = -1e9


def equal_captions(ids: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Which captions of a batch are the same, and which are there at all.

  ids (b, l) int32 -> same (b, b), present (b,), float32 in {0, 1}; an absent
  caption equals nothing, itself included.
  """
  present = jnp.any(ids != 0, axis=1).astype(jnp.float32)
  same = jnp.all(ids[:, None] == ids[None, :], axis=-1).astype(jnp.float32)
  return same * present[:, None] * present[None, :], present


def softmax_loss(logits: jax.Array, ids: jax.Array) -> jax.Array:
  """Symmetric InfoNCE: cross-entropy over captions and over images, halved.

  logits (b, b), images by captions, already divided by the temperature. An
  image's target is spread evenly over the captions equal to its own.
  """
  same, present = equal_captions(ids)
  count = jnp.maximum(jnp.sum(present), 1.0)

  def one_way(logits: jax.Array) -> jax.Array:
    logits = jnp.where(present[None, :] > 0, logits, _MASKED)
    target = same / jnp.maximum(jnp.sum(same, axis=1, keepdims=True), 1.0)
    log_p = jax.nn.log_softmax(logits, axis=1)
    return -jnp.sum(target * log_p) / count

  return (one_way(logits) + one_way(logits.T)) / 2


def sigmoid_loss(logits: jax.Array, ids: jax.Array) -> jax.Array:
  """SigLIP: each pair on its own, equal captions or not; a sum per image.

  logits (b, b), scaled and shifted. Source: Zhai et al. 2023, eq. 1.
  """
  same, present = equal_captions(ids)
  pairs = present[:, None] * present[None, :]
  log_p = jax.nn.log_sigmoid((2 * same - 1) * logits)
  return -jnp.sum(pairs * log_p) / jnp.maximum(jnp.sum(present), 1.0)


class Contrast(NamedTuple):
  """A loss of logits (b, b) and ids (b, l), and where its scale starts."""

  loss: Callable[[jax.Array, jax.Array], jax.Array]
  log_scale: float
  shift: float
  shifts: bool  # whether the shift is added to the logits


CONTRASTS = {
  'softmax': Contrast(softmax_loss, math.log(1 / 0.07), 0.0, False),
  'sigmoid': Contrast(sigmoid_loss, math.log(10.0), -10.0, True),
}


def check(config: ConfigDict, size_px: int) -> None:
  """Raises ValueError for what can be told to be wrong before a compile."""
  model, text = config.model.to_dict(), config.text
  lookup(CONTRASTS, config.contrast.loss, 'loss', '--config.contrast.loss')
  one_of(('words', 'clip_bpe'), text.tokens, 'tokens', '--config.text.tokens')
  vit.check_vit(size_px, **model)
  captions.check(config.captions)
  views.check_augment(config.augment)
  if text.width % text.heads:
    raise ValueError(
      f'text.heads={text.heads} does not divide text.width={text.width}. Set '
      '--config.text.heads.'
    )
  if text.length < 3 or text.vocabulary < 5:
    raise ValueError(
      f'text.length={text.length} must be at least 3 and text.vocabulary='
      f'{text.vocabulary} at least 5. Set --config.text.length and '
      '--config.text.vocabulary.'
    )
  if text.tokens == 'clip_bpe' and text.vocabulary != captions.BPE_SIZE:
    raise ValueError(
      f'text.vocabulary={text.vocabulary}, but CLIP has {captions.BPE_SIZE}. '
      f'Set --config.text.vocabulary={captions.BPE_SIZE}.'
    )
  if model['out'] < 1:
    raise ValueError(
      'model.out=0: images and captions need a common space. Set '
      '--config.model.out.'
    )
  if config.accumulate != 1:
    raise ValueError(
      f'accumulate={config.accumulate}: a part of a batch has fewer negatives '
      'and another loss. Set --config.accumulate=1.'
    )


class _Clip(NamedTuple):
  """Both towers, and how an image and its caption are compared."""

  image: vit.VisionTransformer
  text: vit.TextTransformer
  contrast: Contrast


def _init(
  m: _Clip, shape: tuple[int, int, int], length: int, key: jax.Array
) -> State:
  k_image, k_text = jax.random.split(key)
  ids = jnp.zeros((1, length), jnp.int32)
  return {
    'image': m.image.init(k_image, jnp.zeros((1, *shape)))['params'],
    'text': m.text.init(k_text, ids)['params'],
    'scale': jnp.float32(m.contrast.log_scale),
    'shift': jnp.float32(m.contrast.shift),
  }, {}


def _unit(x: jax.Array) -> jax.Array:
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def _loss(
  m: _Clip,
  augment: ConfigDict,
  params: Tree,
  extra: Tree,
  batch: Batch,
  key: jax.Array,
) -> Loss:
  x = views.augment(key, to_float(batch['image']), augment)
  ids = batch['tokens']
  image, _ = apply(m.image, params['image'], x)
  text, _ = apply(m.text, params['text'], ids)
  # The whole batch by the whole batch, on however many devices it lies.
  scale = jnp.exp(jnp.minimum(params['scale'], _MAX_SCALE))
  logits = scale * _unit(image) @ _unit(text).T
  if m.contrast.shifts:
    logits = logits + params['shift']
  value = m.contrast.loss(logits, ids)
  return value, (extra, {'loss': value, 'temperature': 1 / scale})


def _tokens(
  texts_of: ConfigDict,
  text: ConfigDict,
  rows_of: ConfigDict,
  dataset: data.Dataset,
) -> dict[str, np.ndarray]:
  """Ids of the captions of the training images, (N, l); 0 for all others."""
  rows = data.pretraining_rows(dataset, rows_of.split, rows_of.spare)
  texts = captions.read(texts_of, dataset, rows)
  if text.tokens == 'words':
    encode = captions.words(texts, text.vocabulary)
  else:
    encode = captions.bpe(captions.find_bpe())
  return {'tokens': captions.pack(encode, texts, text.vocabulary, text.length)}


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a pretraining config, for images of one size."""
  check(config, size_px)
  model, text = config.model, config.text
  fields = text.to_dict()
  fields.pop('tokens')
  m = _Clip(
    vit.VisionTransformer(**model.to_dict()),
    vit.TextTransformer(
      **fields, out=model.out, activation=model.activation, dtype=model.dtype
    ),
    CONTRASTS[config.contrast.loss],
  )
  shape = (size_px, size_px, channels)
  return Method(
    init=functools.partial(_init, m, shape, text.length),
    loss=functools.partial(_loss, m, config.augment),
    after=unchanged,
    frozen=lambda params, extra: params['image'],
    features=noiseless(
      lambda variables, images: apply(m.image, variables, to_float(images))[1]
    ),
    validate=no_sums,
    layers=vit.clip_tap_names(model.depth, model.out),
    metrics=('loss', 'temperature'),
    side=functools.partial(_tokens, config.captions, text, config.data),
    row={'tokens': jax.ShapeDtypeStruct((text.length,), jnp.int32)},
    facts={'supervised_text': bool(config.captions.template)},
  )

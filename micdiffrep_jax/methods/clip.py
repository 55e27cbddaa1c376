"""Contrastive image-text pretraining: an image finds its caption in the batch.

Sources: Radford et al. 2021 (softmax), Zhai et al. 2023 (sigmoid). Ours: equal
captions share the target, for radiology reports repeat and templates more so;
images without a caption take no part.
Letters: b batch, l tokens, d features.
"""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.methods import augment, captions, tokens
from micdiffrep_jax.methods.base import Method, to_float, unchanged
from micdiffrep_jax.models import clip_vision
from micdiffrep_jax.models.clip_text import TextTransformer
from micdiffrep_jax.run.checks import lookup

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

  def one_way(logits):
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


# name -> loss, start of the log scale, start of the shift
LOSSES = {
  'softmax': (softmax_loss, math.log(1 / 0.07), 0.0),
  'sigmoid': (sigmoid_loss, math.log(10.0), -10.0),
}


def check(config: ConfigDict, size_px: int) -> None:
  """Raises ValueError for what can be told to be wrong before a compile."""
  lookup(LOSSES, config.contrast.loss, 'loss', '--config.contrast.loss')
  lookup(
    dict.fromkeys(('words', 'clip_bpe')),
    config.text.tokens,
    'tokens',
    '--config.text.tokens',
  )
  model, text = config.model.to_dict(), config.text
  clip_vision.check_vit(size_px, **model)
  captions.check(config.captions)
  augment.check(config.augment)
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
  if text.tokens == 'clip_bpe' and text.vocabulary != tokens.BPE_SIZE:
    raise ValueError(
      f'text.vocabulary={text.vocabulary}, but CLIP has {tokens.BPE_SIZE}. Set '
      f'--config.text.vocabulary={tokens.BPE_SIZE}.'
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


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a pretraining config, for images of one size."""
  check(config, size_px)
  image_tower = clip_vision.VisionTransformer(**config.model.to_dict())
  fields = config.text.to_dict()
  kind = fields.pop('tokens')
  text_tower = TextTransformer(
    **fields,
    out=config.model.out,
    activation=config.model.activation,
    dtype=config.model.dtype,
  )
  loss_of, scale, shift = LOSSES[config.contrast.loss]

  def init(key):
    k_image, k_text = jax.random.split(key)
    images = jnp.zeros((1, size_px, size_px, channels))
    ids = jnp.zeros((1, config.text.length), jnp.int32)
    return {
      'image': image_tower.init(k_image, images)['params'],
      'text': text_tower.init(k_text, ids)['params'],
      'scale': jnp.float32(scale),
      'shift': jnp.float32(shift),
    }, {}

  def unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)

  def loss(params, extra, batch, key):
    x = augment.augment(key, to_float(batch['image']), config.augment)
    image, _ = image_tower.apply({'params': params['image']}, x)
    ids = batch['tokens']
    text, _ = text_tower.apply({'params': params['text']}, ids)
    # The whole batch by the whole batch, on however many devices it lies.
    scale = jnp.exp(jnp.minimum(params['scale'], _MAX_SCALE))
    logits = scale * unit(image) @ unit(text).T
    if config.contrast.loss == 'sigmoid':
      logits = logits + params['shift']
    value = loss_of(logits, ids)
    return value, (extra, {'loss': value, 'temperature': 1 / scale})

  def features(variables, images, keys, t):
    del keys, t  # nothing is drawn
    return image_tower.apply({'params': variables}, to_float(images))[1]

  def side(dataset: data.Dataset) -> dict[str, np.ndarray]:
    rows = data.pretraining_rows(dataset, config.data.split, config.data.spare)
    texts = captions.read(config.captions, dataset, rows)
    size = config.text.vocabulary
    if kind == 'words':
      encode = tokens.words(texts, size)
    else:
      encode = tokens.bpe(tokens.find_bpe())
    return {'tokens': tokens.pack(encode, texts, size, config.text.length)}

  return Method(
    init=init,
    loss=loss,
    after=unchanged,
    frozen=lambda params, extra: params['image'],
    features=features,
    # Captions of validation images stay unread: probes judge this method.
    validate=lambda variables, images, keys, weights: {},
    sample=None,
    layers=clip_vision.tap_names(config.model.depth, config.model.out),
    timesteps=1,
    metrics=('loss', 'temperature'),
    side=side,
    row={'tokens': jax.ShapeDtypeStruct((config.text.length,), jnp.int32)},
    facts={'supervised_text': bool(config.captions.template)},
  )

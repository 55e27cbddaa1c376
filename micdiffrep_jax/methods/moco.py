"""MoCo v2: an image's two views agree against a queue of other images' keys.

Source: He et al. 2020 and Chen et al. 2020. Ours: keys are spread over the
groups of the batch norm by one fixed permutation, since batches are random
already; running averages of the key encoder serve the validation loss only.
Letters: b batch, d features, K queue.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from micdiffrep_jax.methods import two_view, views
from micdiffrep_jax.methods.base import (
  Batch,
  Loss,
  Method,
  State,
  Tree,
  check_share,
  ema,
  to_float,
)
from micdiffrep_jax.models.resnet import Embedder


def info_nce(
  q: jax.Array, k: jax.Array, queue: jax.Array, temperature: float
) -> jax.Array:
  """-log softmax of an image's own key among it and the queue, (b,).

  q, k (b, d) and queue (K, d) of unit length. Source: He et al. 2020, eq. 1.
  """
  own = jnp.sum(q * k, axis=-1, keepdims=True)
  logits = jnp.concatenate([own, q @ queue.T], axis=-1) / temperature
  return jax.nn.logsumexp(logits, axis=-1) - logits[:, 0]


def push(
  queue: jax.Array, head: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Writes keys (b, d) over the oldest rows of queue (K, d); b divides K."""
  assert queue.shape[0] % keys.shape[0] == 0  # a slice would be clamped
  queue = jax.lax.dynamic_update_slice(queue, keys, (head, jnp.int32(0)))
  return queue, (head + keys.shape[0]) % queue.shape[0]


def scatter(x: jax.Array, groups: int) -> jax.Array:
  """Deals the rows of each of `groups` equal runs out over all of them."""
  parts = x.reshape(groups, -1, *x.shape[1:])
  return jnp.swapaxes(parts, 0, 1).reshape(x.shape)


def gather(x: jax.Array, groups: int) -> jax.Array:
  """Undoes scatter."""
  parts = x.reshape(-1, groups, *x.shape[1:])
  return jnp.swapaxes(parts, 0, 1).reshape(x.shape)


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before a compile."""
  moco = config.moco
  two_view.check_counts(moco, 'moco', 'hidden', 'features', 'queue')
  check_share('--config.moco.momentum', moco.momentum)
  if moco.temperature <= 0:
    raise ValueError(
      f'moco.temperature={moco.temperature} is not above 0. Set '
      '--config.moco.temperature.'
    )
  if moco.queue % config.batch_size:
    raise ValueError(
      f'A queue of {moco.queue} is no multiple of the batch of '
      f'{config.batch_size}. Set --config.moco.queue or --config.batch_size.'
    )
  if config.model.groups < 2:
    raise ValueError(
      f'model.groups={config.model.groups}: with one batch norm over queries '
      'and their keys its statistics give the answer away. Set '
      '--config.model.groups to at least 2.'
    )


class _Moco(NamedTuple):
  """The embedder and what its keys are compared with."""

  model: Embedder
  shape: tuple[int, int, int]  # of an image
  features: int
  queue: int
  temperature: float
  groups: int
  views: str


def _init(m: _Moco, key: jax.Array) -> State:
  k_model, k_queue = jax.random.split(key)
  params, extra = two_view.init_with_copy(m.model, k_model, m.shape, 'key')
  queue = jax.random.normal(k_queue, (m.queue, m.features))
  return params, {
    **extra,
    'queue': two_view.unit(queue),
    'head': jnp.int32(0),
  }


def _loss(
  m: _Moco, params: Tree, extra: Tree, batch: Batch, key: jax.Array
) -> Loss:
  x_q, x_k = views.two_views(key, to_float(batch['image']), m.views)
  q, stats = two_view.train_pass(m.model, params, extra['stats'], x_q)
  # A key's group of the batch norm is not that of its query.
  k, key_stats = two_view.train_pass(
    m.model, extra['key'], extra['key_stats'], scatter(x_k, m.groups)
  )
  q = two_view.unit(q)
  k = jax.lax.stop_gradient(two_view.unit(gather(k, m.groups)))
  value = jnp.mean(info_nce(q, k, extra['queue'], m.temperature))
  queue, head = push(extra['queue'], extra['head'], k)
  extra = {
    **extra,
    'stats': stats,
    'key_stats': key_stats,
    'queue': queue,
    'head': head,
  }
  return value, (extra, {'loss': value, **two_view.spread(q)})


def _move_keys(
  momentum: float, params: Tree, extra: Tree, step: jax.Array
) -> Tree:
  # At the end of a step instead of the start of the next: the same numbers, as
  # the key encoder begins as a copy, and one move however many parts.
  del step
  return {**extra, 'key': ema(extra['key'], params, momentum)}


def _frozen(params: Tree, extra: Tree) -> Tree:
  kept = ('stats', 'key', 'key_stats', 'queue')
  return {'online': params, **{k: extra[k] for k in kept}}


def _errors(m: _Moco, v: Tree, pair: tuple[jax.Array, jax.Array]) -> jax.Array:
  q, _ = two_view.eval_pass(m.model, v['online'], v['stats'], pair[0])
  k, _ = two_view.eval_pass(m.model, v['key'], v['key_stats'], pair[1])
  return info_nce(two_view.unit(q), two_view.unit(k), v['queue'], m.temperature)


def _check_images(queue: int, count: int) -> None:
  if 4 * queue > count:
    raise ValueError(
      f'A queue of {queue} is more than a quarter of {count} training images, '
      'so it would hold keys of the images it is compared with. Set '
      '--config.moco.queue.'
    )


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a pretraining config, for images of one size."""
  check(config)
  moco = config.moco
  model = two_view.make_embedder(
    config, size_px, moco.hidden, moco.features, norm=False
  )
  m = _Moco(
    model,
    (size_px, size_px, channels),
    moco.features,
    moco.queue,
    moco.temperature,
    config.model.groups,
    config.views,
  )
  return two_view.make_method(
    config,
    model,
    init=functools.partial(_init, m),
    loss=functools.partial(_loss, m),
    after=functools.partial(_move_keys, moco.momentum),
    frozen=_frozen,
    errors=functools.partial(_errors, m),
    check=functools.partial(_check_images, moco.queue),
  )

"""MoCo v2: an image's two views agree against a queue of other images' keys.

Source: He et al. 2020 and Chen et al. 2020. Ours: keys are spread over the
groups of the batch norm by one fixed permutation, since batches are random
already; running averages of the key encoder serve the validation loss only.
Letters: b batch, d features, K queue.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from micdiffrep_jax.methods import queue as queues
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


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before a compile."""
  check_share('--config.moco.momentum', config.moco.momentum)
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
  queue: queues.Queue
  groups: int  # of the batch norm
  views: str


def _init(m: _Moco, key: jax.Array) -> State:
  k_model, k_queue = jax.random.split(key)
  params, extra = two_view.init_with_copy(m.model, k_model, m.shape, 'key')
  return params, {**extra, **m.queue.init(k_queue)}


def _loss(
  m: _Moco, params: Tree, extra: Tree, batch: Batch, key: jax.Array
) -> Loss:
  x_q, x_k = views.two_views(key, to_float(batch['image']), m.views)
  q, stats = two_view.train_pass(m.model, params, extra['stats'], x_q)
  # A key's group of the batch norm is not that of its query.
  k, key_stats = two_view.train_pass(
    m.model, extra['key'], extra['key_stats'], queues.scatter(x_k, m.groups)
  )
  q = two_view.unit(q)
  k = jax.lax.stop_gradient(two_view.unit(queues.gather(k, m.groups)))
  value = jnp.mean(m.queue.compare(extra, q, k, batch))
  extra = {
    **extra,
    'stats': stats,
    'key_stats': key_stats,
    **m.queue.push(extra, k, batch),
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
  # Of other images than those in training, so of other groups.
  q, k = two_view.unit(q), two_view.unit(k)
  return queues.info_nce(q, k, v['queue'], m.queue.temperature)


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a pretraining config, for images of one size."""
  check(config)
  moco = config.moco
  queue = queues.make(config, 'moco')
  model = two_view.make_embedder(
    config, size_px, moco.hidden, moco.features, norm=''
  )
  shape = (size_px, size_px, channels)
  m = _Moco(model, shape, queue, config.model.groups, config.views)
  method = two_view.make_method(
    config,
    model,
    init=functools.partial(_init, m),
    loss=functools.partial(_loss, m),
    after=functools.partial(_move_keys, moco.momentum),
    frozen=_frozen,
    errors=functools.partial(_errors, m),
    check=queue.check_images,
  )
  return dataclasses.replace(method, **queue.beside())

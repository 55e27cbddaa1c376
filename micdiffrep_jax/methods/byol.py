"""BYOL: one view's embedding predicts the other's under a slower network.

Source: Grill et al. 2020 and their published code.
Letters: b batch, d features; tau the target's decay, k of K updates.
"""

from collections.abc import Sequence
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
from micdiffrep_jax.models.resnet import Embedder, Projector


def distance(p: jax.Array, z: jax.Array) -> jax.Array:
  """Squared distance of the directions of p and z (b, d): (b,) in [0, 4]."""
  return jnp.sum(jnp.square(two_view.unit(p) - two_view.unit(z)), axis=-1)


def symmetric(
  predicted: Sequence[jax.Array], targets: Sequence[jax.Array]
) -> jax.Array:
  """Each view's prediction (b, d) against the other's target, added: (b,)."""
  return distance(predicted[0], targets[1]) + distance(predicted[1], targets[0])


def decay(step: jax.Array, steps: int, tau0: float) -> jax.Array:
  """tau = 1 - (1 - tau0) (cos(pi k / K) + 1) / 2: from tau0 up to 1."""
  share = jnp.clip(step / max(steps, 1), 0.0, 1.0)
  return 1 - (1 - tau0) * (jnp.cos(jnp.pi * share) + 1) / 2


class _Byol(NamedTuple):
  """The networks, and what they are shown."""

  model: Embedder
  predictor: Projector
  shape: tuple[int, int, int]  # of an image
  views: str


def _init(m: _Byol, key: jax.Array) -> State:
  k_model, k_predictor = jax.random.split(key)
  online, extra = two_view.init_with_copy(m.model, k_model, m.shape, 'target')
  embedded = jnp.zeros((1, m.model.projector.out))
  head = m.predictor.init(k_predictor, embedded)
  params = {'online': online, 'predictor': head['params']}
  return params, {**extra, 'predictor_stats': head['batch_stats']}


def _loss(
  m: _Byol, params: Tree, extra: Tree, batch: Batch, key: jax.Array
) -> Loss:
  stats, predictor_stats = extra['stats'], extra['predictor_stats']
  target_stats = extra['target_stats']
  embedded, predicted, targets = [], [], []
  for x in views.two_views(key, to_float(batch['image']), m.views):
    z, stats = two_view.train_pass(m.model, params['online'], stats, x)
    p, predictor_stats = two_view.train_pass(
      m.predictor, params['predictor'], predictor_stats, z
    )
    aim, target_stats = two_view.train_pass(
      m.model, extra['target'], target_stats, x
    )
    embedded.append(z)
    predicted.append(p)
    targets.append(jax.lax.stop_gradient(aim))
  value = jnp.mean(symmetric(predicted, targets))
  extra = {
    **extra,
    'stats': stats,
    'predictor_stats': predictor_stats,
    'target_stats': target_stats,
  }
  shape = two_view.spread(two_view.unit(embedded[0]))
  return value, (extra, {'loss': value, **shape})


def _move_target(
  steps: int, tau0: float, params: Tree, extra: Tree, step: jax.Array
) -> Tree:
  tau = decay(step, steps, tau0)
  return {**extra, 'target': ema(extra['target'], params['online'], tau)}


def _errors(m: _Byol, v: Tree, pair: tuple[jax.Array, jax.Array]) -> jax.Array:
  predicted, targets = [], []
  for x in pair:
    z, _ = two_view.eval_pass(m.model, v['online'], v['stats'], x)
    predicted.append(
      two_view.eval_pass(m.predictor, v['predictor'], v['predictor_stats'], z)
    )
    aim, _ = two_view.eval_pass(m.model, v['target'], v['target_stats'], x)
    targets.append(aim)
  return symmetric(predicted, targets)


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a pretraining config, for images of one size.

  config.steps is the length of the run; 0 where an encoder is only loaded.
  """
  byol = config.byol
  two_view.check_counts(byol, 'byol', 'hidden', 'features')
  check_share('--config.byol.tau', byol.tau)
  model = two_view.make_embedder(
    config, size_px, byol.hidden, byol.features, norm='batch'
  )
  predictor = Projector(
    byol.hidden, byol.features, 'batch', config.model.groups, config.model.dtype
  )
  m = _Byol(model, predictor, (size_px, size_px, channels), config.views)
  return two_view.make_method(
    config,
    model,
    init=functools.partial(_init, m),
    loss=functools.partial(_loss, m),
    after=functools.partial(_move_target, config.steps, byol.tau),
    frozen=lambda params, extra: {**params, **extra},
    errors=functools.partial(_errors, m),
  )

"""BYOL: one view's embedding predicts the other's under a slower network.

Source: Grill et al. 2020 and their published code.
Letters: b batch, d features; tau the target's decay, k of K updates.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from micdiffrep_jax.methods import two_view, views
from micdiffrep_jax.methods.base import Method, ema, to_float
from micdiffrep_jax.models.resnet import Projector


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


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a pretraining config, for images of one size.

  config.steps is the length of the run; 0 where an encoder is only loaded.
  """
  byol = config.byol
  two_view.check_positive('byol', {k: byol[k] for k in ('hidden', 'features')})
  two_view.check_share('byol', 'tau', byol.tau)
  model = two_view.make_embedder(
    config, size_px, byol.hidden, byol.features, norm=True
  )
  predictor = Projector(
    byol.hidden, byol.features, True, config.model.groups, config.model.dtype
  )

  def init(key):
    k_model, k_predictor = jax.random.split(key)
    x = jnp.zeros((1, size_px, size_px, channels))
    online = model.init(k_model, x)
    head = predictor.init(k_predictor, jnp.zeros((1, byol.features)))
    params = {'online': online['params'], 'predictor': head['params']}
    return params, {
      'stats': online['batch_stats'],
      'predictor_stats': head['batch_stats'],
      'target': jax.tree.map(jnp.copy, online['params']),
      'target_stats': jax.tree.map(jnp.copy, online['batch_stats']),
    }

  def loss(params, extra, batch, key):
    stats, predictor_stats = extra['stats'], extra['predictor_stats']
    target_stats = extra['target_stats']
    embedded, predicted, targets = [], [], []
    for x in views.two_views(key, to_float(batch['image']), config.views):
      z, stats = two_view.train_pass(model, params['online'], stats, x)
      p, predictor_stats = two_view.train_pass(
        predictor, params['predictor'], predictor_stats, z
      )
      aim, target_stats = two_view.train_pass(
        model, extra['target'], target_stats, x
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

  def after(params, extra, step):
    tau = decay(step, config.steps, byol.tau)
    return {**extra, 'target': ema(extra['target'], params['online'], tau)}

  def errors(variables, pair):
    v = variables
    predicted, targets = [], []
    for x in pair:
      z, _ = two_view.eval_pass(model, v['online'], v['stats'], x)
      predicted.append(
        two_view.eval_pass(predictor, v['predictor'], v['predictor_stats'], z)
      )
      targets.append(
        two_view.eval_pass(model, v['target'], v['target_stats'], x)[0]
      )
    return symmetric(predicted, targets)

  return two_view.make_method(
    config,
    model,
    init=init,
    loss=loss,
    after=after,
    frozen=lambda params, extra: {**params, **extra},
    errors=errors,
  )

"""What methods that compare two views of an image share.

Letters: b batch, h w pixels, c channels, d features.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from micdiffrep_jax.methods import views
from micdiffrep_jax.methods.base import (
  Method,
  State,
  Sums,
  Taps,
  Tree,
  loss_sums,
  noiseless,
  to_float,
)
from micdiffrep_jax.models.resnet import (
  Embedder,
  Projector,
  ResNet,
  check_resnet,
  tap_names,
)
from micdiffrep_jax.run.checks import in_range

_POWER_STEPS = 16


def make_encoder(config: ConfigDict, size_px: int) -> ResNet:
  """The encoder of a pretraining config.

  Raises ValueError where it does not fit the images, or where its groups do not
  divide the batch.
  """
  model = config.model
  check_resnet(size_px, model.blocks, model.stem)
  check_counts(model, 'model', 'width', 'groups')
  part = config.batch_size // max(config.accumulate, 1)
  if part % model.groups or part // model.groups < 2:
    raise ValueError(
      f'{model.groups} groups of the batch norm do not divide {part} images '
      '(batch_size / accumulate) into parts of at least 2. Set '
      '--config.model.groups, --config.batch_size or --config.accumulate.'
    )
  return ResNet(
    tuple(model.blocks),
    model.bottleneck,
    model.width,
    model.stem,
    model.groups,
    model.dtype,
  )


def make_embedder(
  config: ConfigDict, size_px: int, hidden: int, out: int, norm: str
) -> Embedder:
  """Encoder and projector; ValueError also for an unknown policy of views."""
  encoder = make_encoder(config, size_px)
  views.get_policy(config.views)
  model = config.model
  projector = Projector(hidden, out, norm, model.groups, model.dtype)
  return Embedder(encoder, projector)


def init_with_copy(
  model: Embedder, key: jax.Array, shape: tuple[int, int, int], copy: str
) -> State:
  """The embedder that is trained, and a slower one that begins as its copy.

  Returns its parameters and {'stats', copy, f'{copy}_stats'}: the running
  averages of its batch norms, and the copies of both.
  """
  variables = model.init(key, jnp.zeros((1, *shape)))
  params, stats = variables['params'], variables['batch_stats']
  return params, {
    'stats': stats,
    copy: jax.tree.map(jnp.copy, params),
    f'{copy}_stats': jax.tree.map(jnp.copy, stats),
  }


def _validate(
  errors: Callable,
  policy: str,
  variables: Tree,
  images: jax.Array,
  keys: jax.Array,
  weights: jax.Array,
) -> Sums:
  """Draws the same views of an image at every call."""
  error = errors(variables, views_of_each(keys, images, policy))
  return loss_sums(error, weights)


def make_method(
  config: ConfigDict,
  model: Embedder,
  *,
  init: Callable,
  loss: Callable,
  after: Callable,
  frozen: Callable,
  errors: Callable,
  check: Callable[[int], None] | None = None,
) -> Method:
  """The method; what is not given here is the same for all of them.

  frozen: as in Reader; in its variables 'online' and 'stats' are the embedder
  that is trained. errors: variables, two views (b, h, w, c) each -> (b,), what
  validation averages.
  """

  def taps(variables: Tree, images: jax.Array) -> Taps:
    x = to_float(images)
    return eval_pass(model, variables['online'], variables['stats'], x)[1]

  layers = tap_names(config.model.blocks)
  return Method(
    init=init,
    loss=loss,
    after=after,
    frozen=frozen,
    features=noiseless(taps),
    validate=functools.partial(_validate, errors, config.views),
    layers=layers,
    metrics=('loss', 'feature_std', 'top_share'),
    output=layers[-1],
    check=check,
    encoder=lambda variables: variables['online']['encoder'],
  )


def check_counts(config: ConfigDict, group: str, *names: str) -> None:
  """Raises ValueError for a field of the sub-config `group` below 1."""
  for name in names:
    in_range(config[name], 1, math.inf, f'--config.{group}.{name}')


def train_pass(
  model: Any, params: Tree, stats: Tree, x: jax.Array
) -> tuple[jax.Array, Tree]:
  """Output (b, d) under batch statistics, and the new running averages."""
  out, updates = model.apply(
    {'params': params, 'batch_stats': stats},
    x,
    train=True,
    mutable=['batch_stats'],
  )
  out = out[0] if isinstance(out, tuple) else out
  return out, updates.get('batch_stats', {})


def eval_pass(model: Any, params: Tree, stats: Tree, x: jax.Array) -> Any:
  """What the model returns under running averages."""
  return model.apply({'params': params, 'batch_stats': stats}, x)


def views_of_each(
  keys: jax.Array, images: jax.Array, policy: str
) -> tuple[jax.Array, jax.Array]:
  """Two views of uint8 images (b, h, w, c), each drawn from its own key."""

  def draw(key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    first, second = views.two_views(key, x[None], policy)
    return first[0], second[0]

  return jax.vmap(draw)(keys, to_float(images))


def unit(x: jax.Array) -> jax.Array:
  """x (b, d) -> rows of length 1; a zero row stays zero."""
  squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def spread(z: jax.Array) -> dict[str, jax.Array]:
  """How far unit features z (b, d) are from collapse.

  feature_std: mean deviation of a coordinate; 1 / sqrt(d) where directions are
  uniform, 0 where all are the same. top_share: the largest principal
  component's share of the variance, by power iteration, so slightly low.
  """
  z = jax.lax.stop_gradient(z)
  z = z - jnp.mean(z, axis=0, keepdims=True)
  variance = jnp.mean(jnp.square(z), axis=0)

  def power(_: jax.Array, v: jax.Array) -> jax.Array:
    v = (z @ v) @ z
    return v * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(v)), 1e-30))

  # A row of the data is never orthogonal to all that the data span.
  v = jax.lax.fori_loop(0, _POWER_STEPS, power, z[0])
  top = jnp.mean(jnp.square(z @ v))
  return {
    'feature_std': jnp.mean(jnp.sqrt(variance)),
    'top_share': top / jnp.maximum(jnp.sum(variance), 1e-12),
  }

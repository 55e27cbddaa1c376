"""MoCo v2: an image's two views agree against a queue of other images' keys.

Source: He et al. 2020 and Chen et al. 2020. Ours: keys are spread over the
groups of the batch norm by one fixed permutation, since batches are random
already; running averages of the key encoder serve the validation loss only.
Letters: b batch, d features, K queue.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from micdiffrep_jax.methods import two_view, views
from micdiffrep_jax.methods.base import Method, ema, to_float


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
  two_view.check_positive(
    'moco', {k: moco[k] for k in ('hidden', 'features', 'queue')}
  )
  two_view.check_share('moco', 'momentum', moco.momentum)
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


def make(config: ConfigDict, size_px: int, channels: int) -> Method:
  """The method of a pretraining config, for images of one size."""
  check(config)
  moco, groups = config.moco, config.model.groups
  model = two_view.make_embedder(
    config, size_px, moco.hidden, moco.features, norm=False
  )

  def init(key):
    k_model, k_queue = jax.random.split(key)
    x = jnp.zeros((1, size_px, size_px, channels))
    variables = model.init(k_model, x)
    params, stats = variables['params'], variables['batch_stats']
    queue = jax.random.normal(k_queue, (moco.queue, moco.features))
    return params, {
      'stats': stats,
      'key': jax.tree.map(jnp.copy, params),
      'key_stats': jax.tree.map(jnp.copy, stats),
      'queue': two_view.unit(queue),
      'head': jnp.int32(0),
    }

  def loss(params, extra, batch, key):
    x_q, x_k = views.two_views(key, to_float(batch['image']), config.views)
    q, stats = two_view.train_pass(model, params, extra['stats'], x_q)
    # A key's group of the batch norm is not that of its query.
    k, key_stats = two_view.train_pass(
      model, extra['key'], extra['key_stats'], scatter(x_k, groups)
    )
    q = two_view.unit(q)
    k = jax.lax.stop_gradient(two_view.unit(gather(k, groups)))
    value = jnp.mean(info_nce(q, k, extra['queue'], moco.temperature))
    queue, head = push(extra['queue'], extra['head'], k)
    extra = {
      **extra,
      'stats': stats,
      'key_stats': key_stats,
      'queue': queue,
      'head': head,
    }
    return value, (extra, {'loss': value, **two_view.spread(q)})

  def after(params, extra, step):
    # At the end of a step instead of the start of the next: the same numbers,
    # as the key encoder begins as a copy, and one move however many parts.
    del step
    return {**extra, 'key': ema(extra['key'], params, moco.momentum)}

  def frozen(params, extra):
    kept = ('stats', 'key', 'key_stats', 'queue')
    return {'online': params, **{k: extra[k] for k in kept}}

  def errors(variables, pair):
    v, (x_q, x_k) = variables, pair
    q, _ = two_view.eval_pass(model, v['online'], v['stats'], x_q)
    k, _ = two_view.eval_pass(model, v['key'], v['key_stats'], x_k)
    return info_nce(
      two_view.unit(q), two_view.unit(k), v['queue'], moco.temperature
    )

  def check_images(count):
    if 4 * moco.queue > count:
      raise ValueError(
        f'A queue of {moco.queue} is more than a quarter of {count} training '
        'images, so it would hold keys of the images it is compared with. Set '
        '--config.moco.queue.'
      )

  return two_view.make_method(
    config,
    model,
    init=init,
    loss=loss,
    after=after,
    frozen=frozen,
    errors=errors,
    check=check_images,
  )

"""A queue of other images' keys, with which an image's two views are compared.

Source: He et al. 2020. Ours: keys of an image's own group (its near-duplicates
and its patient's pictures, and the image itself some steps ago) can be left
out, as they are no other images. A method without negatives, as BYOL is, has
none to leave out.
Letters: b batch, d features, K keys of the queue.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.methods import two_view
from micdiffrep_jax.methods.base import Batch, Tree

_NOBODY = -1  # the group of the random keys at the start


def info_nce(
  q: jax.Array,
  k: jax.Array,
  queue: jax.Array,
  temperature: float,
  left_out: jax.Array | None = None,
) -> jax.Array:
  """-log softmax of an image's own key among it and the queue, (b,).

  q, k (b, d) and queue (K, d) of unit length; left_out (b, K) bool: keys that
  are none of this image's negatives. Source: He et al. 2020, eq. 1.
  """
  own = jnp.sum(q * k, axis=-1, keepdims=True)
  others = q @ queue.T
  if left_out is not None:
    others = jnp.where(left_out, -jnp.inf, others)
  logits = jnp.concatenate([own, others], axis=-1) / temperature
  return jax.nn.logsumexp(logits, axis=-1) - logits[:, 0]


def push(
  queue: jax.Array, head: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Writes keys (b, d) over the oldest rows of queue (K, d); b divides K.

  Group numbers (b,) into (K,) too.
  """
  assert queue.shape[0] % keys.shape[0] == 0  # a slice would be clamped
  start = (head, *[jnp.int32(0)] * (queue.ndim - 1))
  queue = jax.lax.dynamic_update_slice(queue, keys, start)
  return queue, (head + keys.shape[0]) % queue.shape[0]


def scatter(x: jax.Array, groups: int) -> jax.Array:
  """Deals the rows of each of `groups` equal runs out over all of them.

  So that a key's group of a batch norm is not that of its query.
  """
  parts = x.reshape(groups, -1, *x.shape[1:])
  return jnp.swapaxes(parts, 0, 1).reshape(x.shape)


def gather(x: jax.Array, groups: int) -> jax.Array:
  """Undoes scatter."""
  parts = x.reshape(-1, groups, *x.shape[1:])
  return jnp.swapaxes(parts, 0, 1).reshape(x.shape)


def groups_of(dataset: data.Dataset) -> dict[str, np.ndarray]:
  """Group numbers of all images (N,) int32, from pixels and patients alone."""
  return {'group': data.groups(dataset)}


class Queue(NamedTuple):
  """How keys are kept and compared.

  part: of the config, for flags; size: K; features: d; mask_groups: leave keys
  of an image's own group out. State: {'queue' (K, d), 'head' ()} and, with
  mask_groups, 'queue_group' (K,) int32.
  """

  part: str
  size: int
  features: int
  temperature: float
  mask_groups: bool

  def init(self, key: jax.Array) -> Tree:
    """Random directions, of nobody's group."""
    rows = jax.random.normal(key, (self.size, self.features))
    state = {'queue': two_view.unit(rows), 'head': jnp.int32(0)}
    if self.mask_groups:
      state['queue_group'] = jnp.full((self.size,), _NOBODY, jnp.int32)
    return state

  def compare(
    self, state: Tree, q: jax.Array, k: jax.Array, batch: Batch
  ) -> jax.Array:
    """info_nce (b,) of unit q, k (b, d) against the queue."""
    left_out = None
    if self.mask_groups:
      left_out = batch['group'][:, None] == state['queue_group'][None, :]
    return info_nce(q, k, state['queue'], self.temperature, left_out)

  def push(self, state: Tree, k: jax.Array, batch: Batch) -> Tree:
    """The state with keys (b, d), and their groups, over the oldest ones."""
    queue, head = push(state['queue'], state['head'], k)
    moved = {'queue': queue, 'head': head}
    if self.mask_groups:
      moved['queue_group'], _ = push(
        state['queue_group'], state['head'], batch['group']
      )
    return moved

  def beside(self) -> dict[str, Any]:
    """The fields `side` and `row` of a method that has this queue."""
    if not self.mask_groups:
      return {}
    row = jax.ShapeDtypeStruct((), jnp.int32)
    return {'side': groups_of, 'row': {'group': row}}

  def check_images(self, count: int) -> None:
    """ValueError where `count` training images are few for the queue."""
    if 4 * self.size > count:
      raise ValueError(
        f'A queue of {self.size} is more than a quarter of {count} training '
        'images, so it would hold keys of the images it is compared with. Set '
        f'--config.{self.part}.queue.'
      )


def make(config: ConfigDict, part: str) -> Queue:
  """The queue of a pretraining config's sub-config `part`.

  Raises ValueError for what can be told to be wrong before a compile.
  """
  fields = config[part]
  two_view.check_counts(fields, part, 'hidden', 'features', 'queue')
  if fields.temperature <= 0:
    raise ValueError(
      f'{part}.temperature={fields.temperature} is not above 0. Set '
      f'--config.{part}.temperature.'
    )
  if fields.queue % config.batch_size:
    raise ValueError(
      f'A queue of {fields.queue} is no multiple of the batch of '
      f'{config.batch_size}. Set --config.{part}.queue or --config.batch_size.'
    )
  return Queue(
    part,
    fields.queue,
    fields.features,
    fields.temperature,
    fields.mask_groups,
  )

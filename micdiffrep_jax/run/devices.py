"""One mesh axis, 'data': batches are split over it, states copied or split."""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

Tree = Any


def make_mesh() -> Mesh:
  """All devices of all processes along the axis 'data'.

  In order of the processes, so that the rows of one process lie together:
  jax.make_mesh may follow the wires of a TPU pod instead, and its default axis
  type makes flax's Dropout fail.
  """
  devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  return Mesh(np.array(devices), ('data',))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array of which every device holds a copy."""
  return NamedSharding(mesh, PartitionSpec())


def state_sharding(
  shapes: Tree, mesh: Mesh, fsdp: bool = False, min_size: int = 2**18
) -> Tree:
  """A sharding per leaf: a copy everywhere or, with fsdp, split.

  fsdp splits leaves of at least min_size elements over their largest axis that
  the number of devices divides; the others are copied.
  """
  devices = mesh.shape['data']

  def spec(leaf: Any) -> PartitionSpec:
    if fsdp and leaf.size >= min_size:
      for axis in sorted(range(leaf.ndim), key=lambda i: -leaf.shape[i]):
        if leaf.shape[axis] % devices == 0:
          return PartitionSpec(*[None] * axis, 'data')
    return PartitionSpec()

  return jax.tree.map(lambda x: NamedSharding(mesh, spec(x)), shapes)


def place(batch: Tree, mesh: Mesh) -> Tree:
  """This process's numpy rows -> global arrays split over 'data'."""
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )


@functools.cache
def _replicate(mesh: Mesh) -> Callable[[Tree], Tree]:
  # device_put takes no typed keys to the devices of other processes.
  return jax.jit(lambda x: x, out_shardings=replicated(mesh))


def replicate(tree: Tree, mesh: Mesh) -> Tree:
  """Values that every process knows -> copies on all devices."""
  return _replicate(mesh)(tree)


def fetch(tree: Tree) -> Tree:
  """Global arrays -> numpy on every process, whole."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return jax.tree.map(
    np.asarray, multihost_utils.process_allgather(tree, tiled=True)
  )


@functools.cache
def _maximum(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  return jax.jit(jnp.max, out_shardings=replicated(mesh))


def maximum(value: int, mesh: Mesh) -> jax.Array:
  """The largest of the processes' values, () int32, without waiting for it."""
  own = np.full(mesh.local_mesh.size, value, np.int32)
  return _maximum(mesh)(place(own, mesh))


def check_batch_size(batch_size: int, mesh: Mesh, flag: str) -> None:
  """Raises ValueError where the devices cannot share a batch evenly."""
  devices = mesh.shape['data']
  if batch_size < 1 or batch_size % devices:
    near = max(devices, batch_size // devices * devices)
    raise ValueError(
      f'A batch of {batch_size} does not divide over {devices} devices. '
      f'Set {flag}={near} or another multiple of {devices}.'
    )


def place_whole(batch: Tree, mesh: Mesh) -> Tree:
  """Rows that every process holds whole -> global arrays split over 'data'."""
  share = mesh.shape['data'] // jax.process_count()
  first, count = jax.process_index() * share, share

  def local(x: np.ndarray) -> np.ndarray:
    size = len(x) // mesh.shape['data']
    return x[first * size : (first + count) * size]

  return place(jax.tree.map(local, batch), mesh)

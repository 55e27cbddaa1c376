"""Named streams of random numbers."""

import zlib

import jax


def stream(key: jax.Array, name: str) -> jax.Array:
  """A key of its own for `name`; adding a stream leaves the others alone."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))

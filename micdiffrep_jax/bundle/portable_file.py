"""A classifier in one file: encoder, head, preparation, classes, fingerprints.

An npz archive of arrays and one JSON text, without pickle. Of the encoder it
holds only the weights that the head's layers depend on.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from micdiffrep_jax.bundle.classifier import Portable, assemble
from micdiffrep_jax.bundle.fingerprints import Fingerprints
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders.encoder import Encoder
from micdiffrep_jax.heads import head_file
from micdiffrep_jax.run import archive


def needed(
  encoder: Encoder, layers: Sequence[str], size_px: int, channels: int
) -> dict[str, bool]:
  """Whether each leaf of the encoder's variables bears on any of the layers."""
  leaves, tree = jax.tree.flatten(encoder.variables)

  def taps(leaves, images, keys, t):
    variables = jax.tree.unflatten(tree, leaves)
    found = encoder.method.features(variables, images, keys, t)
    return [found[name] for name in layers]

  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
  images = jax.ShapeDtypeStruct((1, size_px, size_px, channels), jnp.uint8)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  t = jax.ShapeDtypeStruct((), jnp.int32)
  jaxpr = jax.make_jaxpr(taps)(shapes, images, keys, t).jaxpr
  # Backwards from the outputs: an equation counts if what it makes is used.
  live = {id(v) for v in jaxpr.outvars}
  for equation in reversed(jaxpr.eqns):
    if any(id(v) in live for v in equation.outvars):
      live |= {id(v) for v in equation.invars}
  used = [id(v) in live for v in jaxpr.invars[: len(leaves)]]
  return dict(zip(archive.leaf_names(encoder.variables), used, strict=True))


def write(path: str, model: Portable, precision: str) -> None:
  """Writes a classifier; the file is whole or absent."""
  encoder, head, meta = model.encoder, model.head, model.meta
  use = needed(encoder, head.info['layers'], meta['size_px'], meta['channels'])
  leaves = dict(zip(use, jax.device_get(jax.tree.leaves(encoder.variables))))
  arrays: dict[str, np.ndarray] = {}
  for name, leaf in leaves.items():
    if use[name]:
      arrays |= archive.pack(f'encoder.{name}', leaf, precision)
  for name, x in head.params.items():
    # Sums over thousands of training images cancel: too fine for a byte.
    how = 'float32' if name == 'M' and 'centres' in head.params else precision
    # Outputs lead in a head; they become the last axis, as in the encoder.
    arrays |= archive.pack(f'head.{name}', np.moveaxis(x, -1, 1), how)
  arrays |= {'shift': head.shift, 'scale': head.scale}
  arrays |= model.fingerprints.arrays()
  text: dict[str, Any] = {
    'precision': precision,
    'meta': meta,
    'head': head.info,
    'encoder': {'config': encoder.config, 'info': encoder.info},
  }
  archive.write(path, arrays, text)


def load(path: str) -> Portable:
  """Reads a classifier; ValueError for a file that is none, or is damaged."""
  if not path:
    raise ValueError('No bundle given. Set --config.bundle=FILE.')
  arrays, text = archive.read(path)
  encoder = encoders.of_archive(arrays, text, path)
  params = {
    k: np.moveaxis(v, 1, -1) for k, v in archive.unpack(arrays, 'head.').items()
  }
  head = head_file.SavedHead(
    params, arrays['shift'], arrays['scale'], text['head']
  )
  return assemble(encoder, head, text['meta'], Fingerprints.from_arrays(arrays))

"""A classifier in one file: encoder, head, preparation, classes, fingerprints.

An npz archive of arrays and one JSON text, without pickle. Of the encoder it
holds only the weights that the head's layers depend on.
"""

from collections.abc import Sequence
import json
import os
from typing import Any
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from micdiffrep_jax import features, log, sharding
from micdiffrep_jax.deploy.fingerprints import Fingerprints
from micdiffrep_jax.deploy.portable import Portable, assemble
from micdiffrep_jax.features import Encoder
from micdiffrep_jax.lookup import lookup
from micdiffrep_jax.probing import bundle

VERSION = 1
PRECISIONS = ('float32', 'float16', 'int8')
_SMALL = 1024  # arrays below this size are never rounded to int8


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
  return dict(zip(leaf_names(encoder.variables), used, strict=True))


def leaf_names(tree: Any) -> list[str]:
  """'down0_0/res/conv1/kernel', one for each leaf in flattening order."""
  return [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(tree)
  ]


def _pack(name: str, x: np.ndarray, precision: str) -> dict[str, np.ndarray]:
  """Rounds a float array; int8 has one scale per output (last axis)."""
  x = np.asarray(x, np.float32)
  if precision == 'float32':
    return {name: x}
  if precision == 'int8' and x.size >= _SMALL:
    axes = tuple(range(x.ndim - 1))
    scale = np.maximum(np.abs(x).max(axes, keepdims=True), 1e-12) / 127
    return {
      f'{name}.int8': np.rint(x / scale).astype(np.int8),
      f'{name}.scale': scale.astype(np.float32),
    }
  with np.errstate(over='ignore'):
    half = x.astype(np.float16)
  if not np.isfinite(half).all():
    raise ValueError(
      f'{name!r} does not fit into float16. Set --config.precision=float32.'
    )
  return {name: half}


def _unpack(
  arrays: dict[str, np.ndarray], prefix: str
) -> dict[str, np.ndarray]:
  found = {}
  for name, x in arrays.items():
    if not name.startswith(prefix) or name.endswith('.scale'):
      continue
    if name.endswith('.int8'):
      name = name.removesuffix('.int8')
      x = x.astype(np.float32) * arrays[f'{name}.scale']
    found[name.removeprefix(prefix)] = x.astype(np.float32)
  return found


def write(path: str, model: Portable, precision: str) -> None:
  """Writes a classifier; the file is whole or absent."""
  lookup(
    dict.fromkeys(PRECISIONS), precision, 'precision', '--config.precision'
  )
  encoder, head, meta = model.encoder, model.head, model.meta
  use = needed(encoder, head.info['layers'], meta['size_px'], meta['channels'])
  leaves = dict(zip(use, jax.device_get(jax.tree.leaves(encoder.variables))))
  arrays: dict[str, np.ndarray] = {}
  for name, leaf in leaves.items():
    if use[name]:
      arrays |= _pack(f'encoder.{name}', leaf, precision)
  for name, x in head.params.items():
    # Sums over thousands of training images cancel: too fine for a byte.
    how = 'float32' if name == 'M' and 'centres' in head.params else precision
    # Outputs lead in a head; they become the last axis, as in the encoder.
    arrays |= _pack(f'head.{name}', np.moveaxis(x, -1, 1), how)
  arrays |= {'shift': head.shift, 'scale': head.scale}
  arrays |= model.fingerprints.arrays()
  text: dict[str, Any] = {
    'version': VERSION,
    'precision': precision,
    'meta': meta,
    'head': head.info,
    'encoder': {'config': encoder.config, 'info': encoder.info},
  }
  raw = json.dumps(log.plain(text)).encode()
  arrays['json'] = np.frombuffer(raw, np.uint8)
  folder, name = os.path.split(os.path.abspath(path))
  os.makedirs(folder, exist_ok=True)
  partial = os.path.join(folder, f'.{name}.partial.npz')
  np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
  os.replace(partial, path)


def load(path: str) -> Portable:
  """Reads a classifier; ValueError for a file that is none, or is damaged."""
  if not path:
    raise ValueError('No bundle given. Set --config.bundle=FILE.')
  try:
    with np.load(os.path.expanduser(path), allow_pickle=False) as z:
      arrays = {name: z[name] for name in z.files}
    text = json.loads(arrays['json'].tobytes())
  except FileNotFoundError:
    raise ValueError(
      f'No bundle at {path!r}. configs/bundle.py makes one from a probe; give '
      'it with --config.bundle=FILE.'
    ) from None
  except (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    zipfile.BadZipFile,
  ) as e:
    raise ValueError(
      f'{path!r} is no bundle, or is damaged ({e}). Copy it again, or make it '
      'anew with configs/bundle.py.'
    ) from e
  if text['version'] != VERSION:
    raise ValueError(
      f'{path!r} has version {text["version"]} of the format, this program '
      f'reads {VERSION}. Make the bundle anew with configs/bundle.py.'
    )
  meta = text['meta']
  config = features.config_from_json(text['encoder']['config'])
  method = features.make_method(config, meta['size_px'], meta['channels'])
  shapes = jax.eval_shape(
    lambda key: method.frozen(*method.init(key)), jax.random.key(0)
  )
  stored = _unpack(arrays, 'encoder.')
  names = leaf_names(shapes)
  leaves = [
    stored.get(name, np.zeros(x.shape, np.float32))
    for name, x in zip(names, jax.tree.leaves(shapes))
  ]
  wrong = sorted(set(stored) - set(names)) + [
    name
    for name, have, want in zip(names, leaves, jax.tree.leaves(shapes))
    if have.shape != want.shape
  ]
  if wrong:
    raise ValueError(
      f'{path!r} was made by another version of the network: {wrong[:5]}. Make '
      'it anew with configs/bundle.py.'
    )
  variables = jax.device_put(
    jax.tree.unflatten(jax.tree.structure(shapes), leaves),
    sharding.replicated(sharding.make_mesh()),
  )
  params = {
    k: np.moveaxis(v, 1, -1) for k, v in _unpack(arrays, 'head.').items()
  }
  head = bundle.Bundle(params, arrays['shift'], arrays['scale'], text['head'])
  encoder = Encoder(method, variables, config, text['encoder']['info'])
  return assemble(encoder, head, meta, Fingerprints.from_arrays(arrays))

"""A classifier in forms that run without this package.

StableHLO by jax.export: one function from bytes of pixels to features or
probabilities, weights and noise inside, for cpu, cuda and tpu. And the tensors
of a UNet's way down as torch names and lays them out.

Letters: b pictures, s their side, c channels, d features, k classes, n bytes.
"""

from collections.abc import Callable, Sequence
import functools
import importlib.util
import json
import math
import os
import zlib

import jax
from jax import Array, export
import jax.numpy as jnp
import numpy as np

from micdiffrep_jax.bundle import torch_names
from micdiffrep_jax.bundle.classifier import Classifier
from micdiffrep_jax.encoders import features
from micdiffrep_jax.encoders.encoder import Encoder
from micdiffrep_jax.heads import matrix
from micdiffrep_jax.heads.table import HEADS
from micdiffrep_jax.run import archive, files
from micdiffrep_jax.run.checks import lookup
from micdiffrep_jax.run.keys import stream

FORMS = {'jax': 'flatbuffers', 'torch': 'safetensors'}  # the package of each
PLATFORMS = ('cpu', 'cuda', 'tpu')
_BYTE = 256


def check(forms: Sequence[str]) -> None:
  """Raises ValueError for a form that is none, or lacks its package."""
  for name in forms:
    package = lookup(FORMS, name, 'form', '--config.exports')
    if importlib.util.find_spec(package) is None:
      raise ValueError(
        f'The form {name!r} needs the package {package}: pip install '
        "'micdiffrep_jax[hub]'."
      )


@functools.cache
def _crc_table(n: int) -> tuple[np.ndarray, int]:
  """What each bit of a message of n bytes adds to its CRC: (n, 8) uint32.

  And the CRC of n zero bytes. A CRC is affine over bits: it is that of zeros,
  plus, without carry, what each bit that is set adds.
  """
  step = np.array([zlib.crc32(bytes([i])) for i in range(_BYTE)], np.uint32)
  step ^= step[0]  # linear part of one byte: state -> state after a zero byte
  table = np.empty((n, 8), np.uint32)
  state = step[1 << np.arange(8)]
  for i in reversed(range(n)):
    table[i] = state
    state = (state >> 8) ^ step[state & 0xFF]
  return table, zlib.crc32(bytes(n))


def image_seeds(images: Array) -> Array:
  """features.image_seeds on the device: CRC-32 (b,) uint32 of images' bytes.

  images (b, h, w, c) uint8.
  """
  flat = images.reshape(images.shape[0], math.prod(images.shape[1:]))
  table, zero = _crc_table(flat.shape[1])
  bits = (flat[:, :, None] >> jnp.arange(8, dtype=jnp.uint8)[None, None]) & 1
  added = jnp.where(bits.astype(bool), table[None], np.uint32(0))
  seeds = jax.lax.reduce(
    added, np.uint32(0), jax.lax.bitwise_xor, dimensions=(1, 2)
  )
  return seeds ^ np.uint32(zero)


def maps_fn(
  encoder: Encoder,
  layers: Sequence[str],
  t: int,
  cells: int,
  draws: int = 1,
  seed: int = 0,
) -> Callable[[Array], list[Array]]:
  """images (b, s, s, c) uint8 -> maps (b, g, g, d) float16 of each layer.

  What features.passes gives, as heads are fitted on it; g is at most `cells`.
  """
  variables = jax.device_get(encoder.variables)
  method = encoder.method

  def maps(images: Array) -> list[Array]:
    root, seeds = stream(jax.random.key(seed), 'features'), image_seeds(images)
    total: list[Array] = []
    for i in range(draws):
      keys = features.image_keys(jax.random.fold_in(root, i), seeds)
      taps = method.features(variables, images, keys, jnp.int32(t))
      means = [features.pool_map(taps[name], cells) for name in layers]
      total = [a + b for a, b in zip(total, means)] if total else means
    return [(x / draws).astype(jnp.float16) for x in total]

  return maps


def _flat(maps: Sequence[Array], cells: int) -> Array:
  """Maps pooled further, as matrix.pool does: (b, d) float16."""
  found = []
  for x in maps:
    b, g, _, d = x.shape
    to = min(cells, g)
    parts = x.reshape(b, to, g // to, to, g // to, d).astype(jnp.float32)
    pooled = parts.mean((2, 4)).astype(jnp.float16)
    found.append(pooled.reshape(b, to * to * d))
  return jnp.concatenate(found, axis=1)


def features_fn(
  encoder: Encoder, layers: Sequence[str], t: int, cells: int
) -> Callable[[Array], Array]:
  """images (b, s, s, c) uint8 -> features (b, d) float32, layers side by side.

  Those of api.Encoder.features, under its usual noise.
  """
  maps = maps_fn(encoder, layers, t, cells)
  return lambda images: _flat(maps(images), cells).astype(jnp.float32)


def classifier_fn(model: Classifier) -> Callable[[Array], Array]:
  """images (b, s, s, c) uint8 -> probabilities (b, k) float32.

  Those of classifier.bundle_predict, up to rounding. Raises ValueError for a
  head on deviations of cells.
  """
  members = [_member_fn(one) for one in model.members]

  def predict(images: Array) -> Array:
    return jnp.mean(jnp.stack([member(images) for member in members]), axis=0)

  return predict


def _member_fn(model: Classifier) -> Callable[[Array], Array]:
  """The same, of one encoder and its head."""
  head, info = model.head, model.head.info
  apply = HEADS[info.kind].apply
  if apply is None or info.deviation:
    raise ValueError(
      f'A head of kind {info.kind!r}, with deviation='
      f'{bool(info.deviation)}, has no form for jax.export. Leave jax '
      'out of --config.exports.'
    )
  read = maps_fn(
    model.encoder,
    info.layers,
    info.timestep,
    info.extracted_grid,
    info.draws,
    info.feature_seed,
  )
  params = {name: x[0] for name, x in head.params.items()}

  def predict(images: Array) -> Array:
    maps = read(images)
    x = _flat(maps, info.grid).astype(jnp.float32)
    z = (x - head.shift[None]) * head.scale[None]
    layout = matrix.layout([x.shape for x in maps], info.grid)
    logits = apply(params, z, layout)
    return jax.nn.softmax(logits / info.temperature, axis=-1)

  return predict


def serialise(
  function: Callable[[Array], Array],
  size_px: int,
  channels: int,
  platforms: Sequence[str] = PLATFORMS,
) -> bytes:
  """A function of images (b, s, s, c) uint8 as jax.export writes it, for any b.

  jax.export.deserialize(bytearray(...)).call(images) runs it where JAX and
  flatbuffers are. Raises ValueError where flatbuffers is not installed.
  """
  check(('jax',))
  (b,) = export.symbolic_shape('b')
  images = jax.ShapeDtypeStruct((b, size_px, size_px, channels), jnp.uint8)
  made = export.export(jax.jit(function), platforms=tuple(platforms))(images)
  return bytes(made.serialize())


def write(
  folder: str, model: Classifier, forms: Sequence[str]
) -> dict[str, str]:
  """Writes the forms asked for; returns the paths of the files by name.

  Of a committee the classifier alone: its encoders' features are of no one.
  Raises ValueError as `check` does.
  """
  check(forms)
  info, meta = model.head.info, model.meta
  found: dict[str, str] = {}

  def keep(name: str, content: bytes) -> None:
    found[name] = os.path.abspath(os.path.join(folder, name))
    files.write_whole(found[name], content)

  if 'jax' in forms:
    shape = meta.size_px, meta.channels
    request = info.layers, info.timestep, info.extracted_grid
    functions = {'classifier': classifier_fn(model)}
    if not model.others:  # they would be those of its first encoder alone
      functions['features'] = features_fn(model.encoder, *request)
    for name, function in functions.items():
      keep(f'{name}.jax_export', serialise(function, *shape))
  if 'torch' in forms:
    tensors, told = torch_names.unet_encoder(model.encoder, info.timestep)
    raw = archive.check_safetensors(folder).save(tensors)
    keep('unet_encoder.safetensors', raw)
    text = json.dumps(files.plain(told), indent=2) + '\n'
    keep('unet_encoder.json', text.encode())
  return found

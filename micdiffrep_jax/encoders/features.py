"""Frozen features: encoder and images -> pooled taps.

One forward pass gives every layer; what is not asked for the compiler drops.
The noise of an image is seeded by its own pixels, so its features are a
function of the image alone: the same for any order, batch or number of devices.
Whoever shows images to an encoder takes `batches` and `passes` from here, so
that training and deployment cannot drift apart.
Letters: b batch, n images, h w pixels, g grid cells per side, d features.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
from typing import Any, NamedTuple
import zlib

import jax
import numpy as np

from micdiffrep_jax.data.batches import eval_batches
from micdiffrep_jax.data.dataset import Dataset, Records
from micdiffrep_jax.diffusion.process import check_timesteps
from micdiffrep_jax.encoders import own_features
from micdiffrep_jax.encoders.encoder import Encoder
from micdiffrep_jax.methods import Reader
from micdiffrep_jax.methods.pooling import pool_map
from micdiffrep_jax.run import devices, log
from micdiffrep_jax.run.checks import lookup
from micdiffrep_jax.run.keys import stream


def check_request(
  method: Reader, layers: Sequence[str], timesteps: Sequence[int]
) -> tuple[str, ...]:
  """Returns the layers asked for, () meaning all.

  Raises ValueError for an unknown layer or a timestep out of range.
  """
  known = {name: name for name in method.layers}
  names = tuple(
    lookup(known, name, 'layer', '--config.layers') for name in layers
  )
  check_timesteps(timesteps, method.timesteps, '--config.timesteps')
  return names or method.layers


def timesteps_of(method: Reader, timesteps: Sequence[int]) -> Sequence[int]:
  """Those asked for; of a method without noise its one timestep, 0."""
  return timesteps if method.timesteps > 1 else (0,)


def image_seeds(images: np.ndarray) -> np.ndarray:
  """A seed (n,) uint32 per image (n, h, w, c) uint8, from its pixels alone."""
  return np.array([zlib.crc32(x.tobytes()) for x in images], np.uint32)


def image_keys(key: jax.Array, seeds: jax.Array) -> jax.Array:
  """One typed key (b,) per image."""
  return jax.vmap(lambda s: jax.random.fold_in(key, s))(seeds)


def make_feature_fn(
  method: Reader,
  layers: tuple[str, ...],
  grid: int,
  deviation: bool = False,
) -> Callable:
  """Compiles (variables, images, seeds, key, t) -> {layer: (b, g, g, d)}.

  images (b, h, w, c) uint8, seeds (b,) uint32, t () int32. The output is
  float32, pooled inside by pool_map, so that maps never leave the device.
  """

  @jax.jit
  def feature_fn(
    variables: Any, images: Any, seeds: Any, key: Any, t: Any
  ) -> dict[str, jax.Array]:
    taps = method.features(variables, images, image_keys(key, seeds), t)
    return {name: pool_map(taps[name], grid, deviation) for name in layers}

  return feature_fn


class Batch(NamedTuple):
  """Images on the devices, always b of them.

  images (b, h, w, c) uint8, seeds (b,) uint32, weights (b,) float32: 1 for the
  first `valid` images, 0 for those that fill up the batch.
  """

  images: jax.Array
  seeds: jax.Array
  weights: jax.Array
  valid: int


def batches(
  images: np.ndarray | Records,
  rows: np.ndarray,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  seeds: np.ndarray | None = None,
) -> Iterator[Batch]:
  """Places images[rows] on the devices, in order, in batches of one shape.

  seeds (N,) uint32 of the images' noise; by default those of their pixels.
  """
  shard = jax.process_index(), jax.process_count()
  left = len(rows)
  for batch, mask in eval_batches(images, rows, batch_size, shard):
    pixels = batch['image']
    own = image_seeds(pixels) if seeds is None else seeds[batch['index']]
    placed = devices.place((pixels, own, mask.astype(np.float32)), mesh)
    yield Batch(placed[0], placed[1], placed[2], min(left, batch_size))
    left -= batch_size


def noise_keys(
  seed: int, draws: int, mesh: jax.sharding.Mesh, first: int = 0
) -> list[jax.Array]:
  """Keys of the noise draws numbered first, first + 1, ..., on all devices."""
  root = stream(jax.random.key(seed), 'features')
  return [
    devices.replicate(jax.random.fold_in(root, first + i), mesh)
    for i in range(draws)
  ]


def passes(
  feature_fn: Callable,
  variables: Any,
  shown: Iterable[Batch],
  keys: Sequence[jax.Array],
  t: int,
  mesh: jax.sharding.Mesh,
  layers: Sequence[str] | None = None,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  """Yields (valid, {layer: (b, g, g, d) float32}) of each batch.

  Averaged over the noise of `keys`; `valid` as in Batch. feature_fn: of
  make_feature_fn; layers: those to fetch of its output, None for all.
  """
  level = devices.replicate(np.int32(t), mesh)
  for batch in shown:
    total: dict[str, np.ndarray] = {}
    for key in keys:
      out = feature_fn(variables, batch.images, batch.seeds, key, level)
      found = devices.fetch({k: out[k] for k in layers or out})
      total = {k: total[k] + v if total else v for k, v in found.items()}
    yield batch.valid, {k: v / len(keys) for k, v in total.items()}


def of_images(
  feature_fn: Callable,
  variables: Any,
  images: np.ndarray,
  t: int,
  draws: int,
  seed: int,
  batch_size: int,
  seeds: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Features of images in memory, {layer: (b, g, g, d)} of batch after batch.

  float16, as those that heads are fitted on. seed: of the noise of all images;
  seeds (n,): of each, by default of its pixels. The compiled batch is always of
  one size, so features do not depend on how many images come.
  """
  mesh = devices.make_mesh()
  size = -(-batch_size // mesh.size) * mesh.size
  shown = batches(images, np.arange(len(images)), size, mesh, seeds)
  keys = noise_keys(seed, draws, mesh)
  for valid, means in passes(feature_fn, variables, shown, keys, t, mesh):
    yield {k: v[:valid].astype(np.float16) for k, v in means.items()}


def weighted_means(
  found: Iterable[dict[str, tuple[jax.Array, jax.Array]]],
) -> dict[str, float]:
  """Means over batches of what Method.validate gives: {name: (sum, count)}.

  What was never counted is left out.
  """
  sums: dict[str, np.ndarray] = {}
  for batch in found:
    for name, pair in devices.fetch(batch).items():
      sums[name] = sums.get(name, np.zeros(2)) + np.array(pair)
  return {k: float(s[0] / s[1]) for k, s in sums.items() if s[1] > 0}


def extract(
  encoder: Encoder,
  dataset: Dataset,
  rows: np.ndarray,
  layers: Sequence[str] = (),
  t: int = 0,
  grid: int = 4,
  draws: int = 1,
  seed: int = 0,
  batch_size: int = 128,
  feature_fn: Callable | None = None,
  desc: str = 'features',
  first_draw: int = 0,
) -> dict[str, np.ndarray]:
  """Features of dataset rows, {layer: (n, g, g, d) float16}, in their order.

  Averaged over `draws` noise draws, numbered from `first_draw`. Pass the
  `feature_fn` of make_feature_fn to share its compilation. Raises
  ValueError for images of another size than the encoder's, an unknown layer, a
  timestep out of range or no rows.
  """
  names = check_request(encoder.method, layers, (t,))
  check_images(encoder, dataset)
  mesh = devices.make_mesh()
  devices.check_batch_size(batch_size, mesh, '--config.batch_size')
  feature_fn = feature_fn or make_feature_fn(encoder.method, names, grid)
  keys = noise_keys(seed, draws, mesh, first_draw)
  images, at = dataset.images, rows
  if encoder.table is not None:
    images = own_features.shown(encoder.table, dataset, rows)
    at = np.arange(len(rows))
  shown = batches(images, at, batch_size, mesh)
  found: dict[str, np.ndarray] = {}
  start = 0
  with log.progress(total=len(rows) * draws, desc=desc, unit='img') as bar:
    for valid, means in passes(
      feature_fn, encoder.variables, shown, keys, t, mesh, names
    ):
      for name, mean in means.items():
        if name not in found:
          found[name] = np.empty((len(rows), *mean.shape[1:]), np.float16)
        found[name][start : start + valid] = mean[:valid]
      start += valid
      bar.update(valid * draws)
  return found


def check_images(encoder: Encoder, dataset: Dataset) -> None:
  """Raises ValueError where images are not of the encoder's format.

  A table of features has no format: `meet` compares its ids.
  """
  if encoder.table is not None:
    return
  want = (encoder.info.size_px, encoder.info.channels)
  have = (dataset.info.size_px, dataset.info.channels)
  if want != have:
    raise ValueError(
      f'The encoder takes images of {want[0]} px with {want[1]} channel(s), '
      f'the dataset {dataset.path} has {have[0]} px and {have[1]}. Prepare it '
      'with '
      f'--config.data.size_px={want[0]} --config.data.channels={want[1]}.'
    )


def meet(encoder: Encoder, dataset: Dataset, rows: np.ndarray) -> Encoder:
  """The encoder, checked against a data set of which `rows` will be read.

  A table of features is compared with it, id by id, and its info then tells
  what did not match. Raises ValueError as check_images does, and for a table
  that lacks one of the rows.
  """
  check_images(encoder, dataset)
  table = encoder.table
  if table is None:
    return encoder
  names = dataset.manifest['id'][rows].tolist()
  told = table.compare(dataset)
  table.rows_of(names, '--config.checkpoint or --config.checkpoints')
  facts = {**encoder.info.facts, **told}
  return encoder._replace(info=dataclasses.replace(encoder.info, facts=facts))

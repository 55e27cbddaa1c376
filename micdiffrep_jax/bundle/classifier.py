"""A classifier: frozen encoder, head, and what is to be known of both.

Letters: n images, s their side, c channels, k classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from micdiffrep_jax.bundle.fingerprints import Fingerprints
from micdiffrep_jax.encoders import features
from micdiffrep_jax.encoders.encoder import Encoder
from micdiffrep_jax.heads import head_file
from micdiffrep_jax.run import devices
from micdiffrep_jax.run.keys import stream
from micdiffrep_jax.scores import calibration

BATCH = 32  # images at a time, always: results do not depend on how many come


class Portable(NamedTuple):
  """A classifier.

  encoder: frozen, zero where no weight is needed; head: see SavedHead;
  meta: classes, size_px, channels, preparation, low_confidence, split_hash
  and more; fingerprints of the images it was trained on.
  """

  encoder: Encoder
  head: head_file.SavedHead
  meta: dict[str, Any]
  fingerprints: Fingerprints
  feature_fn: Callable

  @property
  def classes(self) -> tuple[str, ...]:
    """Class names in the order of the probabilities."""
    return tuple(self.meta['classes'])


def assemble(
  encoder: Encoder,
  head: head_file.SavedHead,
  meta: dict[str, Any],
  fingerprints: Fingerprints,
) -> Portable:
  """Puts a classifier together; ValueError for layers that do not exist."""
  layers = tuple(head.info['layers'])
  features.check_request(encoder.method, layers, (head.info['timestep'],))
  feature_fn = features.make_feature_fn(
    encoder.method, layers, head.info['extracted_grid']
  )
  return Portable(encoder, head, meta, fingerprints, feature_fn)


def logits(
  model: Portable, images: np.ndarray, seeds: np.ndarray | None = None
) -> np.ndarray:
  """Logits (n, k) float32 of images (n, s, s, c) uint8, uncalibrated.

  seeds (n,) uint32 of the noise; by default those of the images' pixels.
  """
  size, channels = model.meta['size_px'], model.meta['channels']
  if images.shape[1:] != (size, size, channels) or images.dtype != np.uint8:
    raise ValueError(
      f'Images of shape {images.shape[1:]} and type {images.dtype} given; the '
      f'bundle takes ({size}, {size}, {channels}) uint8.'
    )
  info = model.head.info
  seeds = features.image_seeds(images) if seeds is None else seeds
  mesh = devices.make_mesh()
  batch = -(-BATCH // mesh.size) * mesh.size
  everywhere = devices.replicated(mesh)
  root = stream(jax.random.key(info['feature_seed']), 'features')
  keys = [
    jax.device_put(jax.random.fold_in(root, i), everywhere)
    for i in range(info['draws'])
  ]
  t = jax.device_put(np.int32(info['timestep']), everywhere)
  found = []
  for start in range(0, len(images), batch):
    at = np.arange(start, min(start + batch, len(images)))
    padded = np.resize(at, batch)
    placed = devices.place_whole((images[padded], seeds[padded]), mesh)
    total: dict[str, np.ndarray] = {}
    for key in keys:
      out = devices.fetch(
        model.feature_fn(model.encoder.variables, *placed, key, t)
      )
      total = {k: total[k] + v if total else v for k, v in out.items()}
    # float16, as the features that the head was trained on.
    extracted = {
      k: (v / len(keys)).astype(np.float16) for k, v in total.items()
    }
    found.append(head_file.logits(model.head, extracted)[: len(at)])
  return np.concatenate(found) if found else np.zeros((0, len(model.classes)))


def bundle_predict(
  model: Portable, images: np.ndarray, seeds: np.ndarray | None = None
) -> np.ndarray:
  """Calibrated probabilities (n, k) float64 of images (n, s, s, c) uint8.

  The same for an image in any company: its noise is seeded by its own pixels
  and the compiled batch is always of one size. Raises ValueError for images of
  another shape.
  """
  temperature = model.head.info['temperature']
  return calibration.softmax(logits(model, images, seeds), temperature)

"""A classifier: frozen encoder, head, what is to be known of both; its file.

The file is an npz archive of arrays and one JSON text, without pickle. Of the
encoder it holds only the weights that the head's layers depend on. A committee
is several pairs of encoder and head whose probabilities are averaged.

Letters: n images, s their side, c channels, k classes.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from micdiffrep_jax.bundle.fingerprints import Fingerprints
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.encoders.encoder import Encoder
from micdiffrep_jax.heads import head_file
from micdiffrep_jax.heads.base import HeadInfo, Params
from micdiffrep_jax.heads.table import HEADS
from micdiffrep_jax.methods.base import bearing
from micdiffrep_jax.run import archive
from micdiffrep_jax.run.checks import one_of
from micdiffrep_jax.run.records import Record
from micdiffrep_jax.scores import calibration
from micdiffrep_jax.scores.bootstrap import Score

WHICH = ('final', 'measured')  # heads of a file
BATCH = 32  # images at a time, always: results do not depend on how many come


@dataclasses.dataclass(frozen=True)
class Meta(Record):
  """What whoever gets a classifier must know of it; None is not known.

  Attributes:
    classes: names, in the order of the probabilities.
    size_px: side of the images that it takes.
    channels: of these images.
    low_confidence: probability of the best class below which it is unsure.
    normal_class: the class that scores are given with and without; '' for none.
    preparation: settings of the data set that it was trained on.
    dataset: fingerprint of that data set.
    split: of the data set.
    split_hash: of that split.
    same_data_in_pretraining: whether the encoder was pretrained on these data.
    training_images: that the head was fitted on.
    fitted_on_test_images: whether the test part was among them.
    measured_on: where it was, how many of the first fingerprints are of images
      that the head before had: `images`, and `untouched` ones among them.
    test: scores that the head which has not seen test has in this file, by set
      of images and metric.
  """

  classes: tuple[str, ...]
  size_px: int
  channels: int
  low_confidence: float
  normal_class: str
  preparation: Mapping[str, Any] | None = None
  dataset: str | None = None
  split: str | None = None
  split_hash: str | None = None
  same_data_in_pretraining: bool | None = None
  training_images: int | None = None
  fitted_on_test_images: bool | None = None
  measured_on: Mapping[str, int] | None = None
  test: Mapping[str, Mapping[str, Score]] | None = None


class Classifier(NamedTuple):
  """A frozen encoder, zero where no weight is needed, and a head on it.

  fingerprints: of the images that the head was trained on; feature_fn: of
  features.make_feature_fn, for the layers that the head reads; others: further
  members of a committee, whose own `others` are not read; measured: parameters
  of the head before it was fitted again on all images, where they are kept.
  """

  encoder: Encoder
  head: head_file.SavedHead
  meta: Meta
  fingerprints: Fingerprints
  feature_fn: Callable
  others: tuple['Classifier', ...] = ()
  measured: Params | None = None

  @property
  def members(self) -> tuple['Classifier', ...]:
    """All that have a say: one where there is no committee."""
    return (self, *self.others)

  @property
  def chosen(self) -> Mapping[str, Any]:
    """How the head is fed, as results tell it; of a committee each head."""
    each = [
      {'method': one.encoder.config.method, **one.head.info.to_json()}
      for one in self.members
    ]
    return {'members': each} if self.others else each[0]

  @property
  def classes(self) -> tuple[str, ...]:
    """Class names in the order of the probabilities."""
    return self.meta.classes


def assemble(
  encoder: Encoder,
  head: head_file.SavedHead,
  meta: Meta,
  fingerprints: Fingerprints,
) -> Classifier:
  """Puts a classifier together; ValueError for layers that do not exist."""
  info = head.info
  features.check_request(encoder.method, info.layers, (info.timestep,))
  feature_fn = features.make_feature_fn(
    encoder.method, info.layers, info.extracted_grid, bool(info.deviation)
  )
  return Classifier(encoder, head, meta, fingerprints, feature_fn)


def logits(
  model: Classifier, images: np.ndarray, seeds: np.ndarray | None = None
) -> np.ndarray:
  """Logits (n, k) float32 of images (n, s, s, c) uint8, uncalibrated.

  Of one encoder and its head, whatever committee they are in.

  seeds (n,) uint32 of the noise; by default those of the images' pixels.
  """
  size, channels = model.meta.size_px, model.meta.channels
  if images.shape[1:] != (size, size, channels) or images.dtype != np.uint8:
    raise ValueError(
      f'Images of shape {images.shape[1:]} and type {images.dtype} given; the '
      f'bundle takes ({size}, {size}, {channels}) uint8.'
    )
  if not len(images):
    return np.zeros((0, len(model.classes)))
  info = model.head.info
  extracted = features.of_images(
    model.feature_fn,
    model.encoder.variables,
    images,
    info.timestep,
    info.draws,
    info.feature_seed,
    BATCH,
    seeds,
  )
  return np.concatenate([head_file.logits(model.head, x) for x in extracted])


def bundle_predict(
  model: Classifier, images: np.ndarray, seeds: np.ndarray | None = None
) -> np.ndarray:
  """Calibrated probabilities (n, k) float64 of images (n, s, s, c) uint8.

  The same for an image in any company: its noise is seeded by its own pixels
  and the compiled batch is always of one size. Raises ValueError for images of
  another shape.
  """
  each = [
    calibration.softmax(logits(one, images, seeds), one.head.info.temperature)
    for one in model.members
  ]
  return np.mean(each, axis=0)


def needed(
  encoder: Encoder, layers: Sequence[str], size_px: int, channels: int
) -> dict[str, bool]:
  """Whether each leaf of the encoder's variables bears on any of the layers."""
  variables = encoder.variables
  used = bearing(encoder.method, variables, layers, size_px, channels)
  names = archive.leaf_names(variables)
  return dict(zip(names, map(bool, np.atleast_1d(used.any(0))), strict=True))


def _pack(
  model: Classifier, precision: str
) -> tuple[dict[str, np.ndarray], archive.Text]:
  """One encoder and its head, as arrays and as text."""
  encoder, head, meta = model.encoder, model.head, model.meta
  use = needed(encoder, head.info.layers, meta.size_px, meta.channels)
  leaves = dict(zip(use, jax.device_get(jax.tree.leaves(encoder.variables))))
  arrays: dict[str, np.ndarray] = {}
  for name, leaf in leaves.items():
    if use[name]:
      arrays |= archive.pack(f'encoder.{name}', leaf, precision)
  before = {
    name: x
    for name, x in (model.measured or {}).items()
    if not np.array_equal(x, head.params[name])
  }
  for start, params in {'head.': head.params, 'measured.': before}.items():
    for name, x in params.items():
      # Outputs lead in a head; they become the last axis, as in the encoder.
      x = np.moveaxis(x, -1, 1)
      if name in HEADS[head.info.kind].exact:
        x = x if precision == 'float32' else archive.trim(x)
        arrays[start + name] = x
      else:
        arrays |= archive.pack(start + name, x, precision)
  arrays |= {'shift': head.shift, 'scale': head.scale}
  return arrays, {
    'head': head.info,
    'encoder': {'config': encoder.config, 'info': encoder.info.to_json()},
  }


def contents(
  model: Classifier, precision: str
) -> tuple[dict[str, np.ndarray], archive.Text]:
  """All arrays of a classifier, rounded, and what else is known of it."""
  packed = [_pack(one, precision) for one in model.members]
  arrays, text = packed[0]
  if model.others:
    # No encoder by its plain name: who knows no committees refuses the file.
    text = {'members': [own for _, own in packed]}
    arrays = {
      f'members.{i}.{name}': x
      for i, (own, _) in enumerate(packed)
      for name, x in own.items()
    }
  arrays |= model.fingerprints.arrays()
  more = {'precision': precision, 'meta': model.meta.to_json()}
  return arrays, text | more


def write(path: str, model: Classifier, precision: str) -> None:
  """Writes a classifier; the file is whole or absent."""
  archive.write(path, *contents(model, precision))


def _unpack(
  arrays: dict[str, np.ndarray],
  text: archive.Text,
  path: str,
  meta: Meta,
  known: Fingerprints,
) -> Classifier:
  """The inverse of _pack."""
  encoder = encoders.of_archive(arrays, text, path)
  params, before = (
    {k: np.moveaxis(v, 1, -1) for k, v in archive.unpack(arrays, start).items()}
    for start in ('head.', 'measured.')
  )
  info = HeadInfo.from_json(text['head'])
  head = head_file.SavedHead(params, arrays['shift'], arrays['scale'], info)
  measured = {**params, **before} if before else None
  return assemble(encoder, head, meta, known)._replace(measured=measured)


def as_measured(model: Classifier) -> Classifier:
  """The classifier with the heads that have not seen test images.

  Raises ValueError where its file does not hold them.
  """
  meta = model.meta
  if not meta.fitted_on_test_images:
    return model
  if meta.measured_on is None or any(m.measured is None for m in model.members):
    raise ValueError(
      'The bundle holds no measured head: its head was fitted again on all '
      'images, test included, and the one before was not kept. Make it anew '
      'with configs/bundle.py, or leave out --config.head=measured.'
    )
  on = meta.measured_on
  meta = dataclasses.replace(
    meta, training_images=on['images'], fitted_on_test_images=False
  )
  first, *others = (
    one._replace(
      head=one.head._replace(params=one.measured or {}),
      meta=meta,
      fingerprints=one.fingerprints.first(on['images'], on['untouched']),
      measured=None,
    )
    for one in model.members
  )
  return first._replace(others=tuple(others))


def load_bundle(path: str, which: str = 'final') -> Classifier:
  """Reads a classifier; ValueError for a file that is none, or is damaged.

  which: 'final', or 'measured' for what as_measured makes of it.
  """
  if not path:
    raise ValueError('No bundle given. Set --config.bundle=FILE.')
  one_of(WHICH, which, 'head', '--config.head')
  model = _load(path)
  return as_measured(model) if which == 'measured' else model


def _load(path: str) -> Classifier:
  arrays, text = archive.read(path)
  try:
    meta = Meta.from_json(text['meta'])
    known = Fingerprints.from_arrays(arrays)
    if 'members' not in text:
      return _unpack(arrays, text, path, meta, known)
    first, *others = (
      _unpack(
        {
          name.removeprefix(f'members.{i}.'): x
          for name, x in arrays.items()
          if name.startswith(f'members.{i}.')
        },
        own,
        path,
        meta,
        known,
      )
      for i, own in enumerate(text['members'])
    )
    return first._replace(others=tuple(others))
  except (LookupError, TypeError, AttributeError, ArithmeticError) as e:
    raise ValueError(
      f'{path!r} lacks what a bundle holds, or is damaged '
      f'({type(e).__name__}: {e}). Make it anew with configs/bundle.py.'
    ) from e

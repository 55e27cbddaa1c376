"""Frozen encoders and classifiers, opened by their path.

Letters: n pictures, s their side, c channels, d features, k classes.
"""

from collections.abc import Callable, Sequence
import os

import numpy as np

from micdiffrep_jax.api.pictures import Pictures, to_batch
from micdiffrep_jax.bundle import classifier, portable
from micdiffrep_jax.bundle.classifier import BATCH, Classifier, Meta
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import prepare
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features, own_features
from micdiffrep_jax.heads import matrix
from micdiffrep_jax.run import files, paths
from micdiffrep_jax.run.checks import lookup, whole_number

_NO_HEAD = (
  'This encoder has no head, so it tells no classes: fit one on its features '
  '(KernelClassifier, MSFAClassifier), or load a bundle of configs/bundle.py.'
)
GROUPS = ('encoder', 'decoder', 'all')  # of layers


class Encoder:
  """Frozen weights that read features of pictures; a bundle also classifies.

  Pictures are an array (n, h, w) or (n, h, w, c), or a list of arrays (h, w) or
  (h, w, c) of any sizes, grey, RGB or RGB with alpha; or a list of paths.
  uint8 is taken as it is, the range of any other type is scaled picture by
  picture, all are padded with black to a square and resized: the rules by which
  files are read.

  Attributes:
    layers: names of what can be read, from the input onward.
    size_px: side that pictures are resized to.
    channels: 1 (grey) or 3 (RGB) that pictures are turned into.
    timesteps: number of noise levels, 1 for an encoder without noise.
    classes: names in the order of the probabilities; () without a head.
    info: what is known of the weights, by name.
  """

  def __init__(
    self, encoder: encoders.Encoder, model: Classifier | None = None
  ):
    """What `load` gives. encoder: the weights; model: with a head on them."""
    self._encoder, self._model = encoder, model
    info = encoder.info
    self._meta = Meta((), info.size_px, info.channels, 0.0, '')
    self._functions: dict[tuple[tuple[str, ...], int], Callable] = {}
    if model is not None:
      self._meta = model.meta
    self.layers: tuple[str, ...] = encoder.method.layers
    self.size_px: int = info.size_px
    self.channels: int = info.channels
    self.timesteps: int = encoder.method.timesteps
    self.classes: tuple[str, ...] = self._meta.classes
    self.info = info.to_json()

  def __repr__(self) -> str:
    """What it is, in a line."""
    head = f', classes={self.classes}' if self.classes else ''
    return (
      f'Encoder(size_px={self.size_px}, channels={self.channels}, '
      f'layers={self.layers}{head})'
    )

  def features(
    self,
    images: Pictures,
    t: int = 1,
    layers: str | Sequence[str] = 'encoder',
    cells: int = 4,
    draws: int = 1,
    seed: int = 0,
  ) -> np.ndarray:
    """Features (n, d) float32 of pictures, the layers side by side.

    Each layer is averaged over cells x cells parts of the picture (fewer where
    its map has fewer) and flattened as (cells, cells, channels). The values are
    rounded to float16, as those that all heads are fitted on. The noise of a
    picture is seeded by its pixels: it has the same features in any company.

    t: noise level in [0, timesteps), 0 the least; without effect where there
    are none. layers: 'encoder', 'decoder', 'all', a name, or several names.
    draws: of noise, averaged; seed: of the noise. Raises ValueError for a
    layer, level or picture that cannot be had.
    """
    whole_number(cells, 1, 1024, 'cells')
    whole_number(draws, 1, 1024, 'draws')
    whole_number(seed, 0, 2**32 - 1, 'seed')
    names, level = self.layers_of(layers), self._level(t)
    batch = to_batch(images, self._meta)
    if (names, cells) not in self._functions:  # compiled once
      made = features.make_feature_fn(self._encoder.method, names, cells)
      self._functions[names, cells] = made
    function, variables = self._functions[names, cells], self._encoder.variables
    found = [
      np.concatenate([matrix.pool(means[k], cells) for k in names], 1)
      for means in features.of_images(
        function, variables, batch, level, draws, seed, BATCH
      )
    ]
    x = np.concatenate(found).astype(np.float32)
    if not np.isfinite(x).all():
      raise ValueError(f'Layers {names} have features beyond float16.')
    return x

  def layers_of(self, layers: str | Sequence[str]) -> tuple[str, ...]:
    """The names that `layers` of `features` stands for.

    Raises ValueError for a name that is not known, for none at all, and for a
    committee, whose encoders have layers of the same names.
    """
    if self._model is not None and self._model.others:
      raise ValueError(
        f'This is a committee of {len(self._model.members)} encoders: it tells '
        'probabilities, and features only in a bundle of each encoder.'
      )
    method = self._encoder.method
    if isinstance(layers, str) and layers in GROUPS:
      wanted = layers == 'decoder'
      names = tuple(
        name
        for name in method.layers
        if layers == 'all' or (name in method.decoder) == wanted
      )
      if not names:
        raise ValueError(f'No layer of {method.layers} is of the {layers}.')
      return names
    try:
      names = (layers,) if isinstance(layers, str) else tuple(layers)
    except TypeError:
      names = ()
    known = dict.fromkeys((*method.layers, *GROUPS), '')
    for name in names:
      lookup(known, name, 'layer')
    if not names or set(names) & set(GROUPS) or len(set(names)) < len(names):
      raise ValueError(
        f'layers={layers!r}: give names of {method.layers}, each once, or one '
        f'of {GROUPS} alone.'
      )
    return names

  def _level(self, t: int) -> int:
    if self.timesteps == 1:
      return 0
    whole_number(t, 0, self.timesteps - 1, 't', '0 is the least noise.')
    return int(t)

  def predict_proba(self, images: Pictures) -> np.ndarray:
    """Calibrated probabilities (n, k) float64, those of configs/predict.py.

    Columns are `classes`. Raises ValueError for an encoder without a head.
    """
    if self._model is None:
      raise ValueError(_NO_HEAD)
    batch = to_batch(images, self._meta)
    return classifier.bundle_predict(self._model, batch)

  def export_features(
    self,
    path: str | os.PathLike,
    t: int = 1,
    layers: str | Sequence[str] = 'encoder',
    cells: int = 4,
  ) -> None:
    """Writes `features` as a file that runs on cpu, cuda and tpu without this.

    jax.export.deserialize(bytearray(content)).call(images) takes squares
    (n, s, s, c) uint8, of any n, and gives (n, d) float32.
    """
    whole_number(cells, 1, 1024, 'cells')
    names, level = self.layers_of(layers), self._level(t)
    function = portable.features_fn(self._encoder, names, level, cells)
    shape = self.size_px, self.channels
    files.write_whole(path, portable.serialise(function, *shape))

  def export_classifier(self, path: str | os.PathLike) -> None:
    """Writes `predict_proba` as export_features does: (n, k) float32."""
    if self._model is None:
      raise ValueError(_NO_HEAD)
    function = portable.classifier_fn(self._model)
    shape = self.size_px, self.channels
    files.write_whole(path, portable.serialise(function, *shape))


def _text(path: str | os.PathLike, example: str) -> str:
  """A path as text; ValueError, with an example, for what is none."""
  if not isinstance(path, str | os.PathLike) or not os.fspath(path):
    given = f', but {path!r}' if path else ''
    raise ValueError(f'No path given{given}: {example}.')
  return os.fspath(path)


def load(path: str | os.PathLike) -> Encoder:
  """Opens a bundle (a file or a hub's folder), or a pretraining run's folder.

  Nothing is fetched. Raises ValueError where there is neither, or it is
  damaged.
  """
  name = _text(path, "load('bundle.npz'), or a run's folder")
  if not os.path.exists(paths.expand(name)) and '://' not in name:
    raise ValueError(
      f"{name!r} does not exist. Give a bundle, a hub's folder of one, or the "
      'folder of a pretraining run.'
    )
  if encoders.is_bundle(name):
    if own_features.is_table(name):
      raise ValueError(
        f'{name!r} is a table of features, which sees no picture. Fit a head '
        'on them, or compare it with --config.checkpoints of a study.'
      )
    model = classifier.load_bundle(name)
    return Encoder(model.encoder, model)
  try:
    return Encoder(encoders.load_encoder(name))
  except (KeyError, ImportError) as e:  # a store that epath does not know
    raise ValueError(f'{name!r} cannot be opened: {e}.') from e


def open_dataset(path: str | os.PathLike) -> data.Dataset:
  """Opens what configs/prepare.py wrote, or 'phantom[:size_px=32,...]'.

  Its `images[rows]` are (n, s, s, c) uint8. Whose they are and what they show
  is read by functions of micdiffrep_jax.data.dataset: labels(ds), groups(ds),
  patients(ds), rows(ds, split, part). Raises ValueError for a folder that is
  no data set, or has changed since.
  """
  name = _text(path, "open_dataset('datasets/mine'), or 'phantom'")
  return data.open_dataset(prepare.resolve(name))

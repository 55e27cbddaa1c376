"""What a pretraining method is to the rest of the code."""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from micdiffrep_jax.data.dataset import Dataset

Tree = Any
Sums = dict[str, tuple[jax.Array, jax.Array]]
# What the optimizer moves, and what it does not: EMA, target network, queue.
State = tuple[Tree, Tree]
Batch = dict[str, jax.Array]
Taps = dict[str, jax.Array]  # {layer: (b, h', w', d)}
Loss = tuple[jax.Array, tuple[Tree, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
  """How features are read from weights; nothing here trains.

  Images are uint8 (b, h, w, c). keys are (b,) typed keys, one per image, so
  that what is drawn for an image does not depend on its batch.

  Attributes:
    init: key -> (params, extra).
    frozen: params, extra -> variables, all that the functions below read.
    features: variables, images, keys, t () int32 -> {layer: (b, h', w', d)
      float32}; the caller jits and keeps the layers it wants.
    layers: names that `features` knows, from the input onward.
    decoder: those of `layers` that belong to a decoder.
    timesteps: number of noise levels that `features` knows; 1 where the method
      has none.
    output: the layer whose average over pixels stands for an image where one
      vector is wanted; '' for the last of `layers`.
    encoder: variables -> the parameters that `features` is made of: no decoder,
      projector, queue or running average, which training alone needs.
    facts: what every result must say of the method beside its name.
  """

  init: Callable[[jax.Array], State]
  frozen: Callable[[Tree, Tree], Tree]
  features: Callable[[Tree, jax.Array, jax.Array, jax.Array], Taps]
  layers: tuple[str, ...]
  decoder: tuple[str, ...] = ()
  timesteps: int = 1
  output: str = ''
  encoder: Callable[[Tree], Tree] = lambda variables: variables
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def restrict(self, layers: Collection[str]) -> 'Reader':
    """The reader of these layers alone, where other weights are not at hand."""
    return Reader(
      init=self.init,
      frozen=self.frozen,
      features=self.features,
      layers=tuple(name for name in self.layers if name in layers),
      decoder=tuple(name for name in self.decoder if name in layers),
      timesteps=self.timesteps,
      output=self.output if self.output in layers else '',
      encoder=self.encoder,
      facts=self.facts,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(Reader):
  """A reader whose weights can be trained: pure functions over its state.

  Attributes:
    loss: params, extra, batch {'image'}, key -> (), (extra, metrics).
    after: params, extra, step -> extra; once an update (EMA, target network).
    validate: variables, images, keys, weights (b,) -> {name: (sum, count)},
      to be summed over batches and divided once.
    sample: variables, keys -> (b, h, w, c) float32 in [-1, 1]; None where the
      method generates nothing.
    metrics: names of what `loss` reports, logged as running means.
    side: dataset -> {name: (N, ...) array}, rows that travel with their images
      in `batch` (labels, captions); None where images are all there is.
    row: shape and dtype of one row of each array that `side` gives, and of
      'teacher', the maps that a run reads for a method with config.teacher.
    check: number of training images -> None; ValueError where they do not suit
      the settings. None where any number does.
    rates: params -> for each leaf what its learning rate is multiplied by; None
      where all have the same.
  """

  loss: Callable[[Tree, Tree, Batch, jax.Array], Loss]
  after: Callable[[Tree, Tree, jax.Array], Tree]
  validate: Callable[..., Sums]
  sample: Callable[[Tree, jax.Array], jax.Array] | None = None
  metrics: tuple[str, ...] = ('loss',)
  side: Callable[[Dataset], dict[str, np.ndarray]] | None = None
  row: Mapping[str, jax.ShapeDtypeStruct] = dataclasses.field(
    default_factory=dict
  )
  check: Callable[[int], None] | None = None
  rates: Callable[[Tree], Tree] | None = None


def trainable(method: Reader, name: str) -> Method:
  """The method; ValueError for the reader of an encoder that others trained."""
  if not isinstance(method, Method):
    raise ValueError(
      f'{name!r} is an encoder that others trained; it is converted by '
      'configs/convert_clip.py and probed, not pretrained. Set --config.method.'
    )
  return method


def bearing(
  reader: Reader,
  variables: Tree,
  layers: Sequence[str],
  size_px: int,
  channels: int,
) -> np.ndarray:
  """Whether a layer depends on a leaf of the variables: (layers, leaves) bool.

  variables: arrays or their shapes.
  """
  leaves, tree = jax.tree.flatten(variables)

  def taps(leaves: Any, images: Any, keys: Any, t: Any) -> list[jax.Array]:
    found = reader.features(jax.tree.unflatten(tree, leaves), images, keys, t)
    return [found[name] for name in layers]

  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
  images = jax.ShapeDtypeStruct((1, size_px, size_px, channels), jnp.uint8)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  t = jax.ShapeDtypeStruct((), jnp.int32)
  jaxpr = jax.make_jaxpr(taps)(shapes, images, keys, t).jaxpr
  found = []
  for output in jaxpr.outvars:
    # Backwards from it: an equation counts if what it makes is used.
    live = {id(output)}
    for equation in reversed(jaxpr.eqns):
      if any(id(v) in live for v in equation.outvars):
        live |= {id(v) for v in equation.invars}
    found.append([id(v) in live for v in jaxpr.invars[: len(leaves)]])
  return np.array(found)


def noiseless(taps: Callable[[Tree, jax.Array], Taps]) -> Callable[..., Taps]:
  """`features` of a method that draws nothing: taps of variables and images."""

  def features(
    variables: Tree, images: jax.Array, keys: jax.Array, t: jax.Array
  ) -> Taps:
    del keys, t
    return taps(variables, images)

  return features


def apply(model: Any, params: Tree, *args: Any) -> Any:
  """What a flax module gives under these parameters."""
  return model.apply({'params': params}, *args)


def unchanged(params: Tree, extra: Tree, step: jax.Array) -> Tree:
  """`after` of a method whose extra no update moves."""
  del params, step
  return extra


def no_sums(
  variables: Tree, images: jax.Array, keys: jax.Array, weights: jax.Array
) -> Sums:
  """`validate` of a method that leaves what validation images go with unread.

  Labels and captions: probes judge such a method.
  """
  del variables, images, keys, weights
  return {}


def check_share(flag: str, value: float) -> None:
  """Raises ValueError for the decay of a moving average outside [0, 1)."""
  if not 0 <= value < 1:
    name = flag.removeprefix('--config.')
    raise ValueError(f'{name}={value} is outside [0, 1). Set {flag}.')


def loss_sums(error: jax.Array, weights: jax.Array) -> Sums:
  """What `validate` says of an error per image (b,)."""
  return {'loss': (jnp.sum(weights * error), jnp.sum(weights))}


def to_float(images: jax.Array) -> jax.Array:
  """uint8 [0, 255] -> float32 [-1, 1], on the device: bytes travel."""
  return images.astype(jnp.float32) / 127.5 - 1.0


def ema(old: Tree, new: Tree, decay: jax.typing.ArrayLike) -> Tree:
  """decay old + (1 - decay) new, leaf by leaf."""
  return jax.tree.map(lambda o, n: o + (1.0 - decay) * (n - o), old, new)

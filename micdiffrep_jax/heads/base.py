"""What a head is: fitted on features, it predicts; all kinds alike.

Letters: n rows, d features, k classes, v validation rows, a heads side by side.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from micdiffrep_jax.heads.matrix import Features, Maps
from micdiffrep_jax.run.records import Record

BLOCK = 256  # rows at a time

Params = dict[str, Any]
Settings = Mapping[str, Any]  # of a head, by name: a rate, a strength
# params, x (b, d), maps -> logits (b, k)
Apply = Callable[[Any, Array, Maps], Array]


class Problem(NamedTuple):
  """What a head is fitted on: rows to train on and rows to choose on.

  features of n rows, their labels (n,) int, -1 where a head must not read
  them; classes k; train and validation: row numbers.
  """

  features: Features
  labels: np.ndarray
  classes: int
  train: np.ndarray
  validation: np.ndarray


class Fitted(NamedTuple):
  """A fitted head.

  params: what its `predict` reads; of a head that can be saved they are arrays
  with a leading axis of one. chosen: its settings by name; score: the accuracy
  on validation rows that they were chosen for; told: what a result says of the
  fit besides; logits (v, k) of the validation rows where fitting gives them;
  tried: settings by name, with their scores.
  """

  params: Params
  chosen: Settings
  score: float
  told: Settings = MappingProxyType({})
  logits: np.ndarray | None = None
  tried: tuple[tuple[Settings, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class HeadInfo(Record):
  """What is known of a fitted head: which features it reads, and what it tells.

  Attributes:
    kind: as Head has it.
    layers: that it reads, side by side.
    timestep: of the noise.
    grid: cells a side that it reads.
    extracted_grid: cells a side that its features were first averaged over.
    draws: of the noise, whose features are averaged.
    feature_seed: of these draws.
    temperature: by which its logits are divided.
    deviation: whether it reads each cell's deviation too; older heads do not.
    classes: names, in the order of the logits.
    dataset: fingerprint of the data set that it was fitted on.
    preparation: settings of that data set.
    split: of the data set.
    split_hash: of that split.
    training_images: that it was fitted on, where its study chose a share.
    encoder: what is known of the encoder, as its info tells it.
    checkpoint: where the encoder was read.
    settings: those that its kind chooses, and what else was told of the fit.
  """

  REST = 'settings'
  kind: str
  layers: tuple[str, ...]
  timestep: int
  grid: int
  extracted_grid: int
  draws: int
  feature_seed: int
  temperature: float
  deviation: bool | None = None
  classes: tuple[str, ...] = ()
  dataset: str = ''
  preparation: Mapping[str, Any] | None = None
  split: str = ''
  split_hash: str = ''
  training_images: int | None = None
  encoder: Mapping[str, Any] | None = None
  checkpoint: str | None = None
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Head(NamedTuple):
  """A kind of head.

  predict(params, features) -> (n, k): logits, or probabilities where it is not
  `calibrated` by a temperature. fit(problem, **settings) -> Fitted, where each
  setting is a tuple of what to try; None for a head that trained.fit trains.
  chooses: the names of its settings; kind: what its file says, '' for a head
  that has none; exact: its parameters that no file may round to a byte; apply:
  the JAX function behind predict, None where there is none. refit(problem,
  params, **settings) -> the params fitted again on more rows, and those of
  before as they share arrays with them; None for a head that `fit` fits anew.
  """

  predict: Callable[[Params, Features], np.ndarray]
  fit: Callable[..., Fitted] | None = None
  chooses: tuple[str, ...] = ()
  kind: str = ''
  calibrated: bool = True
  exact: tuple[str, ...] = ()
  apply: Apply | None = None
  refit: Callable[..., tuple[Params, Params]] | None = None


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply_block(
  apply: Apply, maps: Maps, params: Any, x: Array, shift: Array, scale: Array
) -> Array:
  part = (x.astype(jnp.float32) - shift[None, :]) * scale[None, :]
  return jax.vmap(lambda p: apply(p, part, maps))(params)


def apply_all(apply: Apply, params: Params, features: Features) -> np.ndarray:
  """Logits (a, n, k) of all rows, averaged over draws, of heads (a, ...)."""
  x = features.x[None] if features.x.ndim == 2 else features.x
  n, maps = x.shape[1], features.maps
  blocks = []
  for start in range(0, n, BLOCK):
    at = np.resize(np.arange(start, min(n, start + BLOCK)), BLOCK)
    one = [
      _apply_block(
        apply, maps, params, draw[at], features.shift, features.scale
      )
      for draw in x
    ]
    blocks.append(np.mean(one, axis=0))
  return np.concatenate(blocks, axis=1)[:, :n]


def head_of(
  apply: Apply,
  fit: Callable[..., Fitted] | None,
  chooses: tuple[str, ...] = (),
  kind: str = '',
  exact: tuple[str, ...] = (),
  refit: Callable[..., tuple[Params, Params]] | None = None,
) -> Head:
  """A head whose logits a JAX function gives."""

  def predict(params: Params, features: Features) -> np.ndarray:
    return apply_all(apply, params, features)[0]

  return Head(
    predict, fit, chooses, kind, exact=exact, apply=apply, refit=refit
  )

"""Trains many heads on frozen features at once.

One head is a plain function with its steps in a scan; all others come by vmap:
over settings (learning rate x weight decay), which share their batches, and
over cells (feature set x rows x seed), whose features are padded to a common
width. Padded columns are zero and so are their gradients, so a head does not
depend on that width. Cells are split over the devices, and packed into chunks
that fit into memory.

Letters: n rows of a feature set, d features, k classes, b batch, s steps of an
epoch, e evaluation rows, r noise draws of the features, a settings, c cells.
"""

from collections.abc import Callable, Iterable, Sequence
import functools
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.heads.base import BLOCK, Apply
from micdiffrep_jax.heads.matrix import Features, Maps
from micdiffrep_jax.heads.nets import HEADS, Params
from micdiffrep_jax.run import devices
from micdiffrep_jax.run.checks import lookup


class Options(NamedTuple):
  """How every head of one call is trained. Hashable: it is a jit constant."""

  kind: str = 'linear'
  hidden: int = 256
  bias: bool = True
  epochs: int = 15  # passes over the largest `rows` of the call
  batch_size: int = 128
  dropout: float = 0.0  # of features
  feature_noise: float = 0.0  # standard deviation, after standardising
  label_smoothing: float = 0.0
  best_epoch: bool = False  # keep the epoch with the best evaluation accuracy
  trace: bool = False  # evaluation accuracy of every epoch
  maps: Maps = ()  # of all features, where the head reads them


class Cell(NamedTuple):
  """One training problem: which features, which rows of them, which seed."""

  features: int
  rows: np.ndarray
  seed: int = 0


class Setting(NamedTuple):
  """What is tried on every cell; weight decay is decoupled (AdamW)."""

  learning_rate: float
  weight_decay: float = 0.0


class Trained(NamedTuple):
  """The heads of one cell, one per setting.

  logits (a, e, k) float32 of the evaluation rows; trace (a, epochs) accuracy
  or (a, 0); params: arrays with a leading axis a, or None.
  """

  logits: np.ndarray
  trace: np.ndarray
  params: dict[str, np.ndarray] | None


class Data(NamedTuple):
  """What all heads of a chunk share, on the device.

  x (sets, r, n, d), shift and scale (sets, d); labels (n,); class_weights (k,);
  rows (e,) to evaluate and row_weights (e,), 0 on padding.
  """

  x: Any
  shift: Any
  scale: Any
  labels: Any
  class_weights: Any
  rows: Any
  row_weights: Any


def options_of(heads: ConfigDict, kind: str) -> Options:
  """The training options of config.heads."""
  return Options(
    kind,
    heads.hidden,
    heads.bias,
    heads.epochs,
    heads.batch_size,
    heads.dropout,
    heads.feature_noise,
    heads.label_smoothing,
    heads.best_epoch,
  )


def settings_of(heads: ConfigDict) -> list[Setting]:
  """All settings that config.heads asks for."""
  return [
    Setting(rate, decay)
    for rate in heads.learning_rates
    for decay in heads.weight_decays
  ]


def class_weights(balanced: bool, y: np.ndarray, k: int) -> np.ndarray:
  """Ones, or inverse frequencies where `balanced`."""
  if not balanced:
    return np.ones(k)
  return len(y) / (k * np.maximum(np.bincount(y, minlength=k), 1))


def _gather(data: Data, which: Array, draws: Any, rows: Array) -> Array:
  """Standardised float32 rows (b, d) of a feature set."""
  part = data.x[which, draws, rows].astype(jnp.float32)
  return (part - data.shift[which][None, :]) * data.scale[which][None, :]


def _evaluate(
  apply: Apply, maps: Maps, params: Params, data: Data, which: Array
) -> Array:
  """Logits (e, k), averaged over the draws; e divides by the block."""
  rows = data.rows

  def block(at: Array) -> Array:
    def draw(r: Array) -> Array:
      return apply(params, _gather(data, which, r, at), maps)

    return jnp.mean(jax.lax.map(draw, jnp.arange(data.x.shape[1])), 0)

  logits = jax.lax.map(block, rows.reshape(-1, min(BLOCK, len(rows))))
  return logits.reshape(len(rows), -1)


def _accuracy(logits: Array, data: Data) -> Array:
  right = jnp.argmax(logits, -1) == data.labels[data.rows]
  return jnp.sum(right * data.row_weights) / jnp.sum(data.row_weights)


def _augment(options: Options, part: Array, padded: Array, key: Array) -> Array:
  """Noise and dropout of features (b, d), none where they are padding."""
  # Drawn as (d, b): so the first columns do not depend on the padding.
  key_noise, key_drop = jax.random.split(key)
  if options.feature_noise:
    noise = jax.random.normal(key_noise, part.T.shape).T
    noise = jnp.where(padded[None, :], 0.0, noise)
    part = part + options.feature_noise * noise
  if options.dropout:
    keep = jax.random.bernoulli(key_drop, 1 - options.dropout, part.T.shape).T
    part = jnp.where(keep, part / (1 - options.dropout), 0.0)
  return part


def _descend(
  params: Params, updates: Params, rate: Array, weight_decay: Array
) -> Params:
  """One step of AdamW; biases are not decayed."""
  return {
    name: value
    - rate
    * (
      updates[name] + (0.0 if name.endswith('_bias') else weight_decay) * value
    )
    for name, value in params.items()
  }


def train_head(
  options: Options,
  data: Data,
  which: Array,  # () the feature set
  width: Array,  # () its columns before padding
  batches: tuple[Array, Array],  # rows and draws, (epochs, s, b)
  key: Array,
  setting: Array,  # (2,) learning rate, weight decay
) -> tuple[Any, Array, Array]:
  """One head, from start to end: parameters, trace, evaluation logits."""
  import optax  # for training alone; a bundle needs none

  head = HEADS[options.kind]
  d, k = data.x.shape[-1], len(data.class_weights)
  learning_rate, weight_decay = setting
  key_init, key_train = jax.random.split(key)
  maps = options.maps
  params = head.init(key_init, width, d, options.hidden, k, options.bias, maps)
  evaluate = functools.partial(_evaluate, head.apply, maps)
  adam = optax.scale_by_adam()
  updates_in_all = batches[0].shape[0] * batches[0].shape[1]
  padded = jnp.arange(d) >= width

  def loss(params: Params, part: Array, y: Array) -> Array:
    target = optax.smooth_labels(jax.nn.one_hot(y, k), options.label_smoothing)
    if head.members:  # the sum of their losses trains each as if alone
      said = head.members(params, part, maps)
    else:
      said = head.apply(params, part, maps)[None]
    target = jnp.broadcast_to(target, said.shape)
    value = optax.softmax_cross_entropy(said, target).sum(0)
    weight = data.class_weights[y]
    return jnp.sum(weight * value) / jnp.sum(weight)

  def update(carry: Any, batch: Any) -> tuple[Any, None]:
    params, state, step = carry
    rows, draws = batch
    part = _gather(data, which, draws, rows)
    if options.feature_noise or options.dropout:
      key_step = jax.random.fold_in(key_train, step)
      part = _augment(options, part, padded, key_step)
    grads = jax.grad(loss)(params, part, data.labels[rows])
    updates, state = adam.update(grads, state)
    rate = 0.5 * learning_rate * (1 + jnp.cos(jnp.pi * step / updates_in_all))
    params = _descend(params, updates, rate, weight_decay)
    return (params, state, step + 1), None

  def epoch(carry: Any, batch: Any) -> tuple[Any, Array]:
    carry, best, best_value = carry
    carry, _ = jax.lax.scan(update, carry, batch)
    if not (options.best_epoch or options.trace):
      return (carry, best, best_value), jnp.zeros(())
    value = _accuracy(evaluate(carry[0], data, which), data)
    if options.best_epoch:
      better = value > best_value
      best = jax.tree.map(
        lambda new, old: jnp.where(better, new, old), carry[0], best
      )
      best_value = jnp.maximum(value, best_value)
    return (carry, best, best_value), value

  best = params if options.best_epoch else {}
  carry = ((params, adam.init(params), jnp.int32(0)), best, jnp.float32(-1.0))
  ((params, _, _), best, _), trace = jax.lax.scan(epoch, carry, batches)
  params = best if options.best_epoch else params
  return params, trace, evaluate(params, data, which)


@functools.partial(jax.jit, static_argnums=0)
def train_cells(
  options: Options, data: Data, cells: tuple, settings: Array
) -> tuple[Any, Array, Array]:
  """Runs train_head over cells (c) and, within them, over settings (a).

  cells: which, width, batches and seed of train_head, each with an axis c.
  """
  which, width, batches, seeds = cells
  keys = jax.vmap(jax.random.key)(seeds)
  one = jax.vmap(
    functools.partial(train_head, options), in_axes=(None,) * 5 + (0,)
  )
  many: Any = jax.vmap(one, in_axes=(None, 0, 0, 0, 0, None))
  return many(data, which, width, batches, keys, settings)


def _bucket(width: int) -> int:
  """The next width of 16, 24, 32, 48, 64 ...: few shapes, few compilations."""
  size = 16
  while size < width:
    if size * 3 // 2 >= width:
      return size * 3 // 2
    size *= 2
  return size


def _cell_bytes(
  options: Options, d: int, k: int, settings: int, rows: int
) -> int:
  """Estimated device memory of one cell beside its features."""
  hidden = k if options.kind == 'linear' else options.hidden
  params = (d + k) * hidden
  copies = 4 + options.best_epoch  # parameters, two moments, gradient, best
  scored = BLOCK * (d + settings * hidden) + settings * rows * k
  batch = 3 * options.batch_size * (d + settings * hidden)
  return 4 * (settings * params * copies + scored + batch)


def plan(
  sets: Sequence[Features],
  which: Sequence[int],
  cell_bytes: Callable[[int], int],
  memory_mb: int,
  by_maps: bool = False,
) -> list[list[int]]:
  """Chunks of cell numbers that fit into memory and share a padded width.

  which: the feature set of each cell; cell_bytes: padded width -> bytes;
  by_maps: those of a chunk share the maps of their features too.

  A chunk holds at least one cell, however large. Cells of one feature set stay
  together, so that it is moved to the device once.
  """

  def shape(i: int) -> tuple[int, Maps]:
    one = sets[which[i]]
    return _bucket(one.x.shape[-1]), one.maps if by_maps else ()

  order = sorted(range(len(which)), key=lambda i: (shape(i), which[i], i))
  chunks: list[list[int]] = []
  held: set[int] = set()
  last: tuple[int, Maps] | None = None
  used = 0
  for i in order:
    number = which[i]
    x = sets[number].x
    d = _bucket(x.shape[-1])
    features = x.nbytes // x.shape[-1] * d
    need = cell_bytes(d) + (0 if number in held else features)
    if shape(i) != last or used + need > memory_mb * 2**20:
      chunks.append([])
      held, used = set(), 0
      need = cell_bytes(d) + features
    chunks[-1].append(i)
    held.add(number)
    last, used = shape(i), used + need
  return chunks


def _stack(
  sets: Sequence[Features], d: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Joins sets: (sets, r, n, d), shift and scale (sets, d), zero-padded."""
  xs = [s.x[None] if s.x.ndim == 2 else s.x for s in sets]
  if len(sets) == 1 and xs[0].shape[-1] == d:
    return xs[0][None], sets[0].shift[None], sets[0].scale[None]
  x = np.zeros((len(sets), *xs[0].shape[:2], d), xs[0].dtype)
  shift, scale = np.zeros((2, len(sets), d), np.float32)
  for i, (one, s) in enumerate(zip(xs, sets)):
    w = one.shape[-1]
    x[i, ..., :w], shift[i, :w], scale[i, :w] = one, s.shift, s.scale
  return x, shift, scale


def batch_rows(
  rows: np.ndarray, seed: int, steps: int, batch_size: int
) -> np.ndarray:
  """Row numbers (s, b) int32: shuffled passes over `rows`, one after another.

  Each pass holds every row once, also where a pass is smaller than a batch.
  """
  rng = np.random.default_rng(seed)
  need = steps * batch_size
  passes = -(-need // len(rows))
  order = np.concatenate([rng.permutation(rows) for _ in range(passes)])
  return order[:need].reshape(steps, batch_size).astype(np.int32)


def _batches(
  options: Options, cells: Sequence[Cell], steps: int, draws: int
) -> tuple[np.ndarray, np.ndarray]:
  """Rows and draws (c, epochs, s, b) of every update of the cells."""
  shape = (len(cells), options.epochs, steps, options.batch_size)
  in_all = steps * options.epochs
  order = [
    batch_rows(c.rows, c.seed, in_all, options.batch_size) for c in cells
  ]
  # A fresh view each epoch, in turn.
  turn = np.arange(options.epochs, dtype=np.int32) % draws
  return np.stack(order).reshape(shape), np.broadcast_to(
    turn[:, None, None], shape
  )


def _pad_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Rows to whole blocks, and weights that are 0 on the padding."""
  e = len(rows)
  size = e if e < BLOCK else -(-e // BLOCK) * BLOCK
  padded = np.resize(rows, size).astype(np.int32)
  return padded, (np.arange(size) < e).astype(np.float32)


def _check(
  sets: Sequence[Features], labels: np.ndarray, cells: Sequence[Cell]
) -> None:
  shapes = {s.x.shape[:-1] for s in sets}
  if len(shapes) != 1:
    raise ValueError(f'Feature sets of different rows or draws: {shapes}.')
  if sets[0].x.shape[-2] != len(labels):
    raise ValueError(
      f'{sets[0].x.shape[-2]} rows of features, {len(labels)} labels.'
    )
  for cell in cells:
    if not len(cell.rows):
      raise ValueError('A cell has no rows to train on.')
    if labels[cell.rows].min() < 0:
      raise ValueError('A cell trains on unlabelled rows (label -1).')


def fit(
  sets: Sequence[Features],
  labels: np.ndarray,
  classes: int,
  cells: Sequence[Cell],
  settings: Sequence[Setting],
  evaluate: np.ndarray,
  options: Options,
  class_weights: np.ndarray | None = None,
  keep_params: bool = False,
  memory_mb: int = 1500,
  bar: Callable[[Iterable], Iterable] = lambda x: x,
) -> list[Trained]:
  """Trains every setting on every cell; the result is in the order of cells.

  labels (n,) int of the rows of all sets; evaluate (e,) row numbers whose
  logits are returned, and whose accuracy chooses the epoch where
  options.best_epoch is set. All heads of a call make the same number of
  updates: a cell with fewer rows passes over them more often. `bar` wraps the
  chunks, for a progress bar. Raises ValueError where shapes do not fit.
  """
  _check(sets, labels, cells)
  weights = np.ones(classes) if class_weights is None else class_weights
  steps = -(-max(len(cell.rows) for cell in cells) // options.batch_size)
  rows, row_weights = _pad_rows(np.asarray(evaluate))
  cell_bytes = functools.partial(
    _cell_bytes, options, k=classes, settings=len(settings), rows=len(rows)
  )
  of_set = [cell.features for cell in cells]
  out: dict[int, Trained] = {}
  net = lookup(HEADS, options.kind, 'head', '--config.heads.kinds')
  by_maps = net.reads_maps
  assert not by_maps or all(one.maps for one in sets)
  for chunk in bar(plan(sets, of_set, cell_bytes, memory_mb, by_maps)):
    mine = [cells[i] for i in chunk]
    numbers = sorted({cell.features for cell in mine})
    used = [sets[j] for j in numbers]
    widths = [s.x.shape[-1] for s in used]
    d = widths[0] if len(used) == 1 else _bucket(max(widths))
    y, balance = labels.astype(np.int32), weights.astype(np.float32)
    shared = Data(*_stack(used, d), y, balance, rows, row_weights)
    which = [numbers.index(cell.features) for cell in mine]
    if by_maps:
      options = options._replace(maps=used[0].maps)
    found = _train_chunk(
      options, shared, mine, which, widths, steps, np.array(settings, 'f4')
    )
    for j, i in enumerate(chunk):
      params, trace, logits = jax.tree.map(lambda x, j=j: x[j], found)
      if not by_maps:
        params = _narrow(params, widths[which[j]])
      kept = params if keep_params else None
      traced = options.trace or options.best_epoch
      trace = trace if traced else trace[:, :0]
      out[i] = Trained(logits[:, : len(evaluate)], trace, kept)
  return [out[i] for i in range(len(cells))]


def _train_chunk(
  options: Options,
  shared: Data,
  cells: Sequence[Cell],
  which: Sequence[int],
  widths: Sequence[int],
  steps: int,
  settings: np.ndarray,
) -> tuple[Any, np.ndarray, np.ndarray]:
  """What train_cells gives of some cells, on the host."""
  mesh = devices.make_mesh()
  # Each device trains its share of the cells; repeated ones fill the last.
  fill = -len(cells) % mesh.size
  cells = [*cells, *[cells[0]] * fill]
  which = [*which, *[which[0]] * fill]
  own = (
    np.array(which, np.int32),
    np.array([widths[j] for j in which], np.int32),
    _batches(options, cells, steps, shared.x.shape[1]),
    np.array([cell.seed for cell in cells]),
  )
  if mesh.size > 1:
    shared = devices.replicate(shared, mesh)
    own = devices.place_whole(own, mesh)
    settings = devices.replicate(settings, mesh)
  return devices.fetch(train_cells(options, shared, own, settings))


def _narrow(params: dict[str, np.ndarray], width: int) -> dict[str, np.ndarray]:
  """The parameters without those of padded features."""
  first = 'W' if 'W' in params else 'M'
  return {**params, first: params[first][..., :width]}

"""Trains many heads on frozen features at once.

One head is a plain function with its steps in a scan (train_head.py); all
others come by vmap: over settings (learning rate x weight decay), which share
their batches, and over cells (feature set x rows x seed), whose features are
padded to a common width. Cells are split over the devices.

Letters: n rows of a feature set, d features, k classes, b batch, s steps,
a settings, c cells, r noise draws of the features.
"""

from collections.abc import Callable, Iterable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.heads.head_chunks import bucket, cell_memory, plan, stack
from micdiffrep_jax.heads.matrix import Features
from micdiffrep_jax.heads.nets import APPLY
from micdiffrep_jax.heads.train_head import BLOCK, Options, train_cells
from micdiffrep_jax.run import devices


class Cell(NamedTuple):
  """One training problem: which features, which rows of them, which seed."""

  features: int
  rows: np.ndarray
  seed: int = 0


class Setting(NamedTuple):
  """What is tried on every cell; weight decay is decoupled (AdamW)."""

  learning_rate: float
  weight_decay: float = 0.0


class Fit(NamedTuple):
  """The heads of one cell, one per setting.

  logits (a, e, k) float32 of the evaluation rows; trace (a, epochs) accuracy
  or (a, 0); params: arrays with a leading axis a, or None.
  """

  logits: np.ndarray
  trace: np.ndarray
  params: dict[str, np.ndarray] | None


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
) -> list[Fit]:
  """Trains every setting on every cell; the result is in the order of cells.

  labels (n,) int of the rows of all sets; evaluate (e,) row numbers whose
  logits are returned, and whose accuracy chooses the epoch where
  options.best_epoch is set. All heads of a call make the same number of
  updates: a cell with fewer rows passes over them more often. `bar` wraps the
  chunks, for a progress bar. Raises ValueError where shapes do not fit.
  """
  _check(sets, labels, cells)
  weights = np.ones(classes) if class_weights is None else class_weights
  largest = max(len(cell.rows) for cell in cells)
  steps = -(-largest // options.batch_size)
  rows, row_weights = _pad_rows(np.asarray(evaluate))
  tried = np.array(settings, np.float32)
  cell_bytes = functools.partial(
    cell_memory, options, k=classes, settings=len(settings), rows=len(rows)
  )
  of_set = [cell.features for cell in cells]
  mesh = devices.make_mesh()
  out: dict[int, Fit] = {}
  for chunk in bar(plan(sets, of_set, cell_bytes, memory_mb)):
    numbers = sorted({cells[i].features for i in chunk})
    used = [sets[j] for j in numbers]
    widths = [s.x.shape[-1] for s in used]
    d = widths[0] if len(used) == 1 else bucket(max(widths))
    # Each device trains its share of the cells; repeated ones fill the last.
    padded = [*chunk, *[chunk[0]] * (-len(chunk) % mesh.size)]
    which = [numbers.index(cells[i].features) for i in padded]
    order = [
      batch_rows(
        cells[i].rows,
        cells[i].seed,
        steps * options.epochs,
        options.batch_size,
      )
      for i in padded
    ]
    shape = (len(padded), options.epochs, steps, options.batch_size)
    draws = used[0].x.shape[0] if used[0].x.ndim == 3 else 1
    # A fresh view each epoch, in turn.
    turn = np.arange(options.epochs, dtype=np.int32) % draws
    drawn = np.broadcast_to(turn[:, None, None], shape)
    shared = (
      stack(used, d),
      labels.astype(np.int32),
      weights.astype(np.float32),
      (rows, row_weights),
    )
    own = (
      np.array(which, np.int32),
      np.array([widths[j] for j in which], np.int32),
      (np.stack(order).reshape(shape), drawn),
      np.array([cells[i].seed for i in padded]),
    )
    if mesh.size > 1:
      shared = devices.replicate(shared, mesh)
      own = devices.place_whole(own, mesh)
      tried = devices.replicate(tried, mesh)
    params, trace, logits = devices.fetch(
      train_cells(options, *shared, *own, tried)
    )
    for j, i in enumerate(chunk):
      kept = None
      if keep_params:
        kept = {name: p[j] for name, p in params.items()}
        first = 'W' if 'W' in kept else 'M'
        kept[first] = kept[first][..., : widths[which[j]]]
      out[i] = Fit(
        logits[j, :, : len(evaluate)],
        trace[j] if options.trace or options.best_epoch else trace[j, :, :0],
        kept,
      )
  return [out[i] for i in range(len(cells))]


@functools.partial(jax.jit, static_argnums=0)
def _predict_block(kind: str, params: Any, x: Any, shift: Any, scale: Any):
  part = (x.astype(jnp.float32) - shift[None, :]) * scale[None, :]
  return jax.vmap(APPLY[kind], in_axes=(0, None))(params, part)


def predict(
  kind: str, params: dict[str, np.ndarray], features: Features
) -> np.ndarray:
  """Logits (a, n, k) of all rows, averaged over draws, of heads (a, ...)."""
  x = features.x[None] if features.x.ndim == 2 else features.x
  n = x.shape[1]
  blocks = []
  for start in range(0, n, BLOCK):
    at = np.resize(np.arange(start, min(n, start + BLOCK)), BLOCK)
    one = [
      _predict_block(kind, params, draw[at], features.shift, features.scale)
      for draw in x
    ]
    blocks.append(np.mean(one, axis=0))
  return np.concatenate(blocks, axis=1)[:, :n]


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


def class_weights(balanced: bool, y: np.ndarray, k: int) -> np.ndarray:
  """Ones, or inverse frequencies where `balanced`."""
  if not balanced:
    return np.ones(k)
  return len(y) / (k * np.maximum(np.bincount(y, minlength=k), 1))

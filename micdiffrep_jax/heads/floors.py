"""Baselines without learned features: the floor under every table.

Fitted on the labelled training rows alone, the rows that every method's head
is trained on; validation is not added, and nothing is tuned.

Letters: n training rows, q query rows, s side in pixels, c channels, k classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.heads import kernel, matrix, trained
from micdiffrep_jax.run import log
from micdiffrep_jax.run.checks import lookup

HOG_PX, HOG_CELL_PX, HOG_BLOCK, HOG_BINS = 64, 8, 2, 9
_CHUNK = 1024

Describe = Callable[[np.ndarray], np.ndarray]  # (s, s, c) uint8 -> (d,) float32


def _grey(image: np.ndarray, size_px: int) -> np.ndarray:
  """(s, s, c) uint8 -> (size_px, size_px) float32 in [0, 1], channel mean."""
  grey = image.astype(np.float32).mean(-1) / 255
  shrink = image.shape[0] >= size_px
  how = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
  return cv2.resize(grey, (size_px, size_px), interpolation=how)


def pixels(image: np.ndarray) -> np.ndarray:
  """Grey pixels of the image at 32 px: (1024,)."""
  return _grey(image, 32).reshape(-1)


def hog(image: np.ndarray) -> np.ndarray:
  """Histogram of oriented gradients: (1764,) = 7 x 7 blocks of 2 x 2 x 9.

  64 px, cells of 8 px, 9 unsigned orientations with votes shared between the
  two nearest, blocks of 2 x 2 cells at every cell, L2-Hys (clip at 0.2).
  Source: Dalal and Triggs 2005, without their Gaussian window and their
  sharing between cells. Written out, as OpenCV 5 has no HOGDescriptor.
  """
  grey = _grey(image, HOG_PX)
  padded = np.pad(grey, 1, mode='edge')
  gx = padded[1:-1, 2:] - padded[1:-1, :-2]
  gy = padded[2:, 1:-1] - padded[:-2, 1:-1]
  magnitude = np.hypot(gx, gy)
  angle = np.mod(np.arctan2(gy, gx), np.pi) * (HOG_BINS / np.pi) - 0.5
  low = np.floor(angle)
  share = angle - low
  cells = HOG_PX // HOG_CELL_PX
  at = np.arange(HOG_PX) // HOG_CELL_PX
  cell = at[:, None] * cells + at[None, :]
  votes = np.zeros(cells * cells * HOG_BINS)
  for offset, weight in ((0, 1 - share), (1, share)):
    bins = np.mod(low + offset, HOG_BINS).astype(np.int64)
    index = (cell * HOG_BINS + bins).reshape(-1)
    part = (magnitude * weight).reshape(-1)
    votes += np.bincount(index, part, len(votes))
  windows = np.lib.stride_tricks.sliding_window_view(
    votes.reshape(cells, cells, HOG_BINS), (HOG_BLOCK, HOG_BLOCK), axis=(0, 1)
  )  # (7, 7, 9, 2, 2)
  blocks = np.moveaxis(windows, 2, -1).reshape(-1, HOG_BINS * HOG_BLOCK**2)
  for _ in range(2):  # normalise, clip, normalise again
    norm = np.sqrt(np.square(blocks).sum(1, keepdims=True) + 1e-6)
    blocks = np.minimum(blocks / norm, 0.2)
  norm = np.sqrt(np.square(blocks).sum(1, keepdims=True) + 1e-6)
  return (blocks / norm).astype(np.float32).reshape(-1)


def brightness(image: np.ndarray) -> np.ndarray:
  """Ten numbers without shape: (10,).

  Mean, deviation, percentiles 5, 25, 50, 75, 95, share of dark pixels (below
  0.05), mean gradient, share of edges (gradient above 0.1); grey at 64 px.
  """
  grey = _grey(image, 64)
  gy, gx = np.gradient(grey)
  edge = np.hypot(gx, gy)
  percentiles = np.percentile(grey, [5, 25, 50, 75, 95])
  dark = (grey < 0.05).mean()
  rest = [dark, edge.mean(), (edge > 0.1).mean()]
  return np.array([grey.mean(), grey.std(), *percentiles, *rest], np.float32)


def describe(images: Any, rows: np.ndarray, how: Describe) -> np.ndarray:
  """Descriptors (len(rows), d) float32 of images[rows], read in chunks."""
  found = [
    how(image)
    for start in range(0, len(rows), _CHUNK)
    for image in images[rows[start : start + _CHUNK]]
  ]
  return np.stack(found)


def nearest(
  bank: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int
) -> np.ndarray:
  """One-hot class (q, k) of the nearest bank row by Euclidean distance."""
  half = 0.5 * np.square(bank).sum(1)
  near = [
    (query[i : i + _CHUNK] @ bank.T - half).argmax(1)
    for i in range(0, len(query), _CHUNK)
  ]
  return np.eye(k)[labels[np.concatenate(near)]]


def _spread(probs: np.ndarray, present: np.ndarray, k: int) -> np.ndarray:
  """Probabilities over all k classes, 0 for those never trained on."""
  out = np.zeros((len(probs), k))
  out[:, present] = probs
  return out


# Each: descriptors (n, d), labels (n,), queries (q, d), k, seed -> (q, k).


def _majority(x, y, query, k, seed):
  """The shares of the classes in training."""
  share = np.bincount(y, minlength=k) / len(y)
  return np.tile(share, (len(query), 1))


def _nearest(x, y, query, k, seed):
  return nearest(x, y, query, k)


def _logistic(x, y, query, k, seed):
  """Logistic regression (C = 1) on 200 whitened principal components."""
  parts = min(200, *x.shape)
  model = make_pipeline(
    StandardScaler(),
    PCA(parts, whiten=True, svd_solver='randomized', random_state=seed),
    LogisticRegression(max_iter=500),
  ).fit(x, y)
  return _spread(model.predict_proba(query), model.classes_, k)


def _forest(x, y, query, k, seed):
  """500 trees."""
  model = RandomForestClassifier(500, random_state=seed, n_jobs=-1).fit(x, y)
  return _spread(model.predict_proba(query), model.classes_, k)


def _kernel(x, y, query, k, seed):
  """The kernel head at a gamma and a strength fixed beforehand."""
  found = matrix.standardise(x)
  every = np.arange(len(x))
  fitted = kernel.kernel_ridge(
    found, y, k, every, every[:1], (2.0,), (1e-2,), seed=seed
  )
  logits = trained.predict('kernel', fitted.params, found._replace(x=query))
  return softmax(10 * logits[0], axis=1)  # any temperature: classes count


FLOORS: dict[str, tuple[Describe, Callable]] = {
  'majority': (brightness, _majority),
  'nearest_pixels': (pixels, _nearest),
  'nearest_hog': (hog, _nearest),
  'logistic_hog': (hog, _logistic),
  'kernel_pixels': (pixels, _kernel),
  'kernel_hog': (hog, _kernel),
  'forest_brightness': (brightness, _forest),
}


def check(names: Sequence[str]) -> None:
  """Raises ValueError for a floor that does not exist."""
  for name in names:
    lookup(FLOORS, name, 'floor', '--config.floors')


def predict(
  ds: data.Dataset,
  train: np.ndarray,
  query: np.ndarray,
  names: Sequence[str] = tuple(FLOORS),
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """Probabilities (len(query), k) float64 of each named floor.

  train: labelled row numbers of the dataset to fit on; query: rows to predict.
  One-hot rows of a nearest neighbour make NLL meaningless there.
  """
  check(names)
  labels = data.labels(ds)[train]
  if labels.min() < 0:
    raise ValueError('Floors are fitted on labelled rows only.')
  known: dict[Describe, tuple[np.ndarray, np.ndarray]] = {}
  out = {}
  for name in log.progress(names, desc='floors'):
    how, fit_predict = FLOORS[name]
    if how not in known:
      known[how] = (
        describe(ds.images, train, how),
        describe(ds.images, query, how),
      )
    x, z = known[how]
    out[name] = fit_predict(x, labels, z, len(ds.classes), seed)
  return out

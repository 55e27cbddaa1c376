"""Baselines without learned features: the floor under every table.

Each is a head on pixels, HOG or brightness in place of an encoder's features,
fitted on the labelled training rows alone, the rows that every method's head
is trained on; validation is not added, and nothing is tuned.

Letters: n rows, d numbers, q query rows, s side in pixels, c channels, k
classes.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from micdiffrep_jax.heads import kernel, matrix
from micdiffrep_jax.heads.base import Fitted, Head, Params, Problem
from micdiffrep_jax.heads.matrix import Features
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


def _untuned(params: Params) -> Fitted:
  return Fitted(params, {}, math.nan)


def _of_sklearn(make: Callable[[np.ndarray, int], Any]) -> Head:
  """The head of a scikit-learn classifier, made for rows (n, d) and a seed."""

  def fit(problem: Problem, seed: int) -> Fitted:
    x = problem.features.x[problem.train]
    model = make(x, seed).fit(x, problem.labels[problem.train])
    return _untuned({'model': model, 'classes': problem.classes})

  return Head(_predict_sklearn, fit, calibrated=False)


def _predict_sklearn(params: Params, features: Features) -> np.ndarray:
  """Probabilities over all classes, 0 for those never trained on."""
  model = params['model']
  out = np.zeros((len(features.x), params['classes']))
  out[:, model.classes_] = model.predict_proba(features.x)
  return out


def _logistic(x: np.ndarray, seed: int) -> Any:
  """Logistic regression (C = 1) on 200 whitened principal components."""
  parts = min(200, *x.shape)
  return make_pipeline(
    StandardScaler(),
    PCA(parts, whiten=True, svd_solver='randomized', random_state=seed),
    LogisticRegression(max_iter=500),
  )


def nearest(problem: Problem, seed: int) -> Fitted:
  """Keeps the training rows, for the nearest to give its class."""
  y = problem.labels[problem.train]
  bank = problem.features.x[problem.train]
  return _untuned({'bank': bank, 'one_hot': np.eye(problem.classes)[y]})


def nearest_predict(params: Params, features: Features) -> np.ndarray:
  """One-hot class (n, k) of the nearest row kept, by Euclidean distance."""
  bank, query = params['bank'], features.x
  half = 0.5 * np.square(bank).sum(1)
  near = [
    (query[i : i + _CHUNK] @ bank.T - half).argmax(1)
    for i in range(0, len(query), _CHUNK)
  ]
  return params['one_hot'][np.concatenate(near)]


def _kernel(problem: Problem, seed: int) -> Fitted:
  """The kernel head at a gamma and a strength fixed beforehand."""
  found = matrix.standardise(problem.features.x, problem.train)
  standard = problem._replace(features=found)
  fitted = kernel.fit(standard, gamma=(2.0,), strength=(1e-2,), seed=seed)
  statistics = {'shift': found.shift, 'scale': found.scale}
  return _untuned({'kernel': fitted.params, **statistics})


def _kernel_predict(params: Params, features: Features) -> np.ndarray:
  found = Features(features.x, params['shift'], params['scale'])
  logits = kernel.HEAD.predict(params['kernel'], found)
  return softmax(10 * logits, axis=1)  # any temperature: classes count


class Floor(NamedTuple):
  """A head, and how the numbers that it is fitted on describe an image."""

  describe: Describe
  head: Head


class Cut(NamedTuple):
  """Positions of rows to fit on and of those to predict (q,).

  labels: of all rows, int; those of `train` are known.
  """

  train: np.ndarray
  query: np.ndarray
  labels: np.ndarray


_NEAREST = Head(nearest_predict, nearest, calibrated=False)
_KERNEL = Head(_kernel_predict, _kernel, calibrated=False)
FLOORS = {
  'majority': Floor(
    brightness, _of_sklearn(lambda x, seed: DummyClassifier(strategy='prior'))
  ),
  'nearest_pixels': Floor(pixels, _NEAREST),
  'nearest_hog': Floor(hog, _NEAREST),
  'logistic_hog': Floor(hog, _of_sklearn(_logistic)),
  'kernel_pixels': Floor(pixels, _KERNEL),
  'kernel_hog': Floor(hog, _KERNEL),
  'forest_brightness': Floor(
    brightness,
    _of_sklearn(
      lambda x, seed: RandomForestClassifier(500, random_state=seed, n_jobs=-1)
    ),
  ),
}


def check(names: Sequence[str]) -> None:
  """Raises ValueError for a floor that does not exist."""
  for name in names:
    lookup(FLOORS, name, 'floor', '--config.floors')


def predict(
  images: Any,
  rows: np.ndarray,
  classes: int,
  cuts: Sequence[Cut],
  names: Sequence[str] = tuple(FLOORS),
  seed: int = 0,
) -> dict[str, list[np.ndarray]]:
  """Probabilities (q, k) float64 of each named floor, of each cut.

  images[rows] are described once; positions of a cut are those in `rows`.
  One-hot rows of a nearest neighbour make NLL meaningless there.
  """
  check(names)
  if any(cut.labels[cut.train].min() < 0 for cut in cuts):
    raise ValueError('Floors are fitted on labelled rows only.')
  known: dict[Describe, Features] = {}
  out: dict[str, list[np.ndarray]] = {}
  for name in log.progress(names, desc='floors'):
    how, head = FLOORS[name]
    assert head.fit is not None
    if how not in known:
      known[how] = matrix.literal(describe(images, rows, how))
    found = known[how]
    out[name] = []
    for train, query, labels in cuts:
      problem = Problem(found, labels, classes, train, train[:1])
      fitted = head.fit(problem, seed=seed)
      asked = found._replace(x=found.x[query])
      out[name].append(head.predict(fitted.params, asked))
  return out

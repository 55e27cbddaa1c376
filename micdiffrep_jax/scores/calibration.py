"""Calibration: reliability curves and temperature scaling.

Letters: n rows, k classes, m bins.
"""

import math
from typing import NamedTuple
import warnings

import numpy as np
from scipy import optimize, special

ECE_BINS = 15  # equal width on [0, 1], of the highest probability


class Reliability(NamedTuple):
  """Points of a reliability curve, one per bin of confidence.

  edges (m + 1,); rows (m,) counts; confidence and accuracy (m,) means over the
  rows of the bin, nan where it is empty.
  """

  edges: np.ndarray
  rows: np.ndarray
  confidence: np.ndarray
  accuracy: np.ndarray


def confidence_bin(probs: np.ndarray, bins: int = ECE_BINS) -> np.ndarray:
  """Bin (n,) of the highest probability: `bins` of equal width on [0, 1]."""
  index = np.ceil(probs.max(1) * bins).astype(np.int64) - 1
  return np.clip(index, 0, bins - 1)


def reliability(
  labels: np.ndarray, probs: np.ndarray, bins: int = ECE_BINS
) -> Reliability:
  """Confidence against accuracy in equal-width bins of the top probability."""
  index = confidence_bin(probs, bins)
  count = np.bincount(index, minlength=bins)
  right = probs.argmax(1) == labels
  with np.errstate(invalid='ignore'):
    confidence = np.bincount(index, probs.max(1), bins) / count
    accuracy = np.bincount(index, right, bins) / count
  return Reliability(np.linspace(0, 1, bins + 1), count, confidence, accuracy)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
  """The T > 0 that minimises the NLL of softmax(logits / T).

  logits (n, k), or log-probabilities; fit it on validation rows. Bounded to
  [0.05, 20], where a separable validation set would run away. Source: Guo et
  al. 2017.
  """
  logits = np.asarray(logits, np.float64)
  rows = np.arange(len(labels))

  def loss(log_t: np.ndarray) -> float:
    scaled = logits / np.exp(log_t[0])
    return float(
      (special.logsumexp(scaled, axis=1) - scaled[rows, labels]).mean()
    )

  found = optimize.minimize(
    loss, [0.0], method='L-BFGS-B', bounds=[(math.log(0.05), math.log(20.0))]
  )
  if not found.success:
    warnings.warn(f'Temperature fit: {found.message}', stacklevel=2)
  return float(np.exp(found.x[0]))


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
  """Probabilities (..., k) float64 of logits (..., k) at a temperature."""
  return special.softmax(np.asarray(logits, np.float64) / temperature, axis=-1)

"""Effective rank: how many directions a cloud of features fills."""

import numpy as np


def effective_rank(features: np.ndarray) -> float:
  """exp of the entropy of the normalised singular values of centred features.

  features (n, d) -> [1, min(n, d)]; 0 where all rows are equal. RankMe, Garrido
  et al. 2023, eq. 1; ours: centred, so that a common offset does not count.
  """
  x = np.asarray(features, np.float64)
  x = x - x.mean(axis=0)
  values = np.linalg.svd(x, compute_uv=False)
  # Rounding of float32 features must not pass for a direction.
  values = values[values > 1e-6 * np.abs(features).max(initial=0.0)]
  if not values.size:
    return 0.0
  share = values / values.sum()
  return float(np.exp(-np.sum(share * np.log(share))))

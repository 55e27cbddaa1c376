"""Groups of rows: what is joined by pairs, and what shares a name."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


def join(units: np.ndarray | Sequence[str], pairs: np.ndarray) -> np.ndarray:
  """Joins units that share a pair of rows.

  units (n,) names; pairs (m, 2) row numbers -> (n,) int32 group numbers, in
  order of first appearance.
  """
  names, unit = np.unique(np.asarray(units, dtype=str), return_inverse=True)
  number = components(len(names), unit[np.asarray(pairs, int).reshape(-1, 2)])
  return by_appearance(number[unit])


def components(n: int, pairs: np.ndarray) -> np.ndarray:
  """Connected components of n nodes: (m, 2) edges -> (n,) int32."""
  pairs = np.asarray(pairs, int).reshape(-1, 2)
  graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (n, n))
  return connected_components(graph, directed=False)[1].astype(np.int32)


def by_appearance(names: np.ndarray) -> np.ndarray:
  """Numbers (n,) int32 of names (n,), in order of first appearance."""
  _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
  return np.argsort(np.argsort(first)).astype(np.int32)[inverse]


def same_name(names: np.ndarray | Sequence[str]) -> np.ndarray:
  """Pairs (m, 2) of rows that chain those of one name; '' names nothing."""
  names = np.asarray(names)
  named = np.flatnonzero(names != '')
  order = named[np.argsort(names[named], kind='stable')]
  alike = names[order[1:]] == names[order[:-1]]
  return np.stack([order[:-1][alike], order[1:][alike]], axis=1)

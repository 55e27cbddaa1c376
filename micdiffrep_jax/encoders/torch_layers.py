"""Layers of PyTorch files -> parameters of the same layers in Flax."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Tree = dict[str, Any]
State = Mapping[str, np.ndarray]


def conv(state: State, name: str) -> Tree:
  """(out, in, h, w) -> (h, w, in, out); depthwise (d, 1, h, w) alike."""
  return {'kernel': state[f'{name}.weight'].transpose(2, 3, 1, 0)}


def dense(state: State, name: str) -> Tree:
  """(out, in) -> (in, out)."""
  return {'kernel': state[f'{name}.weight'].T, 'bias': state[f'{name}.bias']}


def norm(state: State, name: str) -> Tree:
  """Scale and bias (d,) of a norm of any kind."""
  return {'scale': state[f'{name}.weight'], 'bias': state[f'{name}.bias']}


def statistics(state: State, name: str) -> Tree:
  """Running mean and variance (d,) of a batch norm."""
  return {
    'mean': state[f'{name}.running_mean'],
    'var': state[f'{name}.running_var'],
  }

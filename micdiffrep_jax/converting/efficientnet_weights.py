"""PyTorch weights of EfficientNet-Lite -> variables of its model here.

Names are those of `efficientnet_lite_pytorch`: _conv_stem, _blocks.0._bn1, ...
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from micdiffrep_jax.models.efficientnet_lite import LITE0, blocks

Tree = dict[str, Any]


def _conv(state: Mapping[str, np.ndarray], name: str) -> Tree:
  """(out, in, h, w) -> (h, w, in, out); depthwise (d, 1, h, w) alike."""
  return {'kernel': state[f'{name}.weight'].transpose(2, 3, 1, 0)}


def convert(state: Mapping[str, np.ndarray], stages=LITE0) -> Tree:
  """Returns {'params', 'batch_stats'}, float32; the classifier is left out.

  Raises ValueError for a tensor that is missing.
  """
  params: Tree = {}
  stats: Tree = {}

  def norm(name, params, stats, key):
    params[key] = {
      'scale': state[f'{name}.weight'],
      'bias': state[f'{name}.bias'],
    }
    stats[key] = {
      'mean': state[f'{name}.running_mean'],
      'var': state[f'{name}.running_var'],
    }

  try:
    params['stem'] = _conv(state, '_conv_stem')
    norm('_bn0', params, stats, 'stem_norm')
    for i, block in enumerate(blocks(stages)):
      name = f'_blocks.{i}'
      p: Tree = {}
      s: Tree = {}
      if block.expand != 1:
        p['expand'] = _conv(state, f'{name}._expand_conv')
        norm(f'{name}._bn0', p, s, 'expand_norm')
      p['depthwise'] = _conv(state, f'{name}._depthwise_conv')
      norm(f'{name}._bn1', p, s, 'depthwise_norm')
      p['project'] = _conv(state, f'{name}._project_conv')
      norm(f'{name}._bn2', p, s, 'project_norm')
      params[f'block{i}'], stats[f'block{i}'] = p, s
    params['head'] = _conv(state, '_conv_head')
    norm('_bn1', params, stats, 'head_norm')
  except KeyError as e:
    raise ValueError(
      f'No tensor {e} in the file: it is not of EfficientNet-Lite0. Set '
      '--config.source.'
    ) from e
  return {'params': params, 'batch_stats': stats}

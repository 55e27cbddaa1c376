"""PyTorch weights of EfficientNet-Lite -> variables of its model here.

Names are those of `efficientnet_lite_pytorch`: _conv_stem, _blocks.0._bn1, ...
"""

from micdiffrep_jax.encoders import torch_layers as layers
from micdiffrep_jax.encoders.torch_layers import State, Tree
from micdiffrep_jax.models.efficientnet import LITE0, blocks


def convert(state: State, stages=LITE0) -> Tree:
  """Returns {'params', 'batch_stats'}, float32; the classifier is left out.

  Raises ValueError for a tensor that is missing.
  """
  params: Tree = {}
  stats: Tree = {}

  def norm(name, params, stats, key):
    params[key] = layers.norm(state, name)
    stats[key] = layers.statistics(state, name)

  try:
    params['stem'] = layers.conv(state, '_conv_stem')
    norm('_bn0', params, stats, 'stem_norm')
    for i, block in enumerate(blocks(stages)):
      name = f'_blocks.{i}'
      p: Tree = {}
      s: Tree = {}
      if block.expand != 1:
        p['expand'] = layers.conv(state, f'{name}._expand_conv')
        norm(f'{name}._bn0', p, s, 'expand_norm')
      p['depthwise'] = layers.conv(state, f'{name}._depthwise_conv')
      norm(f'{name}._bn1', p, s, 'depthwise_norm')
      p['project'] = layers.conv(state, f'{name}._project_conv')
      norm(f'{name}._bn2', p, s, 'project_norm')
      params[f'block{i}'], stats[f'block{i}'] = p, s
    params['head'] = layers.conv(state, '_conv_head')
    norm('_bn1', params, stats, 'head_norm')
  except KeyError as e:
    raise ValueError(
      f'No tensor {e} in the file: it is not of EfficientNet-Lite0. Set '
      '--config.source.'
    ) from e
  return {'params': params, 'batch_stats': stats}

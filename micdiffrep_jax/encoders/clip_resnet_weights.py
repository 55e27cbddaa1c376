"""OpenAI's names of CLIP's ResNets -> the variables of models/resnet.py.

Names are those of its .pt files: visual.conv1, visual.layer1.0.bn1, ...; the
numbers of blocks, widths and the input size follow from the tensors.
"""

from typing import Any

from micdiffrep_jax.encoders import torch_layers as layers
from micdiffrep_jax.encoders.torch_layers import State, Tree
from micdiffrep_jax.models.resnet import CLIP_SHRINKS

_LAYER = 'visual.layer'


def holds(state: State) -> bool:
  """Whether these are the tensors of a ResNet, not of a transformer."""
  return any(k.startswith(_LAYER) for k in state)


def convert(state: State, heads: int) -> tuple[dict[str, Any], int, Tree]:
  """Returns the fields of methods/external.py, the input size, the variables.

  heads: of the pooling attention; 0 for one per 64 features. Raises KeyError
  for a tensor that is missing.
  """
  params: Tree = {}
  stats: Tree = {}

  def add(params, stats, name, conv, norm):
    params[f'conv{name}'] = layers.conv(state, conv)
    params[f'norm{name}'] = layers.norm(state, norm)
    stats[f'norm{name}'] = layers.statistics(state, norm)

  for i in range(1, 4):
    add(params, stats, i, f'visual.conv{i}', f'visual.bn{i}')
  blocks = _blocks(state)
  for i, count in enumerate(blocks):
    for j in range(count):
      prefix = f'{_LAYER}{i + 1}.{j}.'
      p: Tree = {}
      s: Tree = {}
      for k in range(1, 4):
        add(p, s, k, f'{prefix}conv{k}', f'{prefix}bn{k}')
      if not j:  # 0 and 1 follow the pooling, which has no weights
        add(p, s, '_skip', f'{prefix}downsample.0', f'{prefix}downsample.1')
      params[f'stage{i + 1}_{j}'], stats[f'stage{i + 1}_{j}'] = p, s
  positions = state['visual.attnpool.positional_embedding']
  params['pool'] = {'positions': positions} | {
    name: layers.dense(state, f'visual.attnpool.{name[0]}_proj')
    for name in ('query', 'key', 'value')
  }
  params['pool']['out'] = layers.dense(state, 'visual.attnpool.c_proj')
  model = {
    'tower': 'resnet',
    'blocks': blocks,
    'width': params['conv3']['kernel'].shape[-1],
    'heads': heads or positions.shape[1] // 64,
    'out': params['pool']['out']['kernel'].shape[1],
  }
  side = round((len(positions) - 1) ** 0.5)
  return model, side * CLIP_SHRINKS, {'params': params, 'batch_stats': stats}


def _blocks(state: State) -> tuple[int, ...]:
  """Blocks of each stage."""
  found = {
    tuple(map(int, k.removeprefix(_LAYER).split('.')[:2]))
    for k in state
    if k.startswith(_LAYER)
  }
  stages = [i for i, _ in found]
  return tuple(stages.count(i) for i in sorted(set(stages)))

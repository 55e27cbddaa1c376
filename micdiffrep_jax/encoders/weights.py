"""Tensors of files that others trained -> the variables of the models here.

Image towers of CLIP, in three layouts: transformers (models/vit.py) of
Hugging Face (q, k, v apart, with or without the prefix 'vision_model.') and of
OpenAI (q, k, v in one matrix, under 'visual.'), and OpenAI's ResNets
(models/resnet.py; visual.conv1, visual.layer1.0.bn1, ...). And
EfficientNet-Lite with the names of `efficientnet_lite_pytorch` (_conv_stem,
_blocks.0._bn1, ...). Widths, depths and input sizes follow from the tensors.

Letters: d features, p patch, g patches per side.
"""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any, NamedTuple

import numpy as np

from micdiffrep_jax.encoders import torch_file
from micdiffrep_jax.models.efficientnet import LITE0, Stage, blocks
from micdiffrep_jax.models.resnet import CLIP_SHRINKS
from micdiffrep_jax.models.vit import ACTIVATIONS
from micdiffrep_jax.run.checks import lookup

Tree = dict[str, Any]
State = Mapping[str, np.ndarray]
_STAGE = 'visual.layer'  # of CLIP's ResNets


class Tower(NamedTuple):
  """An image tower of CLIP.

  model: the fields of methods/external.py; size_px: of its input.
  """

  model: Tree
  size_px: int
  variables: Tree


def read(path: str, activation: str) -> tuple[State, str]:
  """Tensors by name, and the activation they were trained with.

  'auto' takes it from config.json beside a .safetensors file; OpenAI's .pt
  files have quick_gelu. Raises ValueError where neither tells: the wrong one
  loses accuracy without a word. A ResNet has none to choose.
  """
  if activation != 'auto':
    lookup(ACTIVATIONS, activation, 'activation', '--config.activation')
  if not path.endswith('.safetensors'):
    return torch_file.read(path), _known(activation, 'quick_gelu', path)
  try:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file
  except ImportError as e:
    raise ValueError(
      f'{path!r} needs the package safetensors: pip install safetensors.'
    ) from e
  try:
    state = load_file(path)
  except SafetensorError as e:
    raise ValueError(f'{path!r} is damaged: {e}. Set --config.source.') from e
  if _is_resnet(state):
    return state, ''
  beside = os.path.join(os.path.dirname(path), 'config.json')
  told = ''
  if os.path.exists(beside):
    with open(beside) as f:
      record = json.load(f)
    told = record.get('vision_config', record).get('hidden_act', 'quick_gelu')
  return state, _known(activation, told, path)


def _known(given: str, told: str, path: str) -> str:
  if given != 'auto':
    return given
  if told not in ACTIVATIONS:
    raise ValueError(
      f'Nothing tells the activation of {path!r}: there is no config.json '
      f'beside it, or it names {told!r}. Set --config.activation=quick_gelu '
      '(OpenAI) or gelu.'
    )
  return told


def clip(state: State, heads: int, activation: str) -> Tower:
  """An image tower of CLIP, a transformer or a ResNet.

  heads: of its attention; 0 for one per 64 features. activation is a
  transformer's. Raises ValueError for tensors that are no image tower of CLIP.
  """
  try:
    if _is_resnet(state):
      return _resnet(state, heads)
    openai = 'visual.conv1.weight' in state
    params = _openai(state) if openai else _hugging_face(state)
  except KeyError as e:
    raise ValueError(
      f'No tensor {e}: the file holds no image tower of CLIP. Set '
      '--config.source.'
    ) from e
  patch, _, _, width = params['patches']['kernel'].shape
  side = round((len(params['positions']) - 1) ** 0.5)
  model = {
    'tower': 'vit',
    'width': width,
    'depth': sum(k.startswith('block') for k in params),
    'heads': heads or width // 64,
    'patch': patch,
    'out': params['project']['kernel'].shape[1] if 'project' in params else 0,
    'activation': activation,
  }
  return Tower(model, side * patch, {'params': params})


def _conv(state: State, name: str) -> Tree:
  """(out, in, h, w) -> (h, w, in, out); depthwise (d, 1, h, w) alike."""
  return {'kernel': state[f'{name}.weight'].transpose(2, 3, 1, 0)}


def _dense(state: State, name: str) -> Tree:
  """(out, in) -> (in, out)."""
  return {'kernel': state[f'{name}.weight'].T, 'bias': state[f'{name}.bias']}


def _norm(state: State, name: str) -> Tree:
  """Scale and bias (d,) of a norm of any kind."""
  return {'scale': state[f'{name}.weight'], 'bias': state[f'{name}.bias']}


class _BatchNormed(NamedTuple):
  """Parameters and running statistics of convolutions with batch norms."""

  params: Tree
  stats: Tree

  def add(
    self, state: State, conv: str, norm: str, to: tuple[str, str]
  ) -> None:
    """Copies the layers `conv` and `norm` of a file under the names `to`."""
    self.params[to[0]] = _conv(state, conv)
    self.params[to[1]] = _norm(state, norm)
    self.stats[to[1]] = {
      'mean': state[f'{norm}.running_mean'],
      'var': state[f'{norm}.running_var'],
    }


def _depth(state: State, prefix: str) -> int:
  at = prefix.count('.')
  found = {k.split('.')[at] for k in state if k.startswith(prefix)}
  return len(found)


def hugging_face_block(state: State, name: str) -> Tree:
  """One block of either tower; `name` is its prefix."""
  attention = f'{name}.self_attn'
  return {
    'norm1': _norm(state, f'{name}.layer_norm1'),
    'query': _dense(state, f'{attention}.q_proj'),
    'key': _dense(state, f'{attention}.k_proj'),
    'value': _dense(state, f'{attention}.v_proj'),
    'out': _dense(state, f'{attention}.out_proj'),
    'norm2': _norm(state, f'{name}.layer_norm2'),
    'up': _dense(state, f'{name}.mlp.fc1'),
    'down': _dense(state, f'{name}.mlp.fc2'),
  }


def _hugging_face(state: State) -> Tree:
  v = 'vision_model.'
  if not any(k.startswith(v) for k in state):
    v = ''
  params = {
    'patches': _conv(state, f'{v}embeddings.patch_embedding'),
    'cls': state[f'{v}embeddings.class_embedding'],
    'positions': state[f'{v}embeddings.position_embedding.weight'],
    'pre_norm': _norm(state, f'{v}pre_layrnorm'),  # spelt so
    'post_norm': _norm(state, f'{v}post_layernorm'),
  }
  prefix = f'{v}encoder.layers.'
  for i in range(_depth(state, prefix)):
    params[f'block{i}'] = hugging_face_block(state, f'{prefix}{i}')
  if 'visual_projection.weight' in state:
    params['project'] = {'kernel': state['visual_projection.weight'].T}
  return params


def openai_block(state: State, name: str) -> Tree:
  """One block of either tower; `name` is its prefix."""
  kernels = np.split(state[f'{name}.attn.in_proj_weight'], 3)
  biases = np.split(state[f'{name}.attn.in_proj_bias'], 3)
  params = {
    key: {'kernel': kernel.T, 'bias': bias}
    for key, kernel, bias in zip(
      ('query', 'key', 'value'), kernels, biases, strict=True
    )
  }
  return params | {
    'norm1': _norm(state, f'{name}.ln_1'),
    'out': _dense(state, f'{name}.attn.out_proj'),
    'norm2': _norm(state, f'{name}.ln_2'),
    'up': _dense(state, f'{name}.mlp.c_fc'),
    'down': _dense(state, f'{name}.mlp.c_proj'),
  }


def _openai(state: State) -> Tree:
  params = {
    'patches': _conv(state, 'visual.conv1'),
    'cls': state['visual.class_embedding'],
    'positions': state['visual.positional_embedding'],
    'pre_norm': _norm(state, 'visual.ln_pre'),
    'post_norm': _norm(state, 'visual.ln_post'),
    'project': {'kernel': state['visual.proj']},
  }
  prefix = 'visual.transformer.resblocks.'
  for i in range(_depth(state, prefix)):
    params[f'block{i}'] = openai_block(state, f'{prefix}{i}')
  return params


def _is_resnet(state: State) -> bool:
  return any(k.startswith(_STAGE) for k in state)


def _resnet(state: State, heads: int) -> Tower:
  whole = _BatchNormed({}, {})
  for i in range(1, 4):
    names = f'conv{i}', f'norm{i}'
    whole.add(state, f'visual.conv{i}', f'visual.bn{i}', names)
  depths = _resnet_depths(state)
  for i, depth in enumerate(depths):
    for j in range(depth):
      prefix = f'{_STAGE}{i + 1}.{j}.'
      block = _BatchNormed({}, {})
      for k in range(1, 4):
        names = f'conv{k}', f'norm{k}'
        block.add(state, f'{prefix}conv{k}', f'{prefix}bn{k}', names)
      if not j:  # 0 and 1 follow the pooling, which has no weights
        skip = f'{prefix}downsample.'
        block.add(state, f'{skip}0', f'{skip}1', ('conv_skip', 'norm_skip'))
      name = f'stage{i + 1}_{j}'
      whole.params[name], whole.stats[name] = block
  pool = 'visual.attnpool'
  positions = state[f'{pool}.positional_embedding']
  whole.params['pool'] = {
    'positions': positions,
    **{
      name: _dense(state, f'{pool}.{name[0]}_proj')
      for name in ('query', 'key', 'value')
    },
    'out': _dense(state, f'{pool}.c_proj'),
  }
  model = {
    'tower': 'resnet',
    'blocks': depths,
    'width': whole.params['conv3']['kernel'].shape[-1],
    'heads': heads or positions.shape[1] // 64,
    'out': whole.params['pool']['out']['kernel'].shape[1],
  }
  side = round((len(positions) - 1) ** 0.5)
  variables = {'params': whole.params, 'batch_stats': whole.stats}
  return Tower(model, side * CLIP_SHRINKS, variables)


def _resnet_depths(state: State) -> tuple[int, ...]:
  """Blocks of each stage."""
  found = {
    tuple(map(int, k.removeprefix(_STAGE).split('.')[:2]))
    for k in state
    if k.startswith(_STAGE)
  }
  stages = [i for i, _ in found]
  return tuple(stages.count(i) for i in sorted(set(stages)))


def efficientnet(state: State, stages: Sequence[Stage] = LITE0) -> Tree:
  """EfficientNet-Lite's {'params', 'batch_stats'}, without its classifier.

  Raises ValueError for a tensor that is missing.
  """
  whole = _BatchNormed({}, {})
  try:
    whole.add(state, '_conv_stem', '_bn0', ('stem', 'stem_norm'))
    for i, shape in enumerate(blocks(stages)):
      name = f'_blocks.{i}.'
      block = _BatchNormed({}, {})
      parts = [('depthwise', 'bn1'), ('project', 'bn2')]
      if shape.expand != 1:
        parts.insert(0, ('expand', 'bn0'))
      for part, norm in parts:
        names = part, f'{part}_norm'
        block.add(state, f'{name}_{part}_conv', f'{name}_{norm}', names)
      whole.params[f'block{i}'], whole.stats[f'block{i}'] = block
    whole.add(state, '_conv_head', '_bn1', ('head', 'head_norm'))
  except KeyError as e:
    raise ValueError(
      f'No tensor {e} in the file: it is not of EfficientNet-Lite0. Set '
      '--config.source.'
    ) from e
  return {'params': whole.params, 'batch_stats': whole.stats}

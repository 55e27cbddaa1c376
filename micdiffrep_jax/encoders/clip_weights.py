"""Files of CLIP weights -> the variables of its image towers.

Transformers, models/vit.py, come in two layouts: Hugging Face's (q, k,
v apart, with or without the prefix 'vision_model.') and OpenAI's (q, k, v in
one matrix, under 'visual.'). ResNets are in clip_resnet_weights.py.
Letters: d features, p patch, g patches per side.
"""

import json
import os
from typing import Any

import numpy as np

from micdiffrep_jax.encoders import clip_resnet_weights, torch_file
from micdiffrep_jax.encoders.torch_layers import State, Tree, conv, dense, norm
from micdiffrep_jax.models.vit import ACTIVATIONS
from micdiffrep_jax.run.checks import lookup


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
  if clip_resnet_weights.holds(state):
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


def convert(
  state: State, heads: int, activation: str
) -> tuple[dict[str, Any], int, Tree]:
  """Returns the fields of methods/external.py, the input size, the variables.

  activation is a transformer's. Raises ValueError for tensors that are no image
  tower of CLIP.
  """
  try:
    if clip_resnet_weights.holds(state):
      return clip_resnet_weights.convert(state, heads)
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
  return model, side * patch, {'params': params}


def _depth(state: State, prefix: str) -> int:
  at = prefix.count('.')
  found = {k.split('.')[at] for k in state if k.startswith(prefix)}
  return len(found)


def hugging_face_block(state: State, name: str) -> Tree:
  """One block of either tower; `name` is its prefix."""
  attention = f'{name}.self_attn'
  return {
    'norm1': norm(state, f'{name}.layer_norm1'),
    'query': dense(state, f'{attention}.q_proj'),
    'key': dense(state, f'{attention}.k_proj'),
    'value': dense(state, f'{attention}.v_proj'),
    'out': dense(state, f'{attention}.out_proj'),
    'norm2': norm(state, f'{name}.layer_norm2'),
    'up': dense(state, f'{name}.mlp.fc1'),
    'down': dense(state, f'{name}.mlp.fc2'),
  }


def _hugging_face(state: State) -> Tree:
  v = 'vision_model.'
  if not any(k.startswith(v) for k in state):
    v = ''
  params = {
    'patches': conv(state, f'{v}embeddings.patch_embedding'),
    'cls': state[f'{v}embeddings.class_embedding'],
    'positions': state[f'{v}embeddings.position_embedding.weight'],
    'pre_norm': norm(state, f'{v}pre_layrnorm'),  # spelt so
    'post_norm': norm(state, f'{v}post_layernorm'),
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
    'norm1': norm(state, f'{name}.ln_1'),
    'out': dense(state, f'{name}.attn.out_proj'),
    'norm2': norm(state, f'{name}.ln_2'),
    'up': dense(state, f'{name}.mlp.c_fc'),
    'down': dense(state, f'{name}.mlp.c_proj'),
  }


def _openai(state: State) -> Tree:
  params = {
    'patches': conv(state, 'visual.conv1'),
    'cls': state['visual.class_embedding'],
    'positions': state['visual.positional_embedding'],
    'pre_norm': norm(state, 'visual.ln_pre'),
    'post_norm': norm(state, 'visual.ln_post'),
    'project': {'kernel': state['visual.proj']},
  }
  prefix = 'visual.transformer.resblocks.'
  for i in range(_depth(state, prefix)):
    params[f'block{i}'] = openai_block(state, f'{prefix}{i}')
  return params

"""The towers against transformers, on random weights."""

import json

import jax
import numpy as np
import pytest

from configs import convert_clip
from micdiffrep_jax.encoders import convert, weights
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.models.vit import TextTransformer, VisionTransformer

pytestmark = pytest.mark.needs('torch', 'transformers')


def relative(a, b):
  a, b = np.asarray(a), np.asarray(b)
  return np.abs(a - b).max() / np.abs(b).max()


@pytest.fixture(scope='module')
def reference():
  import torch_clip_towers

  return torch_clip_towers


@pytest.fixture(scope='module')
def vision(reference):
  return reference.vision()


def run_vision(state, images, activation='quick_gelu'):
  fields, size, variables = weights.clip(state, 4, activation)
  fields.pop('tower')
  assert size == images.shape[-1]
  return VisionTransformer(**fields).apply(
    variables, images.transpose(0, 2, 3, 1)
  )


@pytest.fixture(scope='module')
def pictures():
  rng = np.random.default_rng(0)
  return rng.normal(size=(2, 3, 24, 24)).astype(np.float32)


def test_the_image_tower_equals_transformers(reference, vision, pictures):
  want = reference.outputs(vision, pictures, output_hidden_states=True)
  embedding, taps = run_vision(reference.state(vision), pictures)
  assert relative(embedding, want.image_embeds) < 1e-5
  assert relative(taps['embedding'][:, 0, 0], want.image_embeds) < 1e-5
  for i in range(2):
    patches = taps[f'block{i}'].reshape(2, 9, 32)
    assert relative(patches, want.hidden_states[i + 1][:, 1:]) < 1e-5


def test_a_wrong_gelu_does_not_pass(reference, vision, pictures):
  want = reference.outputs(vision, pictures).image_embeds
  embedding, _ = run_vision(reference.state(vision), pictures, 'gelu')
  assert relative(embedding, want) > 1e-4


def test_a_tower_without_prefix_or_projection_gives_the_pooled_token(
  reference, pictures
):
  bare = reference.vision_without_projection()
  want = reference.outputs(bare, pictures).pooler_output
  output, taps = run_vision(reference.state(bare), pictures)
  assert relative(output, want) < 1e-5
  assert 'embedding' not in taps


def test_the_text_tower_equals_transformers(reference):
  model = reference.text()
  state = reference.state(model)
  prefix = 'text_model.'
  params = {
    'tokens': {
      'embedding': state[f'{prefix}embeddings.token_embedding.weight']
    },
    'positions': state[f'{prefix}embeddings.position_embedding.weight'],
    'post_norm': {
      'scale': state[f'{prefix}final_layer_norm.weight'],
      'bias': state[f'{prefix}final_layer_norm.bias'],
    },
    'project': {'kernel': state['text_projection.weight'].T},
  }
  for i in range(2):
    params[f'block{i}'] = weights.hugging_face_block(
      state, f'{prefix}encoder.layers.{i}'
    )
  ids = np.array([[48, 3, 7, 49, 0, 0, 0, 0], [48, 5, 2, 9, 11, 4, 6, 49]])
  want = reference.outputs(model, ids).text_embeds
  found, _ = TextTransformer(50, 8, 32, 2, 4, 16).apply({'params': params}, ids)
  assert relative(found, want) < 1e-5


@pytest.mark.needs('safetensors')
def test_a_safetensors_file_becomes_an_encoder(reference, vision, tmp_path):
  vision.save_pretrained(tmp_path)
  config = convert_clip.get_config()
  config.source = str(tmp_path / 'model.safetensors')
  config.size_px, config.channels, config.heads = 24, 3, 4
  results = convert.run(config, str(tmp_path / 'run'))
  assert results['model']['activation'] == 'quick_gelu'
  encoder = encoders.load_encoder(str(tmp_path / 'run'))
  assert encoder.info.images_seen == 0
  assert encoder.info.fingerprint == ''
  images = np.random.default_rng(1).integers(0, 256, (8, 24, 24, 3), np.uint8)
  taps = encoder.method.features(encoder.variables, images, None, 0)
  mean = np.array([0.48145466, 0.4578275, 0.40821073])
  std = np.array([0.26862954, 0.26130258, 0.27577711])
  x = ((images / 255.0 - mean) / std).transpose(0, 3, 1, 2)
  want = reference.outputs(vision, x.astype(np.float32)).image_embeds
  assert relative(taps['embedding'][:, 0, 0], want) < 1e-5
  # Its twin has other weights of the same shapes.
  twin = encoders.random_encoder(encoder)
  assert jax.tree.structure(twin.variables) == jax.tree.structure(
    encoder.variables
  )


@pytest.mark.needs('safetensors')
def test_an_activation_nobody_tells_is_an_error(vision, tmp_path):
  vision.save_pretrained(tmp_path)
  (tmp_path / 'config.json').unlink()
  path = str(tmp_path / 'model.safetensors')
  with pytest.raises(ValueError, match='--config.activation=quick_gelu'):
    weights.read(path, 'auto')
  assert weights.read(path, 'gelu')[1] == 'gelu'
  (tmp_path / 'config.json').write_text(json.dumps({'hidden_act': 'relu'}))
  with pytest.raises(ValueError, match="'relu'"):
    weights.read(path, 'auto')

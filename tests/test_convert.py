"""From a file of weights to a probe's table, without torch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from configs import convert_clip, pretrain, probe
from micdiffrep_jax.encoders import convert, encoder, weights
from micdiffrep_jax.methods import external
from micdiffrep_jax.pretrain import train
from micdiffrep_jax.studies import probe as probing
from micdiffrep_jax.studies import table1

D, PATCH, DEPTH = 16, 8, 1


def tower(seed=0):
  """The tensors of a Hugging Face image tower for 16 px."""
  rng = np.random.default_rng(seed)
  v, layer = 'vision_model.', 'vision_model.encoder.layers.0.'
  shapes = {
    v + 'embeddings.class_embedding': (D,),
    v + 'embeddings.patch_embedding.weight': (D, 3, PATCH, PATCH),
    v + 'embeddings.position_embedding.weight': (5, D),
    v + 'embeddings.position_ids': (1, 5),  # older files have it
    'visual_projection.weight': (8, D),
    layer + 'mlp.fc1.weight': (4 * D, D),
    layer + 'mlp.fc1.bias': (4 * D,),
    layer + 'mlp.fc2.weight': (D, 4 * D),
    layer + 'mlp.fc2.bias': (D,),
  }
  for name in ('pre_layrnorm', 'post_layernorm'):
    shapes |= {f'{v}{name}.weight': (D,), f'{v}{name}.bias': (D,)}
  for name in ('layer_norm1', 'layer_norm2'):
    shapes |= {f'{layer}{name}.weight': (D,), f'{layer}{name}.bias': (D,)}
  for name in ('q_proj', 'k_proj', 'v_proj', 'out_proj'):
    shapes[f'{layer}self_attn.{name}.weight'] = (D, D)
    shapes[f'{layer}self_attn.{name}.bias'] = (D,)
  return {
    k: rng.normal(size=s, scale=0.2).astype(np.float32)
    for k, s in shapes.items()
  }


def settings(folder, state, act='quick_gelu'):
  from safetensors.numpy import save_file

  save_file(state, str(folder / 'model.safetensors'))
  (folder / 'config.json').write_text(
    json.dumps({'vision_config': {'hidden_act': act}})
  )
  config = convert_clip.get_config()
  config.source = str(folder / 'model.safetensors')
  config.size_px, config.heads = 16, 2
  return config


@pytest.mark.parametrize(('size', 'to'), [(16, 24), (24, 16)])
def test_images_are_resized_as_pillow_does(size, to):
  image = np.random.default_rng(0).integers(0, 256, (size, size), np.uint8)
  want = Image.fromarray(image.astype(np.float32), 'F').resize(
    (to, to), Image.Resampling.BICUBIC
  )
  want = np.clip(np.asarray(want) / 255, 0, 1)
  mean, std = (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)
  found = external.prepare(jnp.asarray(image[None, :, :, None]), to, mean, std)
  assert found.shape == (1, to, to, 3)
  for c in range(3):
    np.testing.assert_allclose(
      found[0, :, :, c], (want - mean[c]) / std[c], atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.needs('safetensors')
def test_a_converted_encoder_is_probed(tmp_path):
  results = convert.run(settings(tmp_path, tower()), str(tmp_path / 'run'))
  assert results['layers'] == ['block0', 'pooled', 'embedding']
  config = probe.get_config('test')
  config.checkpoint = str(tmp_path / 'run')
  config.timesteps, config.layers = (0,), ('block0', 'pooled')
  config.grids, config.seeds, config.classic = (1,), (0,), ()
  config.heads.kinds, config.bundle = ('linear',), 'linear_concat'
  config.floors, config.resamples = ('majority',), 10
  found = probing.run(config.lock(), str(tmp_path / 'probe'))
  assert found['pretraining_saw_test_images'].startswith('unknown')
  assert found['encoder']['images_seen'] == 0
  cost = table1.cost(encoder.load_encoder(config.checkpoint))
  assert cost.flags == ('external',)
  assert cost.parameters == results['parameters']
  assert cost.training_s is cost.flops_per_image is None
  assert 'random/linear_concat' in found['rows']


@pytest.mark.needs('safetensors')
def test_tensors_that_do_not_fit_are_named(tmp_path):
  state = tower()
  del state['vision_model.pre_layrnorm.bias']
  with pytest.raises(ValueError, match=r'pre_layrnorm\.bias'):
    convert.run(settings(tmp_path, state), str(tmp_path / 'run'))
  state = tower()
  name = 'vision_model.encoder.layers.0.mlp.fc1.bias'
  state[name] = state[name][:-1]
  with pytest.raises(ValueError, match='block0/up/bias'):
    convert.run(settings(tmp_path, state), str(tmp_path / 'run'))
  config = settings(tmp_path, tower(), act='silu')
  with pytest.raises(ValueError, match='--config.activation'):
    convert.run(config, str(tmp_path / 'run'))
  config.source = ''
  with pytest.raises(ValueError, match='--config.source'):
    convert.run(config, str(tmp_path / 'run'))


@pytest.mark.needs('safetensors')
def test_a_frozen_encoder_is_not_pretrained(tmp_path):
  config = settings(tmp_path, tower())
  record = convert.encoder_config(convert.clip(config.source, config))
  run = pretrain.get_config('test')
  run.steps, run.monitor.probe_images = 2, 0
  run.method, run.model, run.input = 'clip_frozen', record.model, record.input
  with pytest.raises(ValueError, match='converted by.*--config.method'):
    train.run(run, str(tmp_path / 'pretrain'))


def test_both_layouts_give_the_same_variables():
  state = tower()
  v, layer = 'vision_model.', 'vision_model.encoder.layers.0.'
  block = 'visual.transformer.resblocks.0.'
  other = {
    'visual.conv1.weight': state[v + 'embeddings.patch_embedding.weight'],
    'visual.class_embedding': state[v + 'embeddings.class_embedding'],
    'visual.positional_embedding': state[
      v + 'embeddings.position_embedding.weight'
    ],
    'visual.proj': state['visual_projection.weight'].T,
  }
  for kind in ('weight', 'bias'):
    other |= {
      f'visual.ln_pre.{kind}': state[f'{v}pre_layrnorm.{kind}'],
      f'visual.ln_post.{kind}': state[f'{v}post_layernorm.{kind}'],
      f'{block}ln_1.{kind}': state[f'{layer}layer_norm1.{kind}'],
      f'{block}ln_2.{kind}': state[f'{layer}layer_norm2.{kind}'],
      f'{block}mlp.c_fc.{kind}': state[f'{layer}mlp.fc1.{kind}'],
      f'{block}mlp.c_proj.{kind}': state[f'{layer}mlp.fc2.{kind}'],
      f'{block}attn.in_proj_{kind}': np.concatenate(
        [state[f'{layer}self_attn.{x}_proj.{kind}'] for x in 'qkv']
      ),
      f'{block}attn.out_proj.{kind}': state[
        f'{layer}self_attn.out_proj.{kind}'
      ],
    }
  a = weights.clip(state, 2, 'quick_gelu')
  b = weights.clip(other, 2, 'quick_gelu')
  assert a[:2] == b[:2]
  jax.tree.map(np.testing.assert_array_equal, a[2], b[2])

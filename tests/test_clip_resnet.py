"""CLIP's ResNet against PyTorch, on random weights."""

import jax
import numpy as np
import pytest

from configs import convert_clip, probe
from micdiffrep_jax.encoders import convert, torch_file, weights
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.models.resnet import ClipResNet, clip_tap_names
from micdiffrep_jax.studies import probe as probing

BLOCKS, WIDTH, HEADS, OUT, SIZE = (1, 2, 1, 1), 4, 4, 6, 64
# What the reference can do in another plausible way.
WRONG = (
  'stem_max_pool',
  'pool_before_conv',
  'strided_skip',
  'no_positions',
  'plain_mean',
)


def relative(a, b):
  a, b = np.asarray(a), np.asarray(b)
  return np.abs(a - b).max() / np.abs(b).max()


def model_of(wrong=''):
  import torch
  import torch_clip_resnet as reference

  torch.manual_seed(0)
  return reference.shake(
    reference.Clip(reference.Tower(BLOCKS, WIDTH, HEADS, OUT, SIZE, wrong))
  )


def numpy_state(model):
  return {k: v.numpy() for k, v in model.state_dict().items()}


@pytest.fixture(scope='module')
def model():
  return model_of()


@pytest.fixture(scope='module')
def pictures():
  rng = np.random.default_rng(0)
  return rng.normal(size=(3, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope='module')
def found(model, pictures):
  fields, size, variables = weights.clip(
    numpy_state(model), HEADS, 'quick_gelu'
  )
  assert fields == {
    'tower': 'resnet',
    'blocks': BLOCKS,
    'width': WIDTH,
    'heads': HEADS,
    'out': OUT,
  }
  assert size == SIZE
  del fields['tower']
  return jax.jit(ClipResNet(**fields).apply)(
    variables, pictures.transpose(0, 2, 3, 1)
  )


@pytest.mark.needs('torch')
def test_every_stage_and_the_embedding_equal_torch(model, pictures, found):
  import torch

  embedding, taps = found
  with torch.no_grad():
    stages = model.visual.stages(torch.tensor(pictures))
    want = model.visual(torch.tensor(pictures))
  assert set(taps) == set(clip_tap_names(BLOCKS))
  for i, stage in enumerate(stages):
    assert relative(taps[f'stage{i + 1}'], stage.permute(0, 2, 3, 1)) < 1e-5
  assert relative(embedding, want) < 1e-5
  np.testing.assert_array_equal(taps['embedding'][:, 0, 0], embedding)


@pytest.mark.needs('torch')
@pytest.mark.parametrize('wrong', WRONG)
def test_a_wrong_detail_does_not_pass(pictures, found, wrong):
  import torch

  other = model_of(wrong)
  with torch.no_grad():
    want = other.visual(torch.tensor(pictures))
  assert relative(found[0], want) > 1e-3


@pytest.mark.needs('torch')
def test_running_statistics_are_read(model, pictures, found):
  state = numpy_state(model)
  state['visual.layer2.1.bn2.running_var'] *= 2
  fields, _, variables = weights.clip(state, HEADS, 'quick_gelu')
  del fields['tower']
  other = jax.jit(ClipResNet(**fields).apply)(
    variables, pictures.transpose(0, 2, 3, 1)
  )
  assert relative(other[1]['stage1'], found[1]['stage1']) == 0
  assert relative(other[1]['stage2'], found[1]['stage2']) > 1e-3


@pytest.mark.slow
def test_random_weights_neither_vanish_nor_explode():
  model = ClipResNet((2, 2, 2, 2), 8, 4, 16)
  x = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
  _, taps = jax.jit(model.init_with_output)(jax.random.key(0), x)[0]
  # Pooled features are cached as float16: far from both its ends.
  for tap in taps.values():
    assert 1e-2 < float(np.std(tap)) < 1e3


@pytest.mark.needs('torch')
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_an_archive_of_half_precision_becomes_a_probed_encoder(tmp_path):
  import torch

  path = str(tmp_path / 'RN50.pt')
  half = model_of().half()
  torch.jit.trace(half, torch.zeros(1, 3, SIZE, SIZE).half()).save(path)
  want = torch.jit.load(path).state_dict()
  state = torch_file.read(path)
  assert set(state) == set(want)
  for name, value in want.items():
    np.testing.assert_array_equal(state[name], value.numpy(), err_msg=name)

  config = convert_clip.get_config()
  config.source, config.size_px, config.heads = path, 16, HEADS
  config.input_px = 2 * SIZE
  with pytest.raises(ValueError, match='--config.input_px=0'):
    convert.run(config, str(tmp_path / 'run'))
  config.input_px = 0
  results = convert.run(config, str(tmp_path / 'run'))
  assert results['method'] == 'clip_frozen'
  assert results['input']['size_px'] == SIZE
  encoder = encoders.load_encoder(str(tmp_path / 'run'))
  assert encoder.method.layers == clip_tap_names(BLOCKS)
  assert encoder.info.name == 'CLIP resnet, external'
  images = np.random.default_rng(1).integers(0, 256, (8, 16, 16, 1), np.uint8)
  taps = encoder.method.features(encoder.variables, images, None, 0)
  x = jax.image.resize(images / 255.0, (8, SIZE, SIZE, 1), 'cubic').clip(0, 1)
  mean, std = (np.array(results['input'][k]) for k in ('mean', 'std'))
  x = (np.asarray(x) - mean) / std
  with torch.no_grad():
    rounded = half.float().visual(
      torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2)
    )
  assert relative(taps['embedding'][:, 0, 0], rounded) < 1e-5

  config = probe.get_config('test')
  config.checkpoint = str(tmp_path / 'run')
  config.timesteps, config.layers = (0,), ('stage2', 'embedding')
  config.grids, config.seeds, config.classic = (1,), (0,), ()
  config.heads.kinds, config.bundle = ('linear',), 'linear_concat'
  config.floors, config.resamples = ('majority',), 10
  found = probing.run(config.lock(), str(tmp_path / 'probe'))
  assert 'random/linear_concat' in found['rows']
  assert found['pretraining_saw_test_images'].startswith('unknown')


@pytest.mark.needs('torch')
@pytest.mark.parametrize(
  'name',
  ['attnpool.c_proj.weight', 'layer3.0.downsample.1.running_var', 'bn2.bias'],
)
def test_a_missing_tensor_is_named(model, name):
  state = numpy_state(model)
  del state[f'visual.{name}']
  with pytest.raises(ValueError, match=name):
    weights.clip(state, HEADS, 'quick_gelu')


@pytest.mark.needs('torch', 'safetensors')
def test_a_safetensors_file_needs_no_activation(model, tmp_path):
  from safetensors.numpy import save_file

  path = str(tmp_path / 'model.safetensors')
  save_file(numpy_state(model), path)
  assert weights.read(path, 'auto')[1] == ''

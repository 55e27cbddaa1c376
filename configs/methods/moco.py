"""MoCo v2: two views against a queue."""

from ml_collections import ConfigDict

from configs.methods import shared


def fill(config: ConfigDict, size: str) -> None:
  """MoCo v2; the paper's optimizer, momentum and temperature.

  tiny with --config.steps=1000, on 9,569 images of 64 px: 64,000 images drawn
  in 13 minutes on a shared CPU core. Effective rank 63.4, with random weights
  54.4; test accuracy (configs/probe.py:tiny, one average a layer) of logistic
  regression .640 against .589, of nearest neighbours .745 against .719.
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
  config.batch_size = 256
  config.model.groups = 8  # the reference has one a GPU
  config.optim.name = 'sgd'
  config.optim.lr = 0.03
  config.optim.weight_decay = 1e-4
  if size == 'tiny':
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

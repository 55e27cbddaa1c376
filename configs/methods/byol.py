"""BYOL: one view predicts the other's target."""

from ml_collections import ConfigDict

from configs.methods import shared


def fill(config: ConfigDict, size: str) -> None:
  """BYOL; the recipe that its authors publish for 300 epochs.

  tiny stays healthy with milder views and SGD: on 9,569 images of 64 px the
  effective rank falls from 54 with random weights to 30 in the first 13,000
  images drawn, and is back at 54 after 256,000. Under the views `paper` it was
  25 to 36 after up to 64,000, with AdamW, LARS and SGD. Watch feature_rank
  against feature_rank_init.
  """
  del config.augment
  shared.resnet(config, size)
  config.views = 'paper_asymmetric'  # paper | paper_asymmetric | mri
  config.byol = ConfigDict()
  config.byol.hidden = 4096  # of projector and predictor
  config.byol.features = 256
  config.byol.tau = 0.99  # the target's decay at the start; 1 at the end
  config.batch_size = 1024  # 4096 in the paper
  config.optim.name = 'lars'
  config.optim.lr = 1.2  # 0.3 per 256 images
  config.optim.weight_decay = 1e-6
  config.optim.warmup_steps = 1000
  if size == 'tiny':
    config.views = 'mri'
    config.batch_size = 128
    config.steps = 2000
    config.byol.hidden = 512
    config.byol.features = 128
    config.optim.name = 'sgd'
    config.optim.lr = 0.1
    config.optim.weight_decay = 1e-4
    config.optim.warmup_steps = 100
  elif size == 'test':
    config.batch_size = 16
    config.byol.hidden = 16
    config.byol.features = 8
    config.optim.lr = 0.1
    config.optim.warmup_steps = 2

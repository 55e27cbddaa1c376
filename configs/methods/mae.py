"""MAE: hidden patches from visible ones."""

from ml_collections import ConfigDict

from configs.methods import shared


def fill(config: ConfigDict, size: str) -> None:
  """The recipe of the paper, for smaller batches."""
  del config.augment
  shared.vit(config, size)
  config.mae = ConfigDict()  # the decoder, and the task
  config.mae.width = 512
  config.mae.depth = 8
  config.mae.heads = 16
  config.mae.mask = 0.75  # share of the patches that is hidden
  config.mae.normalise = True  # each target patch by its mean and deviation
  config.mae.variance_floor = 0.0  # ours; least variance divided by, e.g. 1e-3
  config.crop = (0.2, 1.0)  # share of the area; flips too
  config.batch_size = 256  # 4096 in the paper
  config.optim.name = 'adamw'
  config.optim.lr = 1.5e-4  # per 256 images
  config.optim.schedule = 'cosine'
  config.optim.warmup_steps = 2000  # 40 epochs in the paper
  config.optim.b2 = 0.95
  config.optim.weight_decay = 0.05
  if size == 'tiny':
    config.mae.width, config.mae.depth, config.mae.heads = 64, 2, 4
    config.mae.variance_floor = 1e-3
    config.batch_size = 64
    config.steps = 4000
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 300
    config.save_every, config.eval_every = 1000, 1000
  elif size == 'test':
    config.mae.width, config.mae.depth, config.mae.heads = 8, 1, 2
    config.batch_size = 16
    config.optim.warmup_steps = 2

"""BYOL: one view predicts the other's target."""

from ml_collections import ConfigDict

from configs.methods import shared


def fill(config: ConfigDict, size: str) -> None:
  """BYOL; the recipe that its authors publish for 300 epochs.

  tiny collapses in part in short runs: no healthy setting is known yet. On
  9,569 images of 64 px, views `paper`, 28,000 images drawn with AdamW 5e-4,
  weight decay 0.01, batch 128 and tau 0.996: effective rank 25, with random
  weights 54, and features worse than random ones. LARS 0.5 with tau 0.97, batch
  64: 20 after 8,000 images, 25 after 13,760, so a longer run may recover. Watch
  feature_rank against feature_rank_init.
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
    config.batch_size = 64
    config.steps = 4000
    config.byol.hidden = 512
    config.byol.features = 128
    config.optim.name = 'adamw'
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 200
  elif size == 'test':
    config.batch_size = 16
    config.byol.hidden = 16
    config.byol.features = 8
    config.optim.lr = 0.1
    config.optim.warmup_steps = 2

"""The diffusion model with momentum contrast in the same network."""

from ml_collections import ConfigDict

from configs import pretrain


def ddpm(config: ConfigDict, size: str) -> None:
  """What the diffusion model of this size has, in place of a baseline's."""
  found = pretrain.get_config(size)
  for name in found:
    if name not in ('task', 'method', 'data'):
      config[name] = found[name]


def fill(config: ConfigDict, size: str) -> None:
  """Weights, noise levels and queue are ours."""
  ddpm(config, size)
  # paper | paper_asymmetric | mri, or '' for config.augment alone, which is
  # done on top of them. The first view is what is denoised.
  config.views = 'mri'
  for name in config.augment:
    config.augment[name] = 0.0
  config.contrast = ConfigDict()
  config.contrast.denoise = 1.0  # weight of denoising; 0 is contrast alone
  config.contrast.weight = 0.2  # of contrast
  config.contrast.warmup_steps = 2000  # over which that weight rises from 0
  # Whose averages are compared, side by side; () is the last two to the middle.
  config.contrast.taps = ()
  config.contrast.share = 0.5  # of a batch that is compared
  # False: only the others are denoised, as they are; at 0.75 half of the time.
  config.contrast.denoise_compared = True
  config.contrast.t_limit = 200  # and has less noise than this
  config.contrast.t_key = 50  # keys have less noise than this
  config.contrast.hidden = 2048  # of the projector
  config.contrast.features = 128
  config.contrast.norm = 'batch'  # of the projector: '' | layer | batch
  config.contrast.groups = 2  # of the batch norm, each with its own statistics
  config.contrast.queue = 8192  # keys; at most a quarter of the images
  config.contrast.temperature = 0.2
  # Leave keys of an image's group (near-duplicates, patient) out; no labels.
  config.contrast.mask_groups = True
  if size == 'tiny':
    config.contrast.warmup_steps = 500
    config.contrast.hidden = 256
    config.contrast.queue = 1024
  elif size == 'test':
    config.contrast.warmup_steps = 5
    config.contrast.hidden = 16
    config.contrast.features = 8
    config.contrast.queue = 32


def fill_alone(config: ConfigDict, size: str) -> None:
  """The control: the same encoder, views and queue, without denoising."""
  fill(config, size)
  config.method = 'ddpm_contrast'
  config.contrast.denoise = 0.0
  config.contrast.weight = 1.0
  config.contrast.share = 1.0  # none is drawn where nothing is compared
  config.monitor.samples = 0

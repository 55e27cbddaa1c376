"""The diffusion model with a teacher."""

from ml_collections import ConfigDict

from configs.methods.ddpm_contrast import ddpm


def fill(config: ConfigDict, size: str) -> None:
  """Distils a frozen encoder or a table of features; one of them is given."""
  ddpm(config, size)
  config.align = ConfigDict()
  config.align.weight = 0.5  # of 1 - cosine, beside the denoising loss
  # The layer that says what the teacher sees, or several: 'down1_0+mid'.
  config.align.tap = 'down1_0'
  # 1: all images are denoised; 4: one in four, the others are aligned alone;
  # 0: none is.
  config.align.denoise_every = 1
  config.align.t_limit = 200  # those have less noise than this
  config.align.hidden = 1024  # of the projector
  config.teacher = ConfigDict()
  config.teacher.checkpoint = ''  # a run, a bundle, or of convert_clip.py
  config.teacher.layer = 'block10'  # of that encoder
  config.teacher.timestep = 0  # of an encoder that knows noise
  config.teacher.features = ''  # or an .npz: id (n,), features (n, [h, h,] d)
  config.teacher.grid = 8  # cells per side of its maps, at most
  config.teacher.batch_size = 64
  # Filled in when a run begins, and saved with it.
  config.teacher.name = ''
  config.teacher.flags = ()  # what its own results are flagged with
  config.teacher.shape = ()  # of a map: cells, cells, features
  if size == 'tiny':
    config.align.hidden = 256
  elif size == 'paper':
    config.teacher.grid = 7  # cells of the UNet's middle at 112 px
  elif size == 'test':
    config.align.hidden = 16


def fill_alone(config: ConfigDict, size: str) -> None:
  """The control: distillation alone, of the encoder's last layer too."""
  fill(config, size)
  config.method = 'ddpm_aligned'
  config.align.denoise_every = 0
  config.align.tap = 'down1_0+mid'
  config.monitor.samples = 0

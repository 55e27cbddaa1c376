r"""Draws images from a pretrained DDPM and checks them against the real ones.

python -m micdiffrep_jax.main --config=configs/sample.py \
  --config.checkpoint=RUN --workdir=SAMPLES

(none)   64 images by DDIM in 50 steps: a look at a model.
paper    the paper's Fig. 5: 32 images by DDPM in all 1000 steps.
quality  1000 images by DPM-Solver++ in 20 steps: for the numbers.
test     8 small ones; seconds.
Time is that of one forward pass times images times steps; results.json says
what it was. Image i depends on the seed and i alone, up to rounding.
"""

from ml_collections import ConfigDict


def get_config(preset: str = '') -> ConfigDict:
  """The fields of a sampling run; all values are ours but the 1000 steps."""
  config = ConfigDict()
  config.task = 'sample'
  config.checkpoint = ''  # folder of a pretraining run
  config.step = 0  # of the checkpoint; 0 takes the newest sound one
  config.seed = 0
  config.images = 64  # how many are drawn
  config.batch_size = 32  # over all devices; also for features

  config.data = ConfigDict()  # the real images to compare with
  config.data.path = ''  # prepared folder; '' is what the model was trained on
  config.data.split = ''  # '' is the split it was trained with
  config.data.cache = True  # images as one array in memory-mapped form

  config.sampler = ConfigDict()
  config.sampler.name = 'ddim'  # ddpm | ddim | dpm_solver
  config.sampler.steps = 0  # 0: ddpm all T, ddim 50, dpm_solver 20
  config.sampler.eta = 0.0  # ddim only: 0 adds no noise, 1 as much as ddpm
  # trailing | leading | log_snr; '' is log_snr for dpm_solver, else trailing.
  config.sampler.spacing = ''
  config.sampler.variance = 'small'  # ddpm only: small | large
  config.sampler.clip = True  # predicted x0 to [-1, 1]

  config.figure = ConfigDict()
  config.figure.images = 32  # shown in the grids
  config.figure.columns = 8
  config.figure.trajectory = 8  # predictions of x0 on the way; 0 for none
  config.figure.trajectory_images = 4

  config.features = ConfigDict()  # where images are compared
  # Whose: '' is the model itself; models are comparable in those of one encoder
  # alone, a run, a bundle or of convert_clip.py.
  config.features.checkpoint = ''
  config.features.layer = ''  # any layer of the probe; '' is the output
  config.features.timestep = 20
  config.features.train_images = 0  # evenly spread; 0 takes all

  config.memorisation = ConfigDict()
  config.memorisation.enabled = True
  config.memorisation.val_images = 1000  # at most; also for the quality numbers
  # A sample is close to training if closer than this percentile of unseen
  # validation images; a warning is given if more than warn_share of them are,
  # beyond chance.
  config.memorisation.percentile = 5.0
  config.memorisation.warn_share = 0.10

  config.quality = ConfigDict()
  config.quality.enabled = True
  config.quality.loss_images = 512  # for the loss by timestep; 0 for none
  # npz with features of any other network, arrays generated, val and train
  # (n, d), generated in the order of samples.npz; Inception's give FID and KID.
  config.quality.external = ''

  config.interpolation = ConfigDict()
  config.interpolation.images = 4  # pairs of validation images; 0 for none
  config.interpolation.count = 8  # images from one to the other
  config.interpolation.steps = 50

  config.reconstruction = ConfigDict()
  config.reconstruction.images = 8  # validation images; 0 for none
  config.reconstruction.timesteps = (20, 100, 300, 500)
  config.reconstruction.steps = 20

  if preset == 'paper':
    config.images = 32
    config.sampler.name = 'ddpm'
  elif preset == 'quality':
    config.images = 1000
    config.batch_size = 64
    config.sampler.name = 'dpm_solver'
  elif preset == 'test':
    config.images = 8
    config.batch_size = 8
    config.sampler.steps = 4
    config.figure.trajectory = 2
    config.memorisation.val_images = 32
    config.quality.loss_images = 16
    config.interpolation.images = 1
    config.interpolation.count = 3
    config.interpolation.steps = 4
    config.reconstruction.images = 2
    config.reconstruction.timesteps = (5, 500)
    config.reconstruction.steps = 4
  elif preset:
    raise ValueError(f'Unknown preset {preset!r}; one of paper, quality, test.')
  return config

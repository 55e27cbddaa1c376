"""Everything once, on generated pictures: a look at what a study leaves behind.

python -m micdiffrep_jax.main --config=configs/quickstart.py

Pretrains a small UNet on the phantom (cartoon brain slices of 32 px), probes it
beside random weights and the floors, draws samples, and writes report.html and
results.json under runs/quickstart. A few minutes on 2 CPU cores. MSFA has about
90 % on the test part, random weights 74, pixel neighbours 75, and the samples
show heads. The same command goes on where a stopped run was.
"""

from ml_collections import ConfigDict

from configs import pretrain, probe, report, sample

PHANTOM = 'phantom'


def get_config(preset: str = '') -> ConfigDict:
  """Stages and their configs; preset 'test' is a run of seconds."""
  if preset not in ('', 'test'):
    raise ValueError(f'Unknown preset {preset!r}; test, or none.')
  config = ConfigDict()
  config.task = 'pipeline'
  config.stages = ('pretrain', 'probe', 'sample', 'report')
  config.pretrain = pretrain.get_config('test' if preset else 'tiny')
  config.probe = probe.get_config('test')
  config.probe.select = 'validation'  # folds would take three times as long
  config.sample = sample.get_config('test')
  config.report = report.get_config()
  if preset:
    config.probe.data.path = config.pretrain.data.path
    return config

  first = config.pretrain
  first.data.path = PHANTOM
  first.steps = 900
  first.model.channels = 32
  first.model.multipliers = (1, 2, 2)  # of 16, 8, 4 patches
  first.model.patch = 2
  first.model.groups = 8
  # With the defaults, noise and linear, samples are still noisy at the end.
  first.diffusion.target = 'v'
  first.diffusion.schedule = 'cosine'
  first.optim.lr = 1e-3
  first.ema_decay = 0.99
  first.save_every = 300
  first.keep_every = 0
  first.eval_every = 300
  first.monitor.images = 256
  first.monitor.probe_images = 1000  # with 256 it moves by 5 points by chance

  second = config.probe
  second.data.path = PHANTOM
  second.timesteps = (10,)
  second.grids = (4,)
  second.heads.hidden = 64
  second.heads.epochs = 15
  second.heads.batch_size = 128
  second.heads.learning_rates = (1e-3, 1e-2)
  second.resamples = 500

  third = config.sample
  third.images = 32
  third.batch_size = 32
  third.sampler.steps = 50
  return config

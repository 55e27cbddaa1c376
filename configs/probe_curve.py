r"""Probe accuracy against images drawn in pretraining, from kept checkpoints.

python -m micdiffrep_jax.main --config=configs/probe_curve.py:PRESET \
  --config.checkpoint=RUN --config.data.path=DATASET --workdir=RUN/curve

(none)  2 timesteps, 2 poolings, 3 seeds per checkpoint.
tiny    1 timestep, 1 pooling, 1 seed: minutes per checkpoint on 2 CPU cores.
test    seconds; for trying things out.
Scores are of validation images: the curve is for choosing a checkpoint.
Pretrain with --config.keep_every to keep checkpoints on the way.
"""

from ml_collections import ConfigDict

from configs import ablate


def get_config(preset: str = '') -> ConfigDict:
  """The fields of an ablation, smaller, and the steps to probe.

  seeds, classic, bundle, normal_class and step have no effect here.
  """
  if preset not in ('', 'tiny', 'test'):
    raise ValueError(f'Unknown preset {preset!r}; one of tiny, test, or none.')
  config = ablate.get_config(preset)
  config.task = 'probe_curve'
  config.steps = ()  # of the checkpoints; () is all that are kept
  config.random_encoder = True  # the point at no images
  config.floors = ('nearest_pixels', 'nearest_hog')  # dotted lines
  if preset == '':
    config.timesteps = (11, 51)
    config.grids = (1, 4)
  elif preset == 'tiny':
    config.timesteps = (11,)
    config.grids = (4,)
  elif preset == 'test':
    config.timesteps = (11,)
    config.floors = ('nearest_pixels',)
  return config

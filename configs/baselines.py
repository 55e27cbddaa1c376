"""Pretrains the other rows of the paper's Table 1 on the same images.

python -m micdiffrep_jax.main --config=configs/baselines.py:METHOD,SIZE \
  --config.data.path=DATASET --workdir=RUN

SIZE is paper (the default; a GPU or TPU), tiny (64 px, 2 CPU cores) or test
(seconds). What all methods share is in configs/pretrain.py.
"""

from ml_collections import ConfigDict

from configs import pretrain

SIZES = ('paper', 'tiny', 'test')


METHODS: dict = {}
PRESETS = tuple(f'{m},{s}' for m in METHODS for s in SIZES)


def get_config(preset: str = 'mae,paper') -> ConfigDict:
  """The fields of a baseline; a comment marks what is ours."""
  name, _, size = preset.partition(',')
  size = size or 'paper'
  if name not in METHODS or size not in SIZES:
    raise ValueError(
      f'Unknown preset {preset!r}; METHOD or METHOD,SIZE with METHOD one of '
      f'{", ".join(METHODS)} and SIZE one of {", ".join(SIZES)}.'
    )
  config = pretrain.get_config('test' if size == 'test' else 'paper')
  config.method = name
  del config.model, config.diffusion
  config.ema_decay = 0.0
  METHODS[name](config, size)
  return config

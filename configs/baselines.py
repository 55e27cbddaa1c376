r"""Pretrains the other rows of the paper's Table 1 on the same images.

python -m micdiffrep_jax.main --config=configs/baselines.py:METHOD,SIZE \
  --config.data.path=DATASET --workdir=RUN

SIZE is paper (the default; a GPU or TPU), tiny (64 px, 2 CPU cores) or test
(seconds). What METHOD sets is in configs/methods, what all share in
configs/pretrain.py. METHOD random is a UNet without training; clip_frozen too
trains nothing: it is configs/convert_clip.py, and takes --config.source=FILE.
Beside them two kin of the diffusion model. ddpm_contrast adds momentum contrast
in the same network, and contrast_alone is that without denoising: only what the
first has over the second is due to diffusion. ddpm_aligned distils a teacher:
--config.teacher.checkpoint=RUN, or --config.teacher.features=FILE. Its control
is aligned_alone, which denoises nothing and teaches down1_0 and mid: what it is
compared with takes --config.align.tap=down1_0+mid.
"""

from ml_collections import ConfigDict

from configs import convert_clip, pretrain
from configs.methods import (
  byol,
  clip,
  ddpm_aligned,
  ddpm_contrast,
  mae,
  moco,
  supervised,
)

SIZES = ('paper', 'tiny', 'test')


def _random(config: ConfigDict, size: str) -> None:
  """The UNet as initialised: one update at rate 0."""
  found = pretrain.get_config(size)
  config.method = 'ddpm'
  for name in ('model', 'diffusion', 'recipe', 'batch_size'):
    config[name] = found[name]
  config.steps = 1
  config.optim.lr = 0.0
  config.optim.warmup_steps = 0


METHODS: dict = {
  'mae': mae.fill,
  'moco': moco.fill,
  'byol': byol.fill,
  'clip': clip.fill,
  'supervised': supervised.fill,
  'supervised_vit': supervised.fill_vit,
  'random': _random,
  'ddpm_contrast': ddpm_contrast.fill,
  'contrast_alone': ddpm_contrast.fill_alone,
  'ddpm_aligned': ddpm_aligned.fill,
  'aligned_alone': ddpm_aligned.fill_alone,
}
PRESETS = tuple(f'{m},{s}' for m in METHODS for s in SIZES)


def get_config(preset: str = 'mae,paper') -> ConfigDict:
  """The fields of a baseline; a comment marks what is ours."""
  name, _, size = preset.partition(',')
  size = size or 'paper'
  if name == 'clip_frozen':
    return convert_clip.get_config()
  if name not in METHODS or size not in SIZES:
    raise ValueError(
      f'Unknown preset {preset!r}; METHOD or METHOD,SIZE with METHOD one of '
      f'{", ".join(METHODS)} and SIZE one of {", ".join(SIZES)}.'
    )
  config = pretrain.get_config('test' if size == 'test' else 'paper')
  config.method = name
  del config.model, config.diffusion, config.recipe
  config.ema_decay = 0.0
  METHODS[name](config, size)
  return config

r"""The paper's Table 1: every method on the same images, under one probe.

python -m micdiffrep_jax.main --config=configs/table1.py:PRESET \
  --config.data.path=DATASET --workdir=runs/table1

paper   the recipes of the papers, 112 px; for a GPU, days.
tiny    64 px, 256,000 images drawn by each method; six hours of a CPU core.
test    seconds a method; for trying things out.
A method that is pretrained already: --config.checkpoints.ddpm=RUN. Cells that
are finished are not run again. Beside accuracy stand images drawn, seconds of
training, FLOPs, parameters of the layers read, and who had labels (supervised,
supervised_text), other images (external) or a teacher.
"""

from ml_collections import ConfigDict

from configs import baselines, pretrain, probe

METHODS = ('mae', 'moco', 'byol', 'clip', 'ddpm', 'supervised')
# Rows only if asked for.
MORE = ('supervised_vit', 'ddpm_vit')
MORE += ('ddpm_contrast', 'contrast_alone', 'ddpm_aligned', 'aligned_alone')


def get_config(preset: str = 'paper') -> ConfigDict:
  """The pretraining of each method, and the probe that all of them get."""
  preset = preset or 'paper'
  if preset not in baselines.SIZES:
    known = ', '.join(baselines.SIZES)
    raise ValueError(f'Unknown preset {preset!r}; one of {known}.')
  config = ConfigDict()
  config.task = 'table1'
  config.data = ConfigDict()
  config.data.path = 'phantom'  # a prepared folder, or phantom[:key=value,...]
  config.data.cache = True  # images as one array in memory-mapped form
  # Columns; pretraining sees no test of any.
  config.splits = ('patient', 'grouped', 'paper')
  config.spare = ()  # further splits whose test part pretraining leaves out
  # Columns, and rows (() is all), whose architecture is probed with random
  # weights too. MoCo v2, BYOL and supervised share theirs.
  config.random_splits = ('patient', 'grouped', 'paper')
  config.random_methods = ()
  config.methods = METHODS  # rows; also those of MORE, and external
  config.ours = 'ddpm'  # what the other rows are compared with, where it is one
  # Further rows, the mean of what the heads of several methods say; with the
  # floor imagenet too: ('ddpm+moco', 'ddpm+imagenet').
  config.committees = ()
  config.images_drawn = 16_000_000  # by each method, in pretraining
  # Where a method draws another number, as for equal minutes; 0: images_drawn.
  config.drawn = ConfigDict(dict.fromkeys((*METHODS, *MORE), 0))
  config.pretrain = ConfigDict()
  vit = 'vit' if preset == 'paper' else f'vit_{preset}'
  ours = {'ddpm': preset, 'ddpm_vit': vit}
  for name in (*METHODS, *MORE):
    config.pretrain[name] = (
      pretrain.get_config(ours[name])
      if name in ours
      else baselines.get_config(f'{name},{preset}')
    )
  # Folders of pretraining runs to take instead; also of encoders that others
  # trained, from configs/convert_clip.py.
  config.checkpoints = ConfigDict(dict.fromkeys((*METHODS, *MORE), ''))
  config.checkpoints.external = ''
  # Layers of each that the heads read; () is all.
  config.layers = ConfigDict(dict.fromkeys((*METHODS, *MORE, 'external'), ()))
  small = preset if preset != 'paper' else ''
  config.probe = probe.get_config(small)
  config.probe.classic = ('logistic', 'knn')
  config.headline = 'logistic'  # the probe of the plot, and the paper's column
  config.resamples = 2000  # of groups, for paired comparisons with `ours`
  if preset == 'tiny':
    config.images_drawn = 256_000
    # Logistic regression, trained by Adam like the other heads: minutes less.
    config.headline = 'linear_concat'
    config.probe.classic = ('knn', 'kernel')
    # EfficientNet-Lite0's last block of each size; it has 18 taps.
    config.layers.external = (
      'block0',
      'block2',
      'block4',
      'block10',
      'block15',
    )
    config.random_splits = ('patient',)
    config.probe.seeds = (0,)  # intervals are over groups of the first anyway
  elif preset == 'test':
    config.data.path = config.probe.data.path
    config.images_drawn = 320
    config.methods = ('ddpm', 'mae')
    config.splits = config.random_splits = ('patient', 'paper')
  return config

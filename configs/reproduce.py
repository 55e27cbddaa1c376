r"""From a folder of pictures to the paper's tables and figures, in one command.

python -m micdiffrep_jax.main --config=configs/reproduce.py:PRESET \
  --config.prepare.data.source=DIR/crystal_clean --workdir=runs/reproduce

(none)  112 px, the paper's model and schedule; for a GPU of 12 GB, days.
tiny    64 px and 256,000 images drawn; a night on 2 CPU cores.
test    all of it on generated pictures, in a few minutes.
Where patients are known: --config.prepare.data.group_csv=TABLE.
Prepares and audits the data, pretrains, then probes, goes over timesteps and
layers (Fig. 4), over shares of the labels and over splits, draws samples (Fig.
5), pretrains and probes the other methods (Table 1), and writes a bundle and
one HTML report. The same command goes on where a stopped run was; what is
finished is not run again.
"""

from ml_collections import ConfigDict

from configs import (
  ablate,
  audit,
  bundle,
  label_efficiency,
  prepare,
  pretrain,
  probe,
  report,
  sample,
  splits,
  table1,
)

DATASET = 'datasets/reproduce'
# Layers of the tiny encoder that its heads read: as good as all ten, and
# weights that fit into 5 MB.
LAYERS = ('down0_0', 'down1_0', 'down2_0', 'mid')


def get_config(preset: str = 'paper') -> ConfigDict:
  """Stages and their configs; one encoder serves the splits it spares."""
  preset = preset or 'paper'
  if preset not in ('paper', 'tiny', 'test'):
    raise ValueError(f'Unknown preset {preset!r}; one of paper, tiny, test.')
  small = preset if preset != 'paper' else ''
  config = ConfigDict()
  config.task = 'pipeline'
  config.stages = (
    'prepare',
    'audit',
    'pretrain',
    'probe',
    'ablate',
    'label_efficiency',
    'splits',
    'sample',
    'table1',
    'bundle',
    'report',
  )
  config.prepare = prepare.get_config('crystal_clean')
  config.audit = audit.get_config()
  config.pretrain = pretrain.get_config(preset)
  config.probe = probe.get_config(small)
  config.ablate = ablate.get_config(small)
  config.label_efficiency = label_efficiency.get_config(small)
  config.splits = splits.get_config('test' if preset == 'test' else '')
  config.splits.probe = probe.get_config(small)
  config.sample = sample.get_config('test' if preset == 'test' else 'paper')
  config.table1 = table1.get_config(preset)
  config.bundle = bundle.get_config()
  config.report = report.get_config()

  made = config.prepare.data
  made.size_px = 112 if preset == 'paper' else 64
  made.out = DATASET
  made.conflicts = 'drop'  # two pictures of the set carry two labels
  config.pretrain.data.spare = ('grouped', 'paper')
  # `leaky` needs an encoder of its own: --config.splits.checkpoints.leaky=RUN.
  config.splits.splits = ('paper', 'grouped', 'patient')
  config.splits.probe.random_encoder = False  # the stage `probe` has it
  if preset == 'tiny':  # what did best on validation: results/experiments.md
    config.pretrain.diffusion.target = 'v'
    config.pretrain.diffusion.schedule = 'cosine'
    for unit in (config.probe, config.splits.probe):
      unit.layers = LAYERS
      unit.bundle = 'kernel'
    # One encoder for all: the table says how much of `leaky` it has drawn.
    config.splits.splits = ('leaky', 'paper', 'grouped', 'patient')
    config.ablate.timesteps = (1, 11, 21, 51, 101, 201, 401)
    config.ablate.heads.learning_rates = (3e-4, 1e-3)
    config.table1.layers.ddpm = LAYERS
    config.table1.probe.bundle = 'kernel'
    config.table1.headline = 'kernel'
    config.label_efficiency.layers = LAYERS
    config.label_efficiency.timesteps = (1,)
    config.label_efficiency.classic = ('knn', 'kernel')
    config.label_efficiency.floors = (
      'nearest_pixels',
      'nearest_hog',
      'kernel_pixels',
      'kernel_hog',
      'imagenet',
    )
    config.bundle.precision = 'int8'
    config.bundle.fingerprints = 'small'
    config.bundle.refit = True
  elif preset == 'test':
    made.source = 'phantom:size_px=16,patients=60'
    made.size_px = 16
    made.variant_regex = ''
    made.classes = ()
    made.out = 'datasets/reproduce_test'
    config.audit.shortcuts = False
    config.audit.second_look = False
    config.pretrain.data.spare = ('grouped', 'paper', 'leaky')
  for stage in config.stages[1:]:
    unit = config[stage]
    where = unit.probe if stage == 'splits' else unit
    if stage not in ('bundle', 'report'):
      where.data.path = made.out
  return config

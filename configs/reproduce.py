r"""From a folder of pictures to the paper's tables and figures, in one command.

python -m micdiffrep_jax.main --config=configs/reproduce.py:PRESET \
  --config.prepare.data.source=DIR/crystal_clean --workdir=runs/reproduce

(none)  112 px, the paper's model; for a GPU of 12 GB, days.
tiny    64 px and 128,000 images drawn by each method; a night on 2 CPU cores.
test    all of it on generated pictures, in a few minutes.
Where patients are known: --config.prepare.data.group_csv=TABLE.
Prepares and audits the data, pretrains what did best by folds of patients
(results/README.md), then probes, goes over timesteps and layers (Fig. 4), over
shares of the labels and over splits, draws samples (Fig. 5), pretrains and
probes the other methods, the DDPM as published among them (Table 1), and writes
a bundle and one HTML report. The same command goes on where a stopped run was;
what is finished is not run again.
A teacher needs pip install -e '.[imagenet]'. Without it: --config.stages
without teacher, --config.table1.methods without ddpm_aligned and aligned_alone,
--config.table1.committees="('ddpm_contrast+moco',)".
"""

from ml_collections import ConfigDict

from configs import (
  ablate,
  audit,
  bundle,
  convert_clip,
  label_efficiency,
  prepare,
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
OURS = 'ddpm_contrast'
# Ours, and who else learns by its recipe; each beside its control.
KIN = (OURS, 'contrast_alone', 'ddpm_aligned', 'aligned_alone')
METHODS = (  # the rows of Table 1
  *KIN,
  'ddpm',
  'ddpm_vit',
  'mae',
  'moco',
  'byol',
  'clip',
  'supervised',
)


def use_recipe(config: ConfigDict) -> None:
  """What did best by folds of patients: one image in four is denoised."""
  config.diffusion.target = 'v'
  config.diffusion.schedule = 'cosine'
  config.optim.name = 'muon'
  if config.get('contrast', {}).get('denoise', 0):
    config.contrast.weight = 1.0
    config.contrast.share = 0.75
    config.contrast.denoise_compared = False
  if config.get('align', {}).get('denoise_every', 0):
    config.align.tap = 'down1_0+mid'
    config.align.weight = 4.0
    config.align.denoise_every = 4


def get_table(preset: str) -> ConfigDict:
  """Table 1: ours and its kin by the recipe, all others as published."""
  config = table1.get_config(preset)
  config.methods, config.ours = METHODS, OURS
  config.committees = (f'{OURS}+moco', f'{OURS}+imagenet')
  rows = config.pretrain
  keys = 1024 if preset != 'test' else 16  # at most a quarter of the images
  for name in KIN:
    use_recipe(rows[name])
    if 'contrast' in rows[name]:
      rows[name].contrast.queue = keys
  rows.moco.moco.queue = keys
  rows.clip.text.tokens = 'words'  # of a template, since there are no captions
  rows.clip.text.vocabulary = 512
  rows.clip.captions.template = 'an MRI slice of the brain: {}'
  if preset == 'tiny':
    config.images_drawn = 128_000
    config.splits, config.spare = ('patient',), ('grouped', 'paper')
    # BYOL and `supervised` have MoCo's network, ddpm and the kin of ours ours.
    config.random_methods = (OURS, 'ddpm_vit', 'mae', 'moco', 'clip')
    for name in (*KIN, 'ddpm'):
      config.layers[name] = LAYERS
    config.probe.bundle = config.headline = 'kernel'
  elif preset == 'test':
    config.methods = (OURS, 'ddpm', 'mae')
    config.committees = (f'{OURS}+mae',)
  return config


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
    'teacher',
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
  config.teacher = convert_clip.get_config('efficientnet_lite0')
  config.audit = audit.get_config()
  config.probe = probe.get_config(small)
  config.ablate = ablate.get_config(small)
  config.label_efficiency = label_efficiency.get_config(small)
  config.splits = splits.get_config('test' if preset == 'test' else '')
  config.splits.probe = probe.get_config(small)
  config.sample = sample.get_config('test' if preset == 'test' else 'paper')
  config.table1 = get_table(preset)
  ours = config.table1.pretrain[OURS]
  config.pretrain = ours.copy_and_resolve_references()
  config.bundle = bundle.get_config()
  config.report = report.get_config()

  made = config.prepare.data
  made.size_px = 112 if preset == 'paper' else 64
  made.out = DATASET
  made.conflicts = 'drop'  # two pictures of the set carry two labels
  config.teacher.size_px = made.get_ref('size_px')
  config.teacher.channels = made.get_ref('channels')
  config.teacher.input_px = 2 * made.get_ref('size_px')
  config.pretrain.data.spare = ('grouped', 'paper')
  # `leaky` needs an encoder of its own: --config.splits.checkpoints.leaky=RUN.
  config.splits.splits = ('paper', 'grouped', 'patient')
  config.splits.probe.random_encoder = False  # the stage `probe` has it
  if preset == 'tiny':
    for unit in (config.probe, config.splits.probe):
      unit.layers = LAYERS
      unit.bundle = 'kernel'
    # One encoder for all: the table says how much of `leaky` it has drawn.
    config.splits.splits = ('leaky', 'paper', 'grouped', 'patient')
    config.splits.probe.seeds = (0,)  # `probe` has three
    # Linear heads and the other rate are in `probe`, of ours.
    for unit in (config.splits.probe, config.table1.probe):
      unit.heads.kinds, unit.heads.learning_rates = ('mlp',), (1e-3,)
    config.label_efficiency.heads.kinds = ('mlp',)
    config.ablate.heads.learning_rates = (1e-3,)
    config.ablate.timesteps = (1, 21, 51, 101, 201)
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
    config.bundle.fingerprints = 'hashes'  # 17,073 pictures would be 3 MB
    config.bundle.refit = True
  elif preset == 'test':
    config.stages = tuple(s for s in config.stages if s != 'teacher')
    made.source = 'phantom:size_px=16,patients=60'
    made.size_px = 16
    made.variant_regex = ''
    made.classes = ()
    made.out = 'datasets/reproduce_test'
    config.audit.shortcuts = False
    config.audit.second_look = False
    config.pretrain.data.spare = ('grouped', 'paper', 'leaky')
  drawn, batch = config.table1.images_drawn, config.pretrain.batch_size
  config.pretrain.steps = drawn // batch  # as many as each other row
  for stage in config.stages[1:]:
    unit = config[stage]
    where = unit.probe if stage == 'splits' else unit
    if stage not in ('teacher', 'bundle', 'report'):
      where.data.path = made.out
  return config

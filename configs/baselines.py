"""Pretrains the other rows of the paper's Table 1 on the same images.

python -m micdiffrep_jax.main --config=configs/baselines.py:METHOD,SIZE \
  --config.data.path=DATASET --workdir=RUN

SIZE is paper (the default; a GPU or TPU), tiny (64 px, 2 CPU cores) or test
(seconds). What all methods share is in configs/pretrain.py. METHOD clip_frozen
trains nothing: it is configs/convert_clip.py, and takes --config.source=FILE.
"""

from ml_collections import ConfigDict

from configs import convert_clip, pretrain

SIZES = ('paper', 'tiny', 'test')


def _contrast(config: ConfigDict, size: str) -> None:
  """The encoder and the views of MoCo and BYOL."""
  del config.augment
  config.model = ConfigDict()  # ResNet-50
  config.model.blocks = (3, 4, 6, 3)  # per stage
  config.model.bottleneck = True
  config.model.width = 64  # of the first stage; doubles with each
  config.model.stem = 'imagenet'  # or stride4 | stride2 | stride1
  config.model.groups = 1  # of the batch norm, each with its own statistics
  config.model.dtype = 'float32'  # or bfloat16: convolutions and products only
  config.optim.clip_norm = 0.0
  config.optim.schedule = 'cosine'
  if size == 'tiny':
    config.batch_size = 64
    # ResNet-18 of width 16 without its first stage, which is two thirds of the
    # time on CPU and a hundredth of the parameters.
    config.model.blocks = (2, 2, 2)
    config.model.bottleneck = False
    config.model.width = 32
    config.model.stem = 'stride4'  # 16, 8, 4 px
    config.save_every = 500
    config.eval_every = 500
  elif size == 'test':
    config.model.blocks = (1, 1, 1)
    config.model.bottleneck = False
    config.model.width = 8
    config.model.stem = 'stride1'  # 16, 8, 4 px


def _moco(config: ConfigDict, size: str) -> None:
  """MoCo v2; the paper's optimizer, momentum and temperature.

  tiny with --config.steps=1000, on 9,569 images of 64 px: 64,000 images drawn
  in 13 minutes on a shared CPU core. Effective rank 63.4, with random weights
  54.4; test accuracy (configs/probe.py:tiny, one average a layer) of logistic
  regression .640 against .589, of nearest neighbours .745 against .719.
  """
  _contrast(config, size)
  config.views = 'paper'  # paper | paper_asymmetric | mri
  config.moco = ConfigDict()
  config.moco.hidden = 2048
  config.moco.features = 128
  config.moco.queue = 65_536  # keys; at most a quarter of the images
  config.moco.momentum = 0.999  # of the key encoder
  config.moco.temperature = 0.2
  config.batch_size = 256
  config.model.groups = 8  # the reference has one a GPU
  config.optim.name = 'sgd'
  config.optim.lr = 0.03
  config.optim.weight_decay = 1e-4
  if size == 'tiny':
    config.batch_size = 64
    config.steps = 4000
    config.model.groups = 4
    config.moco.hidden = 128
    config.moco.queue = 1024
    config.moco.momentum = 0.99
  elif size == 'test':
    config.batch_size = 16
    config.model.groups = 2
    config.moco.hidden = 16
    config.moco.features = 8
    config.moco.queue = 32
    config.moco.momentum = 0.9


def _byol(config: ConfigDict, size: str) -> None:
  """BYOL; the recipe that its authors publish for 300 epochs.

  tiny collapses in part in short runs: no healthy setting is known yet. On
  9,569 images of 64 px, views `paper`, 28,000 images drawn with AdamW 5e-4,
  weight decay 0.01, batch 128 and tau 0.996: effective rank 25, with random
  weights 54, and features worse than random ones. LARS 0.5 with tau 0.97, batch
  64: 20 after 8,000 images, 25 after 13,760, so a longer run may recover. Watch
  feature_rank against feature_rank_init.
  """
  _contrast(config, size)
  config.views = 'paper_asymmetric'  # paper | paper_asymmetric | mri
  config.byol = ConfigDict()
  config.byol.hidden = 4096  # of projector and predictor
  config.byol.features = 256
  config.byol.tau = 0.99  # the target's decay at the start; 1 at the end
  config.batch_size = 1024  # 4096 in the paper
  config.optim.name = 'lars'
  config.optim.lr = 1.2  # 0.3 per 256 images
  config.optim.weight_decay = 1e-6
  config.optim.warmup_steps = 1000
  if size == 'tiny':
    config.batch_size = 64
    config.steps = 4000
    config.byol.hidden = 512
    config.byol.features = 128
    config.optim.name = 'adamw'
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 200
  elif size == 'test':
    config.batch_size = 16
    config.byol.hidden = 16
    config.byol.features = 8
    config.optim.lr = 0.1
    config.optim.warmup_steps = 2


def _clip(config: ConfigDict, size: str) -> None:
  """Images against captions; a template makes them of labels: supervised."""
  config.model = ConfigDict()  # the image tower, as in CLIP
  config.model.width = 768
  config.model.depth = 12
  config.model.heads = 12
  config.model.patch = 16
  config.model.out = 512  # of the common space
  config.model.activation = 'quick_gelu'  # or gelu
  config.model.dtype = 'float32'  # or bfloat16: products only

  config.text = ConfigDict()
  config.text.tokens = 'clip_bpe'  # or words, those of the captions
  config.text.vocabulary = 49_408  # ids; words beyond it are unknown
  config.text.length = 77  # tokens
  config.text.width = 512
  config.text.depth = 12
  config.text.heads = 8

  config.captions = ConfigDict()  # one of them
  config.captions.csv = ''  # a table with the columns file and caption
  config.captions.template = ''  # of labels, e.g. 'an MRI slice of {}'

  config.contrast = ConfigDict()
  config.contrast.loss = 'softmax'  # or sigmoid, better for small batches

  config.batch_size = 1024  # ours; CLIP has 32,768
  config.epochs = 200
  config.optim.name = 'adamw'
  config.optim.lr = 5e-4
  config.optim.schedule = 'cosine'
  config.optim.warmup_steps = 500
  config.optim.b2 = 0.98
  config.optim.weight_decay = 0.2
  if size != 'paper':
    config.text.tokens = 'words'
    config.text.vocabulary = 512
    config.text.length = 32
    config.captions.template = 'an axial MRI slice of the brain: {}'
    config.optim.weight_decay = 0.1
    config.augment.rotate_deg = 10.0
    config.augment.scale = 0.1
    config.augment.shift = 0.05
    config.augment.brightness = 0.1
    config.augment.contrast = 0.2
  if size == 'tiny':
    config.model.width, config.model.depth, config.model.heads = 128, 6, 4
    config.model.patch, config.model.out = 8, 128
    config.text.width, config.text.depth, config.text.heads = 128, 2, 4
    config.batch_size = 64
    config.steps = 3000
    config.optim.warmup_steps = 300
    config.save_every, config.eval_every = 1000, 1500
  elif size == 'test':
    config.model.width, config.model.depth, config.model.heads = 16, 2, 2
    config.model.patch, config.model.out = 8, 8
    config.text.width, config.text.depth, config.text.heads = 16, 1, 2
    config.text.length, config.text.vocabulary = 16, 32
    config.batch_size = 16
    config.optim.warmup_steps = 2


def _mae(config: ConfigDict, size: str) -> None:
  """Hidden patches from visible ones."""
  del config.augment
  config.model = ConfigDict()  # the encoder: ViT-B/16
  config.model.width = 768
  config.model.depth = 12
  config.model.heads = 12
  config.model.patch = 16
  config.model.dtype = 'float32'  # or bfloat16: products only
  config.mae = ConfigDict()  # the decoder, and the task
  config.mae.width = 512
  config.mae.depth = 8
  config.mae.heads = 16
  config.mae.mask = 0.75  # share of the patches that is hidden
  config.mae.normalise = True  # each target patch by its mean and deviation
  config.mae.variance_floor = 0.0  # ours; least variance divided by, e.g. 1e-3
  config.crop = (0.2, 1.0)  # share of the area; flips too
  config.batch_size = 256  # 4096 in the paper
  config.optim.name = 'adamw'
  config.optim.lr = 1.5e-4  # per 256 images
  config.optim.schedule = 'cosine'
  config.optim.warmup_steps = 2000  # 40 epochs in the paper
  config.optim.b2 = 0.95
  config.optim.weight_decay = 0.05
  if size == 'tiny':
    config.model.width, config.model.depth, config.model.heads = 128, 6, 4
    config.model.patch = 8
    config.mae.width, config.mae.depth, config.mae.heads = 64, 2, 4
    config.mae.variance_floor = 1e-3
    config.batch_size = 64
    config.steps = 4000
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 300
    config.save_every, config.eval_every = 1000, 1000
  elif size == 'test':
    config.model.width, config.model.depth, config.model.heads = 16, 2, 2
    config.model.patch = 4
    config.mae.width, config.mae.depth, config.mae.heads = 8, 1, 2
    config.batch_size = 16
    config.optim.warmup_steps = 2


def _supervised(config: ConfigDict, size: str) -> None:
  """The control that reads the labels of the train part."""
  kept = config.augment
  _contrast(config, size)
  config.augment = kept
  config.classes = 4  # of the dataset
  config.optim.name = 'adamw'
  config.optim.lr = 1e-3
  config.optim.weight_decay = 0.05
  config.augment.rotate_deg = 10.0
  config.augment.scale = 0.1
  config.augment.shift = 0.05
  config.augment.brightness = 0.1
  config.augment.contrast = 0.2
  if size == 'paper':
    config.batch_size = 256
    config.optim.warmup_steps = 500
  elif size == 'tiny':
    config.steps = 4000
    config.optim.warmup_steps = 200


def _random(config: ConfigDict, size: str) -> None:
  """The UNet as initialised: one update at rate 0."""
  found = pretrain.get_config(size)
  config.method = 'ddpm'
  for name in ('model', 'diffusion', 'batch_size'):
    config[name] = found[name]
  config.steps = 1
  config.optim.lr = 0.0
  config.optim.warmup_steps = 0


METHODS: dict = {
  'mae': _mae,
  'moco': _moco,
  'byol': _byol,
  'clip': _clip,
  'supervised': _supervised,
  'random': _random,
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
  del config.model, config.diffusion
  config.ema_decay = 0.0
  METHODS[name](config, size)
  return config

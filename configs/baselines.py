"""Pretrains the other rows of the paper's Table 1 on the same images.

python -m micdiffrep_jax.main --config=configs/baselines.py:METHOD,SIZE \
  --config.data.path=DATASET --workdir=RUN

SIZE is paper (the default; a GPU or TPU), tiny (64 px, 2 CPU cores) or test
(seconds). What all methods share is in configs/pretrain.py.
"""

from ml_collections import ConfigDict

from configs import pretrain

SIZES = ('paper', 'tiny', 'test')


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
  config.optim.weight_decay = 0.2  # of everything, ours
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


METHODS: dict = {'clip': _clip}
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

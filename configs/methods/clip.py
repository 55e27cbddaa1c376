"""CLIP: images against captions."""

from ml_collections import ConfigDict

from configs.methods import shared


def fill(config: ConfigDict, size: str) -> None:
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
    shared.augment(config)
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

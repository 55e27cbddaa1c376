r"""Pretrains a DDPM on unlabelled images: the paper's recipe, and smaller ones.

python -m micdiffrep_jax.main --config=configs/pretrain.py:PRESET \
  --config.data.path=DATASET --workdir=RUN

paper   112 px, 47 M parameters; one GPU of 12 GB or more.
small   64 px, 2 CPU cores, a day.
tiny    64 px, 256,000 images drawn: 70 minutes on one CPU core.
test    any size, seconds; for trying things out.
vit, vit_small, vit_tiny, vit_test: the same with a vision transformer in place
of the UNet, of 66, 33 and 6 M parameters; vit is for a GPU, vit_small and
vit_tiny take about as long as small and tiny.
The same command goes on where a stopped run was. --sweep=lr pretrains once for
each of several learning rates, in folders RUN/000, RUN/001, ..., with a table;
--sweep=recipe once without and once with each part of the recipe.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

PRESETS = ('paper', 'small', 'tiny', 'test')
PRESETS += ('vit', 'vit_small', 'vit_tiny', 'vit_test')


def augment_config() -> ConfigDict:
  """Augmentation on the device; ours. Half-ranges, 0 is off."""
  augment = ConfigDict()
  augment.flip = 0.5  # probability, left-right
  augment.rotate_deg = 0.0  # degrees
  augment.scale = 0.0  # relative
  augment.shift = 0.0  # share of the side
  augment.brightness = 0.0  # of the range of grey levels
  augment.contrast = 0.0  # relative
  return augment


def recipe_config() -> ConfigDict:
  """Parts of other recipes; every one is off, as in the paper."""
  recipe = ConfigDict()
  recipe.tell_augment = False  # what `augment` drew goes to the network (EDM)
  recipe.blocks = ()  # residual, of each level; () is model.blocks for all
  # Of the t trained at: uniform | beta (1, 2; little noise) | lognormal (EDM).
  recipe.density = 'uniform'  # the loss is not weighted against it
  recipe.density_mean = -1.2  # of lognormal alone: log(sigma / alpha)
  recipe.density_std = 1.2
  recipe.blank_px = 0  # 8: half of a batch clean, 3/4 of its patches hid (UMD)
  recipe.levels_px = 0  # 8 or 16: two levels of noise in blocks of a picture
  # The averaged middle guides the decoder: '' | own (the same pass; DDAE++) |
  # first (a pass by averaged weights, for half of the pictures).
  recipe.self_condition = ''
  recipe.crop_px = 0  # 32: half of the batch as such crops (Patch Diffusion)
  return recipe


def vit_config(size: str) -> ConfigDict:
  """The vision transformer, as a denoiser of a size of UNet."""
  model = ConfigDict()
  model.name = 'vit'  # one of models/backbones.py
  model.width = 512  # U-ViT-S, and the time as DiT has it
  model.depth = 13  # blocks
  model.heads = 8  # of attention
  model.patch = 7  # pixels a side: 16 x 16 patches of 112 px
  model.skips = True  # long ones, from the first half to the second
  model.dropout = 0.0  # of what attention and MLP add, in [0, 1)
  model.dtype = 'float32'  # or bfloat16: products only
  # Less memory for more compute: '' | norms (all but products) | stages.
  model.remat = 'norms' if size == 'paper' else ''
  if size == 'small':
    model.width, model.depth, model.heads = 384, 12, 6  # DiT-S
    model.patch = 8  # of 64 px; 4 takes four times as long
    model.skips = False
  elif size == 'tiny':
    model.width, model.depth, model.heads = 192, 7, 3
    model.patch = 8
  elif size == 'test':
    model.width, model.depth, model.heads = 16, 3, 2
    model.patch = 4
  return model


def get_config(preset: str = 'paper') -> ConfigDict:
  """The fields of a run; a comment marks what the paper leaves open."""
  if preset not in PRESETS:
    raise ValueError(f'Unknown preset {preset!r}; one of {", ".join(PRESETS)}.')
  is_vit = preset.startswith('vit')
  size = preset.removeprefix('vit').lstrip('_') or 'paper'

  config = ConfigDict()
  config.task = 'pretrain'
  config.method = 'ddpm'  # the others: configs/baselines.py
  config.seed = 0  # of weights, order, noise and augmentation
  config.batch_size = 32  # over all devices
  config.epochs = 200  # passes over the training images
  config.steps = 0  # updates; 0 takes them from the epochs
  config.accumulate = 1  # parts of a batch worked off one after another
  config.ema_decay = 0.9999  # ours, with a warm-up; 0 for none
  config.fsdp = False  # split parameters over devices instead of copying them

  config.data = ConfigDict()
  config.data.path = 'phantom'  # a prepared folder, or phantom[:key=value,...]
  config.data.split = (
    'patient'  # patient | grouped | paper | leaky | given; test is never read
  )
  config.data.spare = ()  # splits whose test images are left out too
  config.data.cache = True  # images as one array in memory-mapped form

  config.model = ConfigDict()  # all of it ours: the paper gives no widths
  config.model.name = 'unet'  # one of models/backbones.py
  config.model.channels = 128  # of the first level
  # Channels of each level, as multiples: of 112, 56, 28, 14 and 7 px.
  config.model.multipliers = (1, 2, 2, 2, 2)
  config.model.blocks = 2  # residual blocks per level
  config.model.attention = (14, 7)  # px of the feature maps that have it
  config.model.heads = 1  # of attention
  config.model.groups = 32  # of GroupNorm
  config.model.dropout = 0.0  # in residual blocks, in [0, 1)
  config.model.patch = 1  # pixels folded into channels by the stem
  config.model.dtype = 'float32'  # or bfloat16: convolutions and products only
  # Less memory for more compute: '' | norms (a sixth) | stages (a fifth).
  config.model.remat = 'norms'

  config.diffusion = ConfigDict()
  config.diffusion.schedule = 'linear'  # linear | cosine
  config.diffusion.timesteps = 1000  # T
  config.diffusion.target = 'eps'  # eps | x0 | v; eq. 2 says x0, the text eps
  config.diffusion.beta_start = 1e-4  # of linear, at t = 0
  config.diffusion.beta_end = 2e-2  # of linear, at t = T - 1
  config.diffusion.weighting = 'none'  # none | min_snr

  config.augment = augment_config()  # half-ranges, 0 is off; ours
  config.recipe = recipe_config()  # parts of other recipes, off in the paper

  config.optim = ConfigDict()
  config.optim.name = 'adam'  # adam | adamw | sgd | lars | muon
  config.optim.lr = 1e-4  # at its highest
  config.optim.schedule = 'linear'  # linear | cosine | constant, to 0
  config.optim.warmup_steps = 0  # rise of the rate, from 0
  config.optim.b1 = 0.9  # the momentum of sgd and lars
  config.optim.b2 = 0.999  # decay of the squared gradients
  config.optim.weight_decay = 0.0  # adam has none
  config.optim.clip_norm = 1.0  # ours; 0 for none

  config.log_every = 100  # steps
  config.save_every = 2000  # steps
  config.keep_every = 0  # also keep each checkpoint that this divides
  config.eval_every = 10_000  # steps
  config.monitor = ConfigDict()  # what is looked at every eval_every steps
  config.monitor.batch_size = 64  # over all devices
  config.monitor.images = 1024  # validation images of the validation loss
  config.monitor.samples = 16  # images drawn; 0 for none
  config.monitor.probe_images = 1000  # of train and of validation; 0: no probe
  config.monitor.probe_timestep = 20  # of [0, T), 0 the least noise

  config.stop = ConfigDict()  # ends a run whose features gain no more
  # '' | features_kept, which two views of an image share | feature_rank |
  # val_loss: read of validation images, without labels, every eval_every steps.
  config.stop.metric = ''
  config.stop.patience = 3  # evaluations without a better one

  config.allow_changes = False  # resume although data or settings changed
  config.allow_failed_audit = False  # train on data that the audit refuses
  config.debug = False  # stop at NaN, reused keys, promoted ranks; slow
  config.profile = ''  # 'START:STOP', steps traced for TensorBoard's profiler

  if size != 'paper':
    config.model.remat = ''
  if size == 'small':
    config.epochs = 150
    config.model.channels = 64
    config.model.multipliers = (1, 2, 2, 2)  # of 32, 16, 8, 4 patches
    config.model.patch = 2
    config.model.attention = (8, 4)
    config.optim.lr = 2e-4
    config.ema_decay = 0.999
  elif size == 'tiny':
    config.steps = 8000
    config.model.channels = 64
    config.model.multipliers = (1, 2, 2)  # of 16, 8, 4 patches
    config.model.patch = 4
    config.model.blocks = 1
    config.model.attention = (8, 4)
    config.model.groups = 16
    config.optim.lr = 5e-4
    config.optim.warmup_steps = 200
    config.ema_decay = 0.999
    config.save_every = 500
    config.keep_every = 2000
    config.eval_every = 2000
  elif size == 'test':
    config.data.path = 'phantom:size_px=16,patients=60'
    config.batch_size = 16
    config.steps = 20
    config.model.channels = 8
    config.model.multipliers = (1, 2)
    config.model.blocks = 1
    config.model.attention = ()  # but in the middle, so that any size will do
    config.model.groups = 4
    config.ema_decay = 0.9
    config.log_every = 5
    config.save_every = 10
    config.eval_every = 10
    config.monitor.batch_size = 16
    config.monitor.images = 32
    config.monitor.samples = 8
    config.monitor.probe_images = 32
  if is_vit:
    config.model = vit_config(size)
  return config


def sweep_lr() -> Iterator[dict[str, float]]:
  """The learning rate, from a tenth to ten times the paper's."""
  for lr in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3):
    yield {'optim.lr': lr}


def sweep_recipe() -> Iterator[dict[str, Any]]:
  """No part of the recipe, then each by itself; sizes are for 64 px."""
  yield {}
  yield {'optim.name': 'muon'}
  yield {
    'recipe.tell_augment': True,
    'augment.rotate_deg': 10.0,
    'augment.scale': 0.1,
    'augment.shift': 0.05,
    'augment.brightness': 0.1,
    'augment.contrast': 0.2,
  }
  yield {'model.dropout': 0.1}
  yield {'recipe.density': 'lognormal'}
  yield {'recipe.blank_px': 8}
  yield {'recipe.levels_px': 8}
  yield {'recipe.self_condition': 'own'}
  yield {'recipe.crop_px': 32}

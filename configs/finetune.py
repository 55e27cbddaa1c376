r"""Trains an encoder on with labels: all of it, its last stages, or LoRA.

python -m micdiffrep_jax.main --config=configs/finetune.py:PRESET \
  --config.checkpoint=RUN --config.data.path=DATASET --workdir=RUN/finetune

(none)  any encoder, on a GPU.
tiny    64 px and a tiny encoder; on one CPU core.
test    seconds; for trying things out.
A head is fitted on the frozen encoder, then both are trained on from there:
--config.tune=full, last (the stages from --config.from_stage on) or lora. The
validation part says when to stop and which step is kept; test is read once, at
the end, beside the frozen head and the floors. RUN/finetune/bundle/bundle.npz
is what configs/predict.py and configs/evaluate.py read. The same command goes
on where a stopped run was.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import bundle, probe


def recipe(preset: str) -> ConfigDict:
  """How an encoder and a head are trained on, as a part of a study."""
  config = ConfigDict()
  fill(config, preset)
  return config


def fill(config: ConfigDict, preset: str) -> None:
  """Sets how an encoder and a head are trained on."""
  config.seed = 0  # of order, noise, views and low-rank additions

  config.layers = ()  # that the head reads; () is the encoder's output
  config.timestep = 10  # of [0, T), 0 the least noise; only of DDPM
  config.grid = 1  # cells a side; more tell the head where something is
  config.deviation = False  # of each cell, beside its mean
  config.draws = 1  # noise draws whose features are averaged in use

  # logistic, or trained as `training` says: linear, mlp, mlp_layers, attention.
  config.head = 'logistic'
  config.training = probe.get_config(preset or 'tiny').heads
  del config.training.kinds

  config.tune = 'full'  # full | last | lora
  # The first stage that moves, or gets additions: a layer of the encoder, or
  # head for none. '' is the last stage for tune=last, the first for lora.
  config.from_stage = ''
  config.layer_decay = 0.75  # of the rate, from a stage to the one before it
  config.lora = ConfigDict()
  config.lora.rank = 8  # of the additions; 0: none, only the head is trained
  config.lora.alpha = 8.0  # additions are multiplied by alpha / rank

  # How images are changed: mri | mild | paper | '' not at all.
  config.views = 'mri'
  config.balanced = False  # weigh classes by inverse frequency
  config.batch_size = 32  # over all devices
  config.eval_batch_size = 128  # where nothing is trained
  config.epochs = 30  # passes over the labelled training images, at most
  config.steps = 0  # updates; 0 takes them from the epochs
  config.min_steps = 300  # of few labels: as many passes as that takes
  config.accumulate = 1  # parts of a batch worked off one after another
  config.fsdp = False  # split parameters over devices instead of copying them

  config.optim = ConfigDict()
  config.optim.name = 'adamw'  # adam | adamw | sgd | lars | muon
  config.optim.lr = 3e-4  # at its highest, of the head
  config.optim.schedule = 'cosine'  # linear | cosine | constant, to 0
  config.optim.warmup_steps = 50  # rise of the rate, from 0
  config.optim.b1 = 0.9  # the momentum of sgd and lars
  config.optim.b2 = 0.999  # decay of the squared gradients
  config.optim.weight_decay = 0.05  # adam has none
  config.optim.clip_norm = 1.0  # 0 for none

  config.log_every = 50  # steps
  config.eval_every = 100  # steps, at which validation images are classified
  config.save_every = 100  # steps; divides eval_every
  config.keep_every = 0  # also keep each checkpoint that this divides
  config.patience = 10  # evaluations without a lower loss; 0: never stop early

  config.allow_changes = False  # resume although data or settings changed
  config.debug = False  # stop at NaN, reused keys, promoted ranks; slow
  config.profile = ''  # 'START:STOP', steps traced for TensorBoard's profiler

  if preset == 'tiny':
    config.batch_size = 64
    config.epochs = 8
    config.eval_every = 200
    config.save_every = 100
    config.patience = 4
  elif preset == 'test':
    config.batch_size = 16
    config.eval_batch_size = 64
    config.steps = 12
    config.lora.rank = 2
    config.optim.warmup_steps = 2
    config.log_every = 4
    config.eval_every = 4
    config.save_every = 4


def get_config(preset: str = '') -> ConfigDict:
  """The fields of a fine-tuning."""
  if preset not in ('', 'tiny', 'test'):
    raise ValueError(f'Unknown preset {preset!r}; one of tiny, test, or none.')
  config = ConfigDict()
  config.task = 'finetune'
  config.checkpoint = ''  # folder of a pretraining run, or a bundle
  config.step = 0  # 0 takes the newest sound checkpoint
  config.random_encoder = False  # begin with random weights of its network

  config.data = ConfigDict()
  config.data.path = 'phantom'  # a prepared folder, or phantom[:key=value,...]
  config.data.split = 'patient'  # patient | grouped | paper | leaky | given
  config.data.cache = True  # images as one array in memory-mapped form

  config.share = 1.0  # of the labelled training groups, in (0, 1]
  config.draw = 0  # which groups: the draws of label_efficiency
  config.validation = 'share'  # share | all: labels that choices may use
  # The head at the start: fit, on the frozen encoder | zero, for random weights
  # | checkpoint, that of a bundle or of a fine-tuned run.
  config.start = 'fit'
  fill(config, preset)

  config.bundle = bundle.get_config()  # of the result; probe is filled in
  config.floors = (
    'majority',
    'nearest_pixels',
    'nearest_hog',
    'kernel_hog',
    'imagenet',  # if installed: EfficientNet-Lite0, frozen
  )
  config.pooling = 'mean'  # of a patient's slices: mean | geometric | vote
  config.normal_class = 'auto'  # reported with and without; '' for none
  config.resamples = 1000  # of groups, for 95 % intervals
  config.allow_failed_audit = False  # train on data that the audit refuses
  config.allow_seen_test = False  # go on though pretraining saw test images
  if preset == 'test':
    config.data.path = 'phantom:size_px=16,patients=60'
    config.floors = ('majority', 'nearest_pixels')
    config.resamples = 50
  return config


def sweep_tune() -> Iterator[dict[str, str]]:
  """All of the encoder, its last stage, LoRA."""
  for tune in ('full', 'last', 'lora'):
    yield {'tune': tune}

r"""Encoders side by side by cross-validation over groups, test part unread.

python -m micdiffrep_jax.main --config=configs/cross_validate.py:PRESET \
  --config.checkpoints="('RUN_A','RUN_B')" --config.data.path=DATASET \
  --workdir=RUN/cross_validation

(none)  5 folds, kernel classifier and nearest neighbours, the floors.
test    seconds; for trying things out.
Every labelled image of train and validation is predicted once, by a head that
saw none of its group, so that encoders, layers and timesteps can be chosen on
several times the groups that validation has. The first of `checkpoints` at the
first timestep is what the others are compared with, pairwise; without any, the
first of `floors`. So is the first of `heads` with its others, in each encoder.
With several --config.fractions, such as (0.01,0.05,0.1,1.0), the same is done
for each share of the labels, and label_efficiency.png shows the curves.
An encoder that was trained with labels is refused: it may have read those of
the images.
"""

from ml_collections import ConfigDict

from configs import finetune, probe


def get_config(preset: str = '') -> ConfigDict:
  """The fields of a cross-validation."""
  if preset not in ('', 'test'):
    raise ValueError(f'Unknown preset {preset!r}; test, or none.')
  config = ConfigDict()
  config.task = 'cross_validate'
  config.seed = 0  # of folds, noise, random encoder and bootstrap
  # Folders of pretraining runs, or bundles; () is a table of floors alone.
  config.checkpoints = ()
  # Of each checkpoint the taps to read, joined by '+'; '' is all that it has.
  # () is all of all.
  config.layers = ()

  # Means of what the heads of several say, their paths joined by '+', with
  # the floor imagenet too: ('RUN_A+RUN_B', 'RUN_A+imagenet').
  config.committees = ()

  config.data = ConfigDict()
  config.data.path = 'phantom'  # a prepared folder, or phantom[:key=value,...]
  config.data.split = (
    'patient'  # patient | grouped | paper | leaky | given; test is never read
  )
  config.data.cache = True  # images as one array in memory-mapped form

  config.timesteps = (1,)  # of [0, T), 0 the least noise
  config.grid = 4  # pooling to 1, 2 or 4 cells a side
  config.deviation = False  # ours; of each cell, beside its mean
  config.draws = 1  # noise draws whose features are averaged
  config.batch_size = 128  # of the encoder, over all devices

  config.folds = 5  # one predicted, one to choose on, the rest to fit on
  # Of the groups to fit on, how many have labels; drawn anew for each fold.
  config.fractions = (1.0,)
  config.validation = 'share'  # share | all: labels that choices may use
  # Any of a probe's: logistic, prototypes, kernel_layers (one per layer), and
  # trained ones as `training` says: linear, mlp, mlp_layers, attention.
  config.heads = ('kernel', 'knn')
  config.training = probe.get_config(preset or 'tiny').heads
  del config.training.kinds
  # Ways to fine-tune each encoder in each fold: full, last, lora. At its own
  # timestep, and all of `finetune.layers`.
  config.finetuned = ()
  config.finetune = finetune.recipe(preset)  # how
  config.random_encoder = False  # each architecture with random weights too
  config.floors = (
    'majority',
    'nearest_pixels',
    'nearest_hog',
    'kernel_pixels',
    'kernel_hog',
    'imagenet',  # if installed: EfficientNet-Lite0, frozen
  )
  config.resamples = 1000  # of groups, for 95 % intervals
  config.allow_failed_audit = False  # go on with data that the audit refuses
  if preset == 'test':
    config.data.path = 'phantom:size_px=16,patients=60'
    config.batch_size = 64
    config.folds = 3
    config.floors = ('majority', 'nearest_pixels')
    config.resamples = 50
  return config

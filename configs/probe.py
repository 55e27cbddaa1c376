r"""Probes a pretrained encoder: heads on frozen features, beside the floors.

python -m micdiffrep_jax.main --config=configs/probe.py:PRESET \
  --config.checkpoint=RUN --config.data.path=DATASET --workdir=RUN/probe

(none)  standardised features, a search over timesteps, grids and rates.
tiny    the same, narrower; for 17,000 images of 64 px and a tiny encoder on 2
        CPU cores.
paper   literally as the paper says: raw features, global average, Adam at
        1e-2, 15 epochs of batch 128.
test    seconds; for trying things out.
Layer, timestep, grid, learning rate and weight decay are chosen on validation.
"""

from ml_collections import ConfigDict

from configs import pretrain


def online_config() -> ConfigDict:
  """Heads see the features of images as they are, computed once; or views.

  Those are a fresh noise draw and augmentation of each image every epoch, in
  turn.
  """
  online = ConfigDict()
  online.views = 0  # as many as epochs: no view is seen twice
  online.augment = pretrain.augment_config()
  return online


def get_config(preset: str = '') -> ConfigDict:
  """The fields of a probe run; a comment marks what the paper leaves open."""
  config = ConfigDict()
  config.task = 'probe'
  config.seed = 0  # of noise, random encoder, forest and bootstrap
  config.checkpoint = ''  # folder of a pretraining run, or a bundle
  config.step = 0  # 0 takes the newest sound checkpoint

  config.data = ConfigDict()
  config.data.path = 'phantom'  # a prepared folder, or phantom[:key=value,...]
  config.data.split = 'patient'  # patient | grouped | paper | leaky | given
  config.data.cache = True  # images as one array in memory-mapped form

  config.layers = ()  # taps to read; () is all that the method has
  config.timesteps = (10, 50)  # ours; of [0, T), 0 the least noise
  config.grids = (1, 4)  # ours; pooling to 1, 2 or 4 cells a side
  config.deviation = False  # ours; of each cell, beside its mean
  config.draws = 1  # noise draws whose features are averaged
  config.batch_size = 128  # of the encoder, over all devices

  config.standardise = True  # ours, by train statistics; False is literal
  config.seeds = (0, 1, 2)  # of the final heads; the search uses the first
  config.select = 'auto'  # folds | validation; auto: folds of few groups
  config.folds = 3  # of groups of train and validation
  config.criterion = 'accuracy'  # metric to choose by: or balanced_accuracy
  config.bundle = 'mlp_concat'  # the row written to head.npz: MSFA

  config.online = online_config()

  config.heads = ConfigDict()
  # mlp on all layers is MSFA; also mlp_layers, one per layer, averaged, and
  # attention, which gathers the cells of a layer by learned queries.
  config.heads.kinds = ('linear', 'mlp')
  config.heads.hidden = 256  # ours; rows of W in eq. 5
  config.heads.bias = True  # ours; the equations have none
  config.heads.epochs = 15
  config.heads.batch_size = 128
  config.heads.learning_rates = (3e-4, 1e-3, 1e-2)  # the paper: 1e-2
  config.heads.weight_decays = (0.0, 1.0)  # ours; decoupled, times the rate
  config.heads.dropout = 0.0  # ours; of features, in [0, 1)
  config.heads.feature_noise = 0.0  # ours; deviations of the features
  config.heads.label_smoothing = 0.0  # ours; in [0, 1)
  config.heads.balanced = False  # weigh classes by inverse frequency
  config.heads.best_epoch = False  # keep the best epoch on validation
  config.heads.memory_mb = 1500  # of the heads trained at once

  # And prototypes, kernel, kernel_layers (one per layer); always standardised,
  # all layers.
  config.classic = ('logistic', 'knn')
  config.random_encoder = True  # the same suite on random weights
  config.floors = (
    'majority',
    'nearest_pixels',
    'nearest_hog',
    'logistic_hog',
    'kernel_pixels',
    'kernel_hog',
    'forest_brightness',
    'imagenet',  # if installed: EfficientNet-Lite0, frozen
  )
  config.pooling = 'mean'  # of a patient's slices: mean | geometric | vote
  config.normal_class = 'auto'  # reported with and without; '' for none
  config.resamples = 1000  # of groups, for 95 % intervals
  config.keep_features = False  # leave the features in the run's folder
  config.allow_failed_audit = False  # probe on data that the audit refuses
  config.allow_seen_test = False  # probe though pretraining saw test images

  if preset == 'paper':
    config.standardise = False
    config.grids = (1,)
    config.heads.learning_rates = (1e-2,)
    config.heads.weight_decays = (0.0,)
  elif preset == 'tiny':
    config.timesteps = (1,)
    config.grids = (4,)
    config.heads.hidden = 128
    config.heads.learning_rates = (3e-4, 1e-3)
    config.heads.weight_decays = (0.0,)
    config.heads.dropout = 0.5  # on validation 85.0; at best 84.7 without
    config.classic = ('knn', 'kernel')
  elif preset == 'test':
    config.data.path = 'phantom:size_px=16,patients=60'
    config.timesteps = (10,)
    config.grids = (1, 2)
    config.batch_size = 64
    config.heads.hidden = 16
    config.heads.epochs = 3
    config.heads.batch_size = 32
    config.heads.learning_rates = (1e-2,)
    config.heads.weight_decays = (0.0,)
    config.folds = 2
    config.floors = ('majority', 'nearest_pixels')
    config.resamples = 50
  elif preset:
    raise ValueError(
      f'Unknown preset {preset!r}; one of paper, tiny, test, or none.'
    )
  return config

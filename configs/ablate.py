r"""Accuracy against timestep, layer and pooling: the paper's Figure 4 and more.

python -m micdiffrep_jax.main --config=configs/ablate.py:PRESET \
  --config.checkpoint=RUN --config.data.path=DATASET --workdir=RUN/ablate

(none)  11 timesteps x every layer x 3 poolings x 2 heads x 2 rates x 3 seeds;
        for a GPU.
tiny    5 timesteps, 2 poolings, one seed in the search; for 2 CPU cores and a
        tiny encoder.
test    seconds; for trying things out.
The same command goes on from the finished timesteps. All is chosen on
validation, the chosen cells are tested once.
"""

from ml_collections import ConfigDict

from configs import probe


def get_config(preset: str = '') -> ConfigDict:
  """The fields of an ablation; a comment marks what the paper leaves open."""
  config = ConfigDict()
  config.task = 'ablate'
  config.seed = 0  # of noise, random encoder, forest and bootstrap
  config.checkpoint = ''  # folder of a pretraining run, or a bundle
  config.step = 0  # 0 takes the newest sound checkpoint

  config.data = ConfigDict()
  config.data.path = 'phantom'  # a prepared folder, or phantom[:key=value,...]
  config.data.split = 'patient'  # patient | grouped | paper | leaky | given
  config.data.cache = True  # images as one array in memory-mapped form

  config.timesteps = (1, 11, 21, 31, 51, 71, 101, 151, 201, 301, 501)
  config.fused = ()  # e.g. ('11+51+151',): features of several side by side
  config.taps = 'all'  # all | encoder (with the middle; cheaper) | decoder
  config.layers = ()  # taps by name; () is all that `taps` leaves
  config.grids = (1, 2, 4)  # ours; pooling to 1, 2 or 4 cells a side
  config.deviation = False  # ours; of each cell, beside its mean
  config.draws = 1  # noise draws whose features are averaged
  config.batch_size = 128  # of the encoder, over all devices

  config.standardise = True  # ours, by train statistics; False is literal
  config.search_seeds = (0, 1, 2)  # of the grid's heads; bands of Figure 4
  config.seeds = (0, 1, 2)  # of the chosen cells, which are tested
  config.criterion = 'accuracy'  # metric to choose by: or balanced_accuracy
  config.bundle = 'mlp_concat'  # the row of confusion.png: MSFA

  config.online = probe.online_config()

  config.heads = ConfigDict()
  # mlp on all layers is MSFA; also mlp_layers, one per layer, averaged, and
  # attention, which gathers the cells of a layer by learned queries.
  config.heads.kinds = ('linear', 'mlp')
  config.heads.hidden = 256  # ours; rows of W in eq. 5
  config.heads.bias = True  # ours; the equations have none
  config.heads.epochs = 15
  config.heads.batch_size = 128
  config.heads.learning_rates = (1e-3, 1e-2)  # the paper: 1e-2
  config.heads.weight_decays = (0.0,)  # ours; decoupled, times the rate
  config.heads.dropout = 0.0  # ours; of features, in [0, 1)
  config.heads.feature_noise = 0.0  # ours; deviations of the features
  config.heads.label_smoothing = 0.0  # ours; in [0, 1)
  config.heads.balanced = False  # weigh classes by inverse frequency
  config.heads.best_epoch = False  # keep the best epoch on validation
  config.heads.memory_mb = 1500  # of the heads trained at once

  # logistic, knn, prototypes, kernel, kernel_layers; all layers, best cell
  config.classic = ()
  config.random_encoder = False  # the same grid on random weights: twice all
  config.floors = (
    'majority',
    'nearest_pixels',
    'nearest_hog',
    'logistic_hog',
    'forest_brightness',
    'imagenet',  # if installed: EfficientNet-Lite0, frozen
  )
  config.pooling = 'mean'  # of a patient's slices: mean | geometric | vote
  config.normal_class = 'auto'  # reported with and without; '' for none
  config.resamples = 1000  # of groups, for 95 % intervals
  config.keep_features = False  # leave the features in the run's folder
  config.allow_seen_test = False  # go on though pretraining saw test images

  if preset == 'tiny':
    config.timesteps = (1, 11, 51, 151, 301)
    config.grids = (1, 4)
    config.search_seeds = (0,)
    config.heads.hidden = 128
  elif preset == 'test':
    config.data.path = 'phantom:size_px=16,patients=60'
    config.timesteps = (1, 51)
    config.grids = (1, 4)
    config.batch_size = 64
    config.search_seeds = (0, 1)
    config.heads.hidden = 8
    config.heads.epochs = 3
    config.heads.batch_size = 32
    config.heads.learning_rates = (1e-2,)
    config.floors = ('majority', 'nearest_pixels')
    config.resamples = 50
  elif preset:
    raise ValueError(f'Unknown preset {preset!r}; one of tiny, test, or none.')
  return config

"""Classifies pictures with a bundle: one row per file.

python -m micdiffrep_jax.main --config=configs/predict.py \
  --config.bundle=FILE --config.source=FOLDER --workdir=OUT

Writes OUT/predictions.csv. The exit status is 3 where some file could not be
read; its row says why, and the rest are predicted. Research use only.
"""

from ml_collections import ConfigDict


def get_config(preset: str = '') -> ConfigDict:
  """The fields of a prediction."""
  if preset:
    raise ValueError(f'Unknown preset {preset!r}; this config has none.')
  config = ConfigDict()
  config.task = 'predict'
  config.seed = 0  # without effect: the noise of an image is its own

  config.bundle = ''  # file that configs/bundle.py wrote
  config.source = ''  # folder, file, or @LIST with one path per line
  config.workers = 0  # threads that read; 0 is one per core
  config.low_confidence = 0.0  # flag below it; 0: the bundle's own, which a
  # tenth of its validation images fall below
  config.heatmaps = False  # also draw what each prediction hangs on (slow)

  config.occlusion = ConfigDict()
  config.occlusion.window = 0.25  # side of what is covered, as a share
  config.occlusion.stride = 0.125  # between windows, as a share of the side
  config.occlusion.size_px = 256  # of the drawn picture
  return config

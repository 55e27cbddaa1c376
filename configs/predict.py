r"""Classifies pictures, DICOM and NIfTI files: one row per picture or slice.

python -m micdiffrep_jax.main --config=configs/predict.py \
  --config.bundle=FILE --config.source=FOLDER --workdir=OUT

Reads what configs/prepare.py reads, in the same way: pictures, DICOM, NIfTI,
folders of series, with the settings that the bundle's data were prepared with.
Writes OUT/predictions.csv and, where patients are known (by DICOM headers, or
folders and names sub-XX), OUT/patients.csv with the mean over the slices of
each. Files that are no pictures are counted and passed over. The exit status is
3 where a picture could not be read; its row says why, and the rest are
predicted. --config.heatmaps=True also draws, for each picture, how far the
log-odds of its class fall where a window of it is covered by what lies around:
OUT/heatmaps/*.png, named in predictions.csv. In all tables a byte of a name
that is not UTF-8 is written \xNN. Research use only.
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
  config.head = 'final'  # or measured: the one that has not seen test images
  config.source = ''  # folder, file, or @LIST: a file with a path per line
  config.workers = 0  # threads that read; 0 is one per core
  # Flag what is below; 0: the bundle's own, which a tenth of its validation
  # images fall below.
  config.low_confidence = 0.0
  config.heatmaps = False  # also draw what each prediction hangs on (slow)

  config.occlusion = ConfigDict()  # of the heat maps
  config.occlusion.window = 0.25  # side of what is covered, as a share
  config.occlusion.stride = 0.125  # between windows, as a share of the side
  config.occlusion.size_px = 256  # of each of the two drawn pictures
  return config

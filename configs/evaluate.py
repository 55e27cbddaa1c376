r"""Scores a bundle on a labelled folder of its own classes.

python -m micdiffrep_jax.main --config=configs/evaluate.py \
  --config.bundle=FILE --config.data.source=FOLDER \
  --config.data.group_regex='^(patient\d+)' --workdir=OUT

Reads what configs/prepare.py reads: pictures, DICOM, NIfTI, folders of series.
DICOM headers and folders sub-XX name patients, as do the fields below. Classes
of the bundle may be absent: the recall of each class that is there is told.
Writes OUT/predictions.csv, a row per picture or slice, OUT/patients.csv, a row
per known patient, and OUT/results.json.

Looks for images that the bundle was trained on, and refuses them, or reports
without them with --config.overlap=drop. A bundle with hashes alone recognises
equal pixels only. Files that are no pictures are counted; the exit status is 3
where a picture could not be read.
To check the accuracy that a bundle tells: --config.head=measured
--config.data.path=DATASET, the data set of its probe; without data.source.
For Crystal Clean: --config.data.variant_regex=crystal_clean.
"""

from ml_collections import ConfigDict


def get_config(preset: str = '') -> ConfigDict:
  """The fields of an evaluation."""
  if preset:
    raise ValueError(f'Unknown preset {preset!r}; this config has none.')
  config = ConfigDict()
  config.task = 'evaluate'
  config.seed = 0  # of the bootstrap

  config.bundle = ''  # file that configs/bundle.py wrote
  config.head = 'final'  # or measured: the one that has not seen test images
  config.overlap = 'error'  # with training: error | drop | keep

  data = config.data = ConfigDict()
  data.path = ''  # prepared data set: its test part is scored
  data.source = ''  # or a folder of class folders, or @LIST of such files
  data.class_map = ()  # ('folder=class', ...) for folders of other names
  # What belongs together, for the intervals; the first that is set wins.
  # Which files are copies of one picture: crystal_clean, or a pattern with the
  # named groups source and variant.
  data.variant_regex = ''
  data.group_csv = ''  # table with the columns file, group
  data.group_regex = ''  # crystal_clean, or a pattern: '^(patient\\d+)'
  data.group_by = ''  # parent (folder) or file (each picture stands alone)

  config.pooling = 'mean'  # of a patient's slices: mean | geometric | vote
  config.normal_class = 'bundle'  # reported with and without; '' for none
  config.workers = 0  # threads that read; 0 is one per core
  config.resamples = 1000  # of groups, for 95 % intervals
  return config

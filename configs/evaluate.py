r"""Scores a bundle on a labelled folder of its own classes.

python -m micdiffrep_jax.main --config=configs/evaluate.py \
  --config.bundle=FILE --config.data.source=FOLDER \
  --config.data.group_regex='^(patient\d+)' --workdir=OUT

Looks for images that the bundle was trained on, and refuses them, or reports
without them with --config.overlap=drop. The exit status is 3 where some file
could not be read. For Crystal Clean: --config.data.group_regex=crystal_clean.
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
  config.overlap = 'error'  # with training: error | drop | keep

  data = config.data = ConfigDict()
  data.source = ''  # folder of class folders
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

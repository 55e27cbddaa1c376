r"""Audits a prepared dataset before anything is trained on it.

python -m micdiffrep_jax.main --config=configs/audit.py \
  --config.data.path=DATASET --workdir=runs/audit

Writes audit.html and results.json; the exit status is 3 where the audit fails.
On the Crystal Clean set the size of the original alone tells class Normal from
the rest.
"""

from ml_collections import ConfigDict


def get_config(preset: str = '') -> ConfigDict:
  """The fields of an audit."""
  if preset:
    raise ValueError(f'Unknown preset {preset!r}; this config has none.')
  config = ConfigDict()
  config.task = 'audit'
  config.seed = 0

  config.data = ConfigDict()
  config.data.path = 'phantom'  # a prepared folder, or phantom[:key=value,...]
  config.data.split = (
    'patient'  # that decides: patient | grouped | paper | leaky | given
  )
  config.data.cache = True  # images as one array in memory-mapped form

  config.source = ''  # folder of the original files, for header shortcuts
  # Table of more columns to test as shortcuts: file, site, age, ...
  config.columns = ''
  config.second_look = True  # search near-duplicates again, on prepared pixels
  config.max_unseen_twins = 0.02  # share of test sources it may find unjoined
  config.shortcuts = True
  config.shortcut_images = 3000  # untouched sources at most
  config.folds = 5  # of the cross-validation, by group
  config.resamples = 200  # of groups, for the intervals
  return config

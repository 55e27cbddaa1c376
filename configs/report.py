r"""Writes one self-contained HTML file from any set of result folders.

python -m micdiffrep_jax.main --config=configs/report.py \
  --config.runs="('runs/pretrain','runs/probe','runs/sample')" \
  --workdir=runs/report

Writes report.html, which needs no network, and report.md. Seconds on one core.
"""

from ml_collections import ConfigDict


def get_config(preset: str = '') -> ConfigDict:
  """The fields of a report."""
  if preset:
    raise ValueError(f'Unknown preset {preset!r}; this config has none.')
  config = ConfigDict()
  config.task = 'report'
  config.seed = 0  # nothing is drawn at random; every task has one

  config.runs = ()  # result folders; a folder of result folders counts as all
  config.title = 'Diffusion features: results'
  config.look_up_data = True  # counts of the data that the runs name, if there
  return config

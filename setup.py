"""The packages of a wheel; pyproject.toml says everything else.

The folder `configs` lies beside the package in a clone and within it in a
wheel, where the name would otherwise be everybody's.
"""

from setuptools import find_packages, setup

CONFIGS = 'micdiffrep_jax.configs'

setup(
  packages=[
    *find_packages(include=['micdiffrep_jax*']),
    CONFIGS,
    f'{CONFIGS}.methods',
  ],
  package_dir={CONFIGS: 'configs', f'{CONFIGS}.methods': 'configs/methods'},
)

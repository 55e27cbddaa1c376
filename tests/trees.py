"""Folders of pictures for the tests of the data part."""

import importlib.util
import pathlib

import cv2
import numpy as np

from micdiffrep_jax.data import prepare
from micdiffrep_jax.data.dataset import open_dataset

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'


def head(seed):
  """A picture (48, 48) uint8 unlike that of any other seed."""
  rng = np.random.default_rng(seed)
  texture = cv2.resize(rng.uniform(60, 250, (8, 8)), (48, 48))
  disc = cv2.circle(np.zeros((48, 48)), (24, 24), 21, 1, -1)
  return (texture * disc).astype(np.uint8)


def write(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  assert cv2.imwrite(str(path), pixels)


def class_tree(
  root, classes=('sick', 'well'), sources=12, variants=('', '_BR_')
):
  """CLASS/X_1.png and its variants; returns the number of files."""
  for k, name in enumerate(classes):
    for i in range(sources):
      picture = head(1000 * k + i)
      for v in variants:
        shown = picture if not v else np.clip(picture * 1.2, 0, 255)
        write(root / name / f'{name[0].upper()}_{i + 1}{v}.png', shown)
  return len(classes) * sources * len(variants)


def config(preset='', **data):
  """configs/prepare.py with fields of config.data replaced."""
  spec = importlib.util.spec_from_file_location(
    'prepare_config', CONFIGS / 'prepare.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  made = module.get_config(preset)
  made.data.size_px = 16
  made.data.update(data)
  return made.lock()


def prepared(tree, tmp_path, out='out', **data):
  """`tree` prepared into tmp_path / out, opened."""
  data = {'variant_regex': 'crystal_clean', 'max_bad_share': 0.1, **data}
  made = config(source=str(tree), out=str(tmp_path / out), **data)
  prepare.run(made, str(tmp_path / 'work'))
  return open_dataset(str(tmp_path / out))

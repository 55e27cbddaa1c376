"""A classifier with random weights, small enough to compile in a second."""

import functools

import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.bundle import classifier, fingerprints
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.heads import head_file
from micdiffrep_jax.heads.base import HeadInfo
from micdiffrep_jax.methods import recipe
from micdiffrep_jax.run import devices

SIZE, CLASSES = 16, ('a', 'b', 'c')


def config() -> ConfigDict:
  return ConfigDict(
    {
      'method': 'ddpm',
      'ema_decay': 0.9,
      'model': {
        'name': 'unet',
        'channels': 4,
        'multipliers': (1, 1),
        'blocks': 1,
        'attention': (),
        'heads': 1,
        'groups': 2,
        'dropout': 0.0,
        'patch': 4,
        'dtype': 'float32',
        'remat': False,
      },
      'diffusion': {
        'schedule': 'linear',
        'timesteps': 50,
        'target': 'eps',
        'beta_start': 1e-4,
        'beta_end': 2e-2,
        'weighting': 'none',
      },
      'augment': {
        'flip': 0.5,
        'rotate_deg': 0.0,
        'scale': 0.0,
        'shift': 0.0,
        'brightness': 0.0,
        'contrast': 0.0,
      },
      'recipe': recipe.Recipe()._asdict(),
    }
  )


@functools.cache
def encoder() -> encoders.Encoder:
  method = encoders.make_method(config(), SIZE, 1)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    lambda key: method.frozen(*method.init(key)), jax.random.key(0)
  )
  # Random everywhere: what starts at zero would hide what depends on it.
  variables = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes
  )
  info = encoders.EncoderInfo(SIZE, 1, path='/somewhere', step=0)
  placed = jax.device_put(variables, devices.replicated(devices.make_mesh()))
  return encoders.Encoder(method, placed, config(), info)


@functools.cache
def model(
  known: fingerprints.Fingerprints | None = None,
  layers=('down0_0',),
  kind='mlp',
) -> classifier.Classifier:
  rng = np.random.default_rng(1)
  d = 4 * 4 * len(layers)  # 2 x 2 cells of 4 channels
  params = {
    'W': rng.normal(0, 1, (1, 8, d)).astype(np.float32),
    'W_bias': rng.normal(0, 1, (1, 8)).astype(np.float32),
    'M': rng.normal(0, 1, (1, 3, 8)).astype(np.float32),
  }
  if kind == 'kernel':
    params['W'] /= 4
    params['centres'] = rng.normal(0, 1, (1, 300, 8)).astype(np.float32)
    params['M'] = rng.normal(0, 9, (1, 3, 300)).astype(np.float32)
  info = HeadInfo(
    kind,
    layers,
    timestep=3,
    grid=2,
    extracted_grid=2,
    draws=2,
    feature_seed=0,
    temperature=2.5,
  )
  shift = rng.normal(0, 0.1, d).astype(np.float32)
  head = head_file.SavedHead(params, shift, np.ones(d, np.float32), info)
  meta = classifier.Meta(CLASSES, SIZE, 1, low_confidence=0.4, normal_class='')
  known = fingerprints.empty() if known is None else known
  return classifier.assemble(encoder(), head, meta, known)


def images(n: int, seed: int = 0) -> np.ndarray:
  """Smooth random pictures (n, 16, 16, 1) uint8, each unlike the others."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (n, 8, 8), dtype=np.uint8)
  return np.repeat(np.repeat(coarse, 2, 1), 2, 2)[..., None]

"""A small encoder of three stages, each a matrix, to be trained on."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from configs import finetune as finetune_config
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders.encoder import Encoder, EncoderInfo
from micdiffrep_jax.methods import finetune as method
from micdiffrep_jax.methods.base import Reader, noiseless, to_float

SIZE, STAGES, WIDTH = 16, ('one', 'two', 'three'), 8
PHANTOM = f'phantom:size_px={SIZE},patients=60'


def reader(config=None, size_px=SIZE, channels=1):
  """Cells of 4 x 4 pixels through three layers; 'mean' is a statistic."""
  del config, size_px

  def init(key):
    widths = (16 * channels, WIDTH, WIDTH)
    keys = jax.random.split(key, 3)
    params = {
      name: {
        'kernel': jax.random.normal(k, (n, WIDTH)) / np.sqrt(n),
        'bias': jnp.zeros(WIDTH),
      }
      for name, n, k in zip(STAGES, widths, keys)
    }
    return params, {'mean': jnp.zeros(WIDTH)}

  def taps(variables, images):
    x = to_float(images)
    b = len(x)
    x = x.reshape(b, 4, 4, 4, 4, -1).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, 4, 4, -1)
    found = {}
    for name in STAGES:
      own = variables['params'][name]
      x = jnp.tanh(
        jnp.einsum('bhwd,de->bhwe', x, own['kernel'])
        + own['bias'].reshape(1, 1, 1, -1)
      )
      if name == 'two':
        x = x - variables['stats']['mean'].reshape(1, 1, 1, -1)
      found[name] = x
    return found

  return Reader(
    init=init,
    frozen=lambda params, extra: {'params': params, 'stats': extra},
    features=noiseless(taps),
    layers=STAGES,
    encoder=lambda variables: variables['params'],
  )


TABLE = {'toy': reader}


def encoder(seed=0, **info):
  one = reader()
  variables = one.frozen(*one.init(jax.random.key(seed)))
  config = ConfigDict({'method': 'toy'}).lock()
  known = {'path': 'toy', 'step': 0, 'images_seen': 0, **info}
  return Encoder(one, variables, config, EncoderInfo(SIZE, 1, **known))


def get_config(**changes):
  """The test preset, small; changes: fields, dotted names behind '__'."""
  config = finetune_config.get_config('test')
  config.checkpoint = 'toy'
  config.floors = ('majority',)
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in changes.items()}
  )
  return config.lock()


def resolved(classes=4, **changes):
  """The config of a run on the toy, as its checkpoints hold it."""
  config = get_config(**changes).copy_and_resolve_references().unlock()
  config.method, config.base = 'finetune', ConfigDict({'method': 'toy'})
  config.classes = tuple('abcdefgh'[:classes])
  config.net = ConfigDict({'kind': 'linear', 'hidden': 0, 'bias': True})
  return config.lock()


def tuning(**changes):
  return method.tuning(TABLE, resolved(**changes), SIZE, 1)


def batch(ds, n=16):
  rows = data.rows(ds, 'patient', 'train')[:n]
  label = data.labels(ds)[rows]
  weight = np.ones(n, np.float32)
  return {'image': ds.images[rows], 'label': label, 'weight': weight}

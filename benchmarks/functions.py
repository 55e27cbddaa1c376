"""What the project compiles, with the shapes that it is called with.

Of each function (fn, shapes): fn.trace(*shapes) needs no data and no device but
those of the mesh.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
import numpy as np

from configs import baselines, pretrain
from micdiffrep_jax.encoders import encoder, features
from micdiffrep_jax.heads import trained
from micdiffrep_jax.methods.base import trainable
from micdiffrep_jax.pretrain.state import compile_program
from micdiffrep_jax.run import devices

Call = tuple[Callable, tuple]
CHANNELS = 1
GRID = 4
# The heads: a cell's rows, columns, classes, updates, settings and draws.
ROWS, COLUMNS, CLASSES, STEPS, SETTINGS = 6000, 1024, 4, 40, 8


def config_of(method: str, preset: str) -> ConfigDict:
  """The config of a method; 'tiny' is the only small one of some."""
  if method == 'ddpm':
    return pretrain.get_config(preset)
  config = baselines.get_config(f'{method},{preset}')
  if 'teacher' in config:  # its maps are given, so it need not be there
    config.teacher.shape = (4, 4, 8)
  return config


def shape(
  mesh: Mesh, *axes: int, dtype: Any = np.uint8, split: bool = True
) -> jax.ShapeDtypeStruct:
  """An array that the mesh splits over its first axis, or copies."""
  spec = PartitionSpec('data') if split else PartitionSpec()
  sharding = NamedSharding(mesh, spec)
  return jax.ShapeDtypeStruct(axes, dtype, sharding=sharding)


def key_of(mesh: Mesh) -> jax.ShapeDtypeStruct:
  """A key on every device."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.ShapeDtypeStruct((), key.dtype, sharding=devices.replicated(mesh))


def step(config: ConfigDict, size_px: int, mesh: Mesh) -> Call:
  """One update of the weights."""
  made = encoder.make_method(config, size_px, CHANNELS)
  method = trainable(made, config.method)
  program = compile_program(method, config, 1000, mesh)
  batch = {'image': shape(mesh, config.batch_size, size_px, size_px, CHANNELS)}
  for name, row in method.row.items():
    batch[name] = shape(mesh, config.batch_size, *row.shape, dtype=row.dtype)
  return program.step, (program.abstract, batch, key_of(mesh))


def _frozen(method: Any, mesh: Mesh) -> Any:
  """Shapes of the weights that are read, a copy on every device."""
  variables = jax.eval_shape(
    lambda key: method.frozen(*method.init(key)), jax.random.key(0)
  )
  copied = devices.replicated(mesh)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=copied), variables
  )


def read(config: ConfigDict, size_px: int, mesh: Mesh) -> Call:
  """The features of all layers for a batch of images."""
  method = encoder.make_method(config, size_px, CHANNELS)
  fn = features.make_feature_fn(method, method.layers, GRID)
  images = shape(mesh, config.batch_size, size_px, size_px, CHANNELS)
  seeds = shape(mesh, config.batch_size, dtype=np.uint32)
  t = shape(mesh, dtype=np.int32, split=False)
  return fn, (_frozen(method, mesh), images, seeds, key_of(mesh), t)


def sampler(config: ConfigDict, size_px: int, mesh: Mesh) -> Call:
  """A batch of images from noise; ValueError for what generates none."""
  made = encoder.make_method(config, size_px, CHANNELS)
  method = trainable(made, config.method)
  if method.sample is None:
    raise ValueError(f'{config.method} generates nothing. Set --method=ddpm.')
  keys = shape(mesh, config.batch_size, dtype=key_of(mesh).dtype)
  return jax.jit(method.sample), (_frozen(method, mesh), keys)


def head(config: ConfigDict, size_px: int, mesh: Mesh) -> Call:
  """MSFA heads on all layers, one cell for each device, a few settings each."""
  del size_px
  options = trained.Options('mlp', batch_size=config.batch_size)
  cells = mesh.size
  blocks = ROWS // 4 // trained.BLOCK * trained.BLOCK or ROWS // 4

  def whole(*axes: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return shape(mesh, *axes, dtype=dtype, split=False)

  data = trained.Data(
    x=whole(1, 1, ROWS, COLUMNS, dtype=np.float16),
    shift=whole(1, COLUMNS),
    scale=whole(1, COLUMNS),
    labels=whole(ROWS, dtype=np.int32),
    class_weights=whole(CLASSES),
    rows=whole(blocks, dtype=np.int32),
    row_weights=whole(blocks),
  )
  drawn = shape(
    mesh, cells, options.epochs, STEPS, config.batch_size, dtype=np.int32
  )
  number = shape(mesh, cells, dtype=np.int32)
  own = (number, number, (drawn, drawn), number)
  fn = jax.jit(
    lambda data, own, settings: trained.train_cells(
      options, data, own, settings
    )
  )
  return fn, (data, own, whole(SETTINGS, 2))


FUNCTIONS = {
  'step': step,
  'features': read,
  'sampler': sampler,
  'head': head,
}

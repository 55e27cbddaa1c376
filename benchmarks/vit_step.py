"""Times one update of the vision transformer: ours, diffusers' and our UNet.

python -m benchmarks.vit_step --size=tiny [--dtype=bfloat16] \
  [--batch_size=32] [--compile] [--rounds=10] [--out=FILE]

All sides: uint8 batch of the host, flips, noise, forward, backward, clipped
gradients, Adam, EMA, the loss back on the host. diffusers' DiT has no long
skips, so ours has none here; each of its blocks embeds the time for itself,
ours share that, so it has more parameters. Our UNet is that of the same size,
with the depth of the transformer set to come nearest to its parameters.
"""

import argparse

from diffusers import DiTTransformer2DModel
import jax
import numpy as np
import torch

from benchmarks import common, torch_unet, train_step
from configs import pretrain
from micdiffrep_jax.encoders import encoder


class Peer(torch.nn.Module):
  """diffusers' DiT, called as the benchmark's UNet is: net(x, t)."""

  def __init__(self, model, size_px: int):
    super().__init__()
    self.dit = DiTTransformer2DModel(
      num_attention_heads=model.heads,
      attention_head_dim=model.width // model.heads,
      in_channels=1,
      out_channels=1,
      num_layers=model.depth,
      sample_size=size_px,
      patch_size=model.patch,
      num_embeds_ada_norm=1,
    )

  def forward(self, x, t):
    none = torch.zeros_like(t)  # one class, which is no class
    return self.dit(x, t, none, return_dict=False)[0]


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', default='tiny', choices=('small', 'tiny'))
  torch_unet.add_arguments(parser)
  return parser.parse_args()


def parameters(config, size_px: int) -> int:
  """Of the network, without making its weights."""
  method = encoder.make_method(config, size_px, 1)
  made = jax.eval_shape(method.init, jax.random.key(0))
  return sum(x.size for x in jax.tree.leaves(made[0]))


def configs(args: argparse.Namespace, size_px: int):
  """Of the transformer and of the UNet, as near in parameters as depth can."""
  unet = pretrain.get_config(args.size)
  vit = pretrain.get_config(f'vit_{args.size}')
  for config in (unet, vit):
    config.batch_size, config.model.dtype = args.batch_size, args.dtype
  vit.model.skips = False
  wanted = parameters(unet, size_px)

  def gap(depth: int) -> int:
    vit.model.depth = depth
    return abs(parameters(vit, size_px) - wanted)

  vit.model.depth = min(range(1, 25), key=gap)
  return vit, unet


def main() -> None:
  args = arguments()
  size_px = common.SIZES_PX[args.size]
  vit, unet = configs(args, size_px)
  torch_unet.use_our_cores()
  shape = (args.batch_size, size_px, size_px, 1)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  ours, compiled, count = train_step.our_step(vit, size_px)
  other, compiled_unet, count_unet = train_step.our_step(unet, size_px)
  net = Peer(vit.model, size_px).to(torch_unet.device())
  peer = torch_unet.make_step(vit, net, args.compile, args.dtype)
  seconds = common.interleave(
    {
      'ours': lambda: ours(images),
      'our UNet': lambda: other(images),
      'diffusers': lambda: peer(images),
    },
    args.rounds,
    warmup=3,
  )
  found = common.compare(seconds, args.batch_size)
  flops = [x.cost_analysis()['flops'] for x in (compiled, compiled_unet)]
  record = {
    'parameters': {
      'ours': count,
      'our UNet': count_unet,
      'diffusers': torch_unet.count(net),
    },
    'depth': vit.model.depth,
    'dtype': args.dtype,
    'batch_size': args.batch_size,
    'unit': 'images',
    'flops_per_image': dict(
      zip(('ours', 'our UNet'), [x / args.batch_size for x in flops])
    ),
    'flops_per_s': {
      name: x / found[name]['median_s']
      for name, x in zip(('ours', 'our UNet'), flops)
    },
    'matmul_peak_flops_per_s': common.matmul_peak(args.dtype),
    'sides': found,
  }
  name = f'vit_step {args.size} {args.dtype} {args.batch_size}'
  common.emit(name, record, args.out)


if __name__ == '__main__':
  main()

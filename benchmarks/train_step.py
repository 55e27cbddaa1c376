"""Times one update of the UNet: ours against diffusers' in PyTorch.

python -m benchmarks.train_step --preset=small [--dtype=bfloat16] \
  [--batch_size=32] [--compile] [--rounds=10] [--out=FILE]

Both sides: uint8 batch of the host, flips, noise, forward, backward, clipped
gradients, Adam, EMA, the loss back on the host. The UNets have equal layout and
parameter count, which is asserted. diffusers has no patchified stem: it gets
pixel_unshuffle and pixel_shuffle around it, so its convolutions are as ours.
It is channels last, with fused Adam; on a GPU under torch.compile too, with
TF32 and cuDNN's fastest algorithms, as XLA has them.
"""

import argparse

import jax
import numpy as np
import torch

from benchmarks import common, torch_unet
from configs import pretrain
from micdiffrep_jax.encoders import encoder
from micdiffrep_jax.pretrain.state import compile_program
from micdiffrep_jax.run import devices


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--preset', default='tiny', choices=sorted(common.SIZES_PX)
  )
  torch_unet.add_arguments(parser)
  return parser.parse_args()


def our_step(config, size_px: int):
  """step(images) -> loss, and the compiled program and parameter count."""
  mesh = devices.make_mesh()
  method = encoder.make_method(config, size_px, 1)
  program = compile_program(method, config, 1000, mesh)
  key = devices.replicate(jax.random.key(0), mesh)
  state = program.init(key)

  def place(images):
    return devices.place({'image': images}, mesh)

  shape = (config.batch_size, size_px, size_px, 1)
  batch = place(np.zeros(shape, np.uint8))
  compiled = program.step.lower(state, batch, key).compile()

  def step(images):
    nonlocal state
    state, metrics = compiled(state, place(images), key)
    return float(metrics['loss'])

  parameters = sum(x.size for x in jax.tree.leaves(state.params))
  return step, compiled, parameters


def main() -> None:
  args = arguments()
  config = pretrain.get_config(args.preset)
  config.batch_size, config.model.dtype = args.batch_size, args.dtype
  size_px = common.SIZES_PX[args.preset]
  torch_unet.use_our_cores()
  ours, compiled, parameters = our_step(config, size_px)
  kinds = {'diffusers': False}
  if args.compile:
    kinds['diffusers compiled'] = True
  shape = (args.batch_size, size_px, size_px, 1)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  sides = {'ours': lambda: ours(images)}
  for name, is_compiled in kinds.items():
    net = torch_unet.PatchedUNet(config.model, size_px, 1)
    net = net.to(torch_unet.device())
    theirs = torch_unet.count(net)
    assert theirs == parameters, (theirs, parameters)
    step = torch_unet.make_step(config, net, is_compiled, args.dtype)
    sides[name] = lambda step=step: step(images)
  print(f'{parameters:,} parameters on each side')
  seconds = common.interleave(sides, args.rounds, warmup=3)
  found = common.compare(seconds, args.batch_size)
  flops = compiled.cost_analysis()['flops']
  peak = common.matmul_peak(args.dtype)
  memory = compiled.memory_analysis()
  record = {
    'parameters': parameters,
    'preset': args.preset,
    'dtype': args.dtype,
    'batch_size': args.batch_size,
    'unit': 'images',
    'flops_per_image': flops / args.batch_size,
    'flops_per_s': flops / found['ours']['median_s'],
    'matmul_peak_flops_per_s': peak,
    'share_of_peak': flops / found['ours']['median_s'] / peak,
    'our_memory_mb': (memory.temp_size_in_bytes + memory.argument_size_in_bytes)
    / 2**20,
    'sides': found,
  }
  if torch.cuda.is_available():
    record['their_memory_mb'] = torch.cuda.max_memory_allocated() / 2**20
  name = f'train_step {args.preset} {args.dtype} {args.batch_size}'
  common.emit(name, record, args.out)


if __name__ == '__main__':
  main()

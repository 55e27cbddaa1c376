"""Training steps per second: ours against PyTorch, the same UNet in both.

python -m benchmarks.train_step [--preset=tiny] [--batch_size=32] \
  [--channels=0] [--patch=0] [--dtype=float32] [--compile] [--repeats=7]

Forward, backward, clipping, Adam and EMA of one batch, from uint8 images on
the device. Both networks have the same number of parameters, which is checked.
A patchified stem is unfolded for the peer. Attention has one head in ours; in
the peer the wider levels have several of the least width.
"""

import argparse
import copy
import os

import jax
import numpy as np
import torch

from benchmarks import common, torch_unet
from configs import pretrain
from micdiffrep_jax import features, sharding
from micdiffrep_jax.training import train


def arguments():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--preset', default='tiny', help='of configs/pretrain')
  parser.add_argument('--size_px', type=int, default=0)
  parser.add_argument('--batch_size', type=int, default=0)
  parser.add_argument('--channels', type=int, default=0, help='of the UNet')
  parser.add_argument('--patch', type=int, default=0)
  parser.add_argument(
    '--dtype', default='', choices=['', 'float32', 'bfloat16']
  )
  parser.add_argument('--compile', action='store_true', help='torch.compile')
  parser.add_argument('--steps', type=int, default=3, help='of one measurement')
  parser.add_argument('--repeats', type=int, default=7)
  return parser.parse_args()


def matrix_peak(n: int = 2048) -> float:
  """FLOP/s of a float32 product of n x n matrices, the best of 5."""
  x = jax.numpy.ones((n, n))
  product = jax.jit(lambda x: x @ x)
  product(x).block_until_ready()
  times = [
    common.seconds(lambda: product(x).block_until_ready()) for _ in range(5)
  ]
  return 2 * n**3 / min(times)


def ours(config, size_px, images, steps):
  mesh = sharding.make_mesh()
  method = features.make_method(config, size_px, 1)
  program = train.compile_program(method, config, 10_000, mesh)
  key = sharding.replicate(jax.random.key(0), mesh)
  batch = sharding.place({'image': images}, mesh)
  state = [program.init(key)]
  parameters = sum(x.size for x in jax.tree.leaves(state[0].params))
  compiled = program.step.lower(state[0], batch, key).compile()
  flops = (compiled.cost_analysis() or {}).get('flops', 0.0)

  def call():
    for _ in range(steps):
      state[0], metrics = compiled(state[0], batch, key)
    jax.block_until_ready(metrics)

  return call, parameters, float(flops)


def peer(config, size_px, images, steps, compiled):
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  net = torch_unet.make(config.model, size_px, 1).to(device)
  count = torch_unet.parameters(net)
  shadow = copy.deepcopy(net)
  optimizer = torch.optim.Adam(net.parameters(), lr=config.optim.lr)
  bar = torch.from_numpy(alpha_bar(config)).to(device)
  data = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
  half = config.model.dtype == 'bfloat16'

  def loss_of(x0):
    x0 = torch.nn.functional.pixel_unshuffle(x0, config.model.patch)
    x0 = x0.contiguous(memory_format=torch.channels_last)
    t = torch.randint(len(bar), (len(x0),), device=device)
    eps = torch.randn_like(x0)
    a = bar[t][:, None, None, None]
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * eps
    with torch.autocast(device, torch.bfloat16, enabled=half):
      out = net(x_t, t).sample
    return torch.nn.functional.mse_loss(out.float(), eps)

  step_loss = torch.compile(loss_of) if compiled else loss_of

  def call():
    for _ in range(steps):
      x0 = data.float() / 127.5 - 1
      flip = torch.rand(len(x0), 1, 1, 1, device=device) < 0.5
      loss = step_loss(torch.where(flip, x0.flip(-1), x0))
      optimizer.zero_grad(set_to_none=True)
      loss.backward()
      torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
      optimizer.step()
      with torch.no_grad():
        torch._foreach_lerp_(
          list(shadow.parameters()), list(net.parameters()), 1e-3
        )
    loss.item()

  return call, count


def alpha_bar(config):
  d = config.diffusion
  beta = np.linspace(d.beta_start, d.beta_end, d.timesteps)
  return np.cumprod(1 - beta).astype(np.float32)


def main():
  args = arguments()
  config = pretrain.get_config(args.preset)
  for name in ('channels', 'patch', 'dtype'):
    if getattr(args, name):
      config.model[name] = getattr(args, name)
  config.batch_size = args.batch_size or config.batch_size
  size_px = args.size_px or {'paper': 112, 'test': 16}.get(args.preset, 64)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  images = np.random.default_rng(0).integers(
    0, 256, (config.batch_size, size_px, size_px, 1), np.uint8
  )
  call, count, flops = ours(config, size_px, images, args.steps)
  calls = {'ours': call}
  calls['PyTorch, channels_last'], theirs = peer(
    config, size_px, images, args.steps, False
  )
  assert count == theirs, f'{count} parameters against {theirs}'
  if args.compile:
    calls['PyTorch, torch.compile'], _ = peer(
      config, size_px, images, args.steps, True
    )
  peak = matrix_peak()
  times = common.interleave(calls, args.repeats)
  best = min(times['ours'])
  per_s = flops * args.steps / best
  record = {
    'benchmark': 'train_step',
    'preset': args.preset,
    'model': dict(config.model),
    'size_px': size_px,
    'batch_size': config.batch_size,
    'parameters': count,
    'flops_per_s': per_s,
    'matrix_peak_flops_per_s': peak,
    'share_of_peak': per_s / peak,
  }
  title = (
    f'train step, {args.preset}, {count / 1e6:.2f} M parameters, {size_px} px, '
    f'batch {config.batch_size}; {100 * per_s / peak:.0f} % of the matrix peak'
  )
  common.tell(title, times, args.steps * config.batch_size, record)


if __name__ == '__main__':
  main()

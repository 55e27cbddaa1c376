"""Sampling: ours against the diffusers pipelines, the same UNet in both.

python -m benchmarks.sampling [--preset=tiny] [--batch_size=16] \
  [--steps=1000] [--sampler=ddpm] [--channels=0] [--repeats=3]

DDPM (ancestral) or DDIM from noise to images of float pixels in [-1, 1]. The
networks have the same number of parameters, which is checked; the weights are
random, which costs the same.
"""

import argparse
import os

from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
import jax
import torch

from benchmarks import common, torch_unet
from configs import pretrain
from micdiffrep_jax.methods import ddpm
from micdiffrep_jax.sampling import samplers


def arguments():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--preset', default='tiny', help='of configs/pretrain')
  parser.add_argument('--size_px', type=int, default=0)
  parser.add_argument('--batch_size', type=int, default=16)
  parser.add_argument('--channels', type=int, default=0, help='of the UNet')
  parser.add_argument('--sampler', default='ddpm', choices=['ddpm', 'ddim'])
  parser.add_argument('--steps', type=int, default=0, help='0: 1000 or 50')
  parser.add_argument('--repeats', type=int, default=3)
  return parser.parse_args()


def ours(config, size_px, batch, sampler, steps):
  net = ddpm.denoiser(config, size_px)
  method = ddpm.make(config, size_px, 1)
  params = jax.jit(lambda k: method.init(k)[0])(jax.random.key(0))

  @jax.jit
  def draw(params, keys):
    return samplers.sample(
      net.process,
      lambda x, t: net.apply(params, x, t)[0],
      keys,
      (size_px, size_px, 1),
      sampler=sampler,
      steps=steps,
    )

  keys = jax.random.split(jax.random.key(1), batch)
  count = sum(x.size for x in jax.tree.leaves(params))
  return lambda: jax.block_until_ready(draw(params, keys)), count


def peer(config, size_px, batch, sampler, steps):
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  net = torch_unet.make(config.model, size_px, 1).to(device).eval()
  d = config.diffusion
  schedule, pipeline = {
    'ddpm': (DDPMScheduler, DDPMPipeline),
    'ddim': (DDIMScheduler, DDIMPipeline),
  }[sampler]
  scheduler = schedule(
    d.timesteps, beta_start=d.beta_start, beta_end=d.beta_end
  )
  pipe = pipeline(net, scheduler)
  pipe.set_progress_bar_config(disable=True)

  def draw():
    pipe(batch_size=batch, num_inference_steps=steps, output_type='np')

  return draw, torch_unet.parameters(net)


def main():
  args = arguments()
  config = pretrain.get_config(args.preset)
  if args.channels:
    config.model.channels = args.channels
  size_px = args.size_px or {'paper': 112, 'test': 16}.get(args.preset, 64)
  steps = args.steps or (1000 if args.sampler == 'ddpm' else 50)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  rest = (size_px, args.batch_size, args.sampler, steps)
  calls, counts = {}, {}
  calls['ours'], counts['ours'] = ours(config, *rest)
  calls['diffusers'], counts['diffusers'] = peer(config, *rest)
  assert len(set(counts.values())) == 1, counts
  times = common.interleave(calls, args.repeats)
  record = {
    'benchmark': 'sampling',
    'sampler': args.sampler,
    'steps': steps,
    'preset': args.preset,
    'size_px': size_px,
    'batch_size': args.batch_size,
    'parameters': counts['ours'],
  }
  title = (
    f'{args.sampler}, {steps} steps, {counts["ours"] / 1e6:.2f} M parameters, '
    f'{size_px} px, batch {args.batch_size}'
  )
  common.tell(title, times, args.batch_size, record)


if __name__ == '__main__':
  main()

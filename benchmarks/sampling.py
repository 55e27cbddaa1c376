"""Times sampling: our compiled loop against diffusers' scheduler loop.

python -m benchmarks.sampling --preset=test [--samplers=ddim,ddpm] [--rounds=3]

DDIM takes 50 steps, DDPM 1000 unless --ddpm_steps says otherwise. Both sides
have UNets of equal layout and parameter count with random weights, and start
from noise of their own. Per step, the peer's Python loop calls the network and
then the scheduler; ours is one dispatch.
"""

import argparse

import diffusers
import jax
import torch

from benchmarks import common, torch_unet
from configs import pretrain
from micdiffrep_jax.diffusion import samplers
from micdiffrep_jax.methods.ddpm import denoiser

SCHEDULERS = {
  'ddim': diffusers.DDIMScheduler,
  'ddpm': diffusers.DDPMScheduler,
}


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--preset', default='test', choices=sorted(common.SIZES_PX)
  )
  parser.add_argument('--samplers', default='ddim,ddpm')
  parser.add_argument('--batch_size', type=int, default=8)
  parser.add_argument('--ddpm_steps', type=int, default=1000)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--out', default='', help='JSON file to add to')
  return parser.parse_args()


def their_sampler(net, name: str, steps: int, shape: tuple[int, ...]):
  scheduler = SCHEDULERS[name](timestep_spacing='trailing')
  scheduler.set_timesteps(steps)

  @torch.inference_mode()
  def run():
    x = torch.randn(shape, device=torch_unet.device())
    for t in scheduler.timesteps:
      x = scheduler.step(net(x, t.to(x.device)), t, x).prev_sample
    return x.cpu()

  return run


def main() -> None:
  args = arguments()
  torch_unet.use_our_cores()
  config = pretrain.get_config(args.preset)
  size_px, n = common.SIZES_PX[args.preset], args.batch_size
  d, apply, model = denoiser(config, size_px, 1)
  variables = jax.jit(model.init)(
    jax.random.key(0),
    jax.numpy.zeros((1, size_px, size_px, 1)),
    jax.numpy.zeros(1, jax.numpy.int32),
  )['params']
  net = torch_unet.PatchedUNet(config.model, size_px, 1)
  net = net.to(torch_unet.device()).eval()
  parameters = sum(x.size for x in jax.tree.leaves(variables))
  assert torch_unet.count(net) == parameters
  if torch.cuda.is_available():
    net = torch.compile(net)
  keys = samplers.image_keys(0, range(n))
  for name in args.samplers.split(','):
    steps = {'ddim': 50, 'ddpm': args.ddpm_steps}[name]
    run = samplers.make_sampler(
      d,
      lambda v, x, t: apply(v, x, t)[0],
      (size_px, size_px, 1),
      sampler=name,
      steps=steps,
    )
    sides = {
      'ours': lambda run=run: jax.device_get(run(variables, keys)),
      'diffusers': their_sampler(net, name, steps, (n, 1, size_px, size_px)),
    }
    seconds = common.interleave(sides, args.rounds, warmup=1)
    record = {
      'parameters': parameters,
      'preset': args.preset,
      'batch_size': n,
      'steps': steps,
      'unit': 'images',
      'sides': common.compare(seconds, n),
    }
    common.emit(f'sampling {name} {steps} {args.preset}', record, args.out)


if __name__ == '__main__':
  main()

"""The peer: our UNet built of diffusers' blocks, and its training step."""

import argparse
from collections.abc import Callable
import contextlib
import copy

from diffusers import DDPMScheduler, UNet2DModel
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import common


def device() -> str:
  return 'cuda' if torch.cuda.is_available() else 'cpu'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """What every benchmark of a step is asked."""
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--dtype', default='float32', help='or bfloat16')
  parser.add_argument(
    '--compile',
    action=argparse.BooleanOptionalAction,
    default=torch.cuda.is_available(),
    help='torch.compile the peer; by default on a GPU',
  )
  parser.add_argument('--rounds', type=int, default=10)
  parser.add_argument('--out', default='', help='JSON file to add to')


def use_our_cores() -> None:
  """As many threads as XLA has; on a GPU what XLA does too, without asking.

  It rounds float32 to TF32, and times cuDNN's algorithms to take the fastest.
  """
  torch.set_num_threads(common.cores())
  torch.set_float32_matmul_precision('high')
  torch.backends.cudnn.allow_tf32 = True
  torch.backends.cudnn.benchmark = True
  torch.manual_seed(0)


class PatchedUNet(torch.nn.Module):
  """UNet2DModel between pixel_unshuffle and pixel_shuffle, which it lacks."""

  def __init__(self, model, size_px: int, channels: int):
    super().__init__()
    self.patch = model.patch
    sizes = [
      size_px // model.patch // 2**i for i in range(len(model.multipliers))
    ]
    attend = [size in model.attention for size in sizes]
    widths = [model.channels * m for m in model.multipliers]
    c = channels * model.patch**2
    self.unet = UNet2DModel(
      sample_size=sizes[0],
      in_channels=c,
      out_channels=c,
      freq_shift=1,
      downsample_padding=0,
      down_block_types=[
        'AttnDownBlock2D' if a else 'DownBlock2D' for a in attend
      ],
      up_block_types=[
        'AttnUpBlock2D' if a else 'UpBlock2D' for a in attend[::-1]
      ],
      block_out_channels=widths,
      layers_per_block=model.blocks,
      attention_head_dim=None if model.heads == 1 else widths[0] // model.heads,
      norm_num_groups=model.groups,
      norm_eps=1e-6,
    ).to(memory_format=torch.channels_last)

  def forward(self, x, t):
    x = F.pixel_unshuffle(x, self.patch)
    x = x.to(memory_format=torch.channels_last)
    return F.pixel_shuffle(self.unet(x, t, return_dict=False)[0], self.patch)


def count(module: torch.nn.Module) -> int:
  return sum(p.numel() for p in module.parameters())


def make_step(config, net: PatchedUNet, compiled: bool, dtype: str) -> Callable:
  """step(images (b, h, w, c) uint8) -> loss, with what our step does too.

  Flips, noise, forward, backward, clipped gradients, Adam, EMA. The fused and
  foreach forms are PyTorch's fastest.
  """
  params = list(net.parameters())
  adam = torch.optim.Adam(params, lr=config.optim.lr, fused=True)
  ema = [copy.deepcopy(p.detach()) for p in params]
  abar = DDPMScheduler().alphas_cumprod.to(device())
  forward = torch.compile(net) if compiled else net
  cast = (
    torch.autocast(device(), torch.bfloat16)
    if dtype == 'bfloat16'
    else contextlib.nullcontext()
  )

  def step(images: np.ndarray) -> float:
    x0 = torch.from_numpy(images).to(device()).permute(0, 3, 1, 2)
    x0 = x0.float() / 127.5 - 1
    n = (len(x0), 1, 1, 1)
    x0 = torch.where(torch.rand(n, device=x0.device) < 0.5, x0.flip(-1), x0)
    t = torch.randint(0, len(abar), n[:1], device=x0.device)
    a = abar[t].view(n)
    eps = torch.randn_like(x0)
    with cast:
      output = forward(a.sqrt() * x0 + (1 - a).sqrt() * eps, t)
    loss = F.mse_loss(output.float(), eps)
    adam.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, config.optim.clip_norm)
    adam.step()
    torch._foreach_lerp_(
      ema, [p.detach() for p in params], 1 - config.ema_decay
    )
    return loss.item()

  return step

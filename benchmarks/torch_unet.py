"""The peer: diffusers' UNet2DModel of the very form of models/unet.py."""

from diffusers import UNet2DModel
import torch


def make(model, size_px: int, channels: int) -> UNet2DModel:
  """Of a config's `model`; a patchified stem becomes its unfolded pixels."""
  side, folded = size_px // model.patch, channels * model.patch**2
  sizes = [side // 2**i for i in range(len(model.multipliers))]
  attend = [s in tuple(model.attention) for s in sizes]
  widths = [model.channels * m for m in model.multipliers]
  return UNet2DModel(
    sample_size=side,
    in_channels=folded,
    out_channels=folded,
    block_out_channels=widths,
    layers_per_block=model.blocks,
    down_block_types=[
      'AttnDownBlock2D' if a else 'DownBlock2D' for a in attend
    ],
    up_block_types=[
      'AttnUpBlock2D' if a else 'UpBlock2D' for a in reversed(attend)
    ],
    # One head; its width may not change between levels, so the least is taken.
    attention_head_dim=min(
      [w for w, a in zip(widths, attend) if a] or [widths[-1]]
    ),
    norm_num_groups=model.groups,
    norm_eps=1e-6,
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
  ).to(memory_format=torch.channels_last)


def parameters(net: torch.nn.Module) -> int:
  return sum(p.numel() for p in net.parameters())

"""The way down of the UNet in plain torch: the reference for its state dict.

configs/bundle.py with --config.exports="('torch',)" writes
exports/unet_encoder.safetensors and .json, and

  told = json.load(open('unet_encoder.json'))
  net = UNetEncoder(**told['network'])
  net.load_state_dict(safetensors.torch.load_file('unet_encoder.safetensors'))
  abar = told['alpha_bar']
  x_t = abar**0.5 * (x / 127.5 - 1) + (1 - abar) ** 0.5 * torch.randn_like(x)
  taps = net(x_t, torch.full((len(x),), told['timestep']))

gives the layers of pictures x (b, c, h, w) of 0 to 255. It needs torch alone.
"""

import math

import torch
from torch import nn
import torch.nn.functional as F


class ResBlock(nn.Module):
  """GroupNorm, SiLU, conv, timestep, GroupNorm, SiLU, conv, and a shortcut."""

  def __init__(self, before, width, groups, embedded):
    super().__init__()
    self.norm1 = nn.GroupNorm(groups, before, eps=1e-6)
    self.conv1 = nn.Conv2d(before, width, 3, padding=1)
    self.time = nn.Linear(embedded, width)
    self.norm2 = nn.GroupNorm(groups, width, eps=1e-6)
    self.conv2 = nn.Conv2d(width, width, 3, padding=1)
    if before != width:
      self.shortcut = nn.Linear(before, width)

  def forward(self, x, temb):
    h = self.conv1(F.silu(self.norm1(x)))
    h = h + self.time(F.silu(temb))[:, :, None, None]
    h = self.conv2(F.silu(self.norm2(h)))
    if hasattr(self, 'shortcut'):
      x = self.shortcut(x.movedim(1, -1)).movedim(-1, 1)
    return x + h


class Attention(nn.Module):
  """Self-attention over pixels, with a residual."""

  def __init__(self, width, heads, groups):
    super().__init__()
    self.heads = heads
    self.norm = nn.GroupNorm(groups, width, eps=1e-6)
    self.qkv = nn.Linear(width, 3 * width)
    self.out = nn.Linear(width, width)

  def forward(self, x):
    b, c, h, w = x.shape
    y = self.norm(x).flatten(2).transpose(1, 2)
    qkv = self.qkv(y).reshape(b, h * w, 3, self.heads, c // self.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    y = self.out(y.reshape(b, h * w, c))
    return x + y.transpose(1, 2).reshape(b, c, h, w)


class Stage(nn.Module):
  """A residual block and, where asked for, attention."""

  def __init__(self, before, width, attend, heads, groups, embedded):
    super().__init__()
    self.res = ResBlock(before, width, groups, embedded)
    if attend:
      self.attention = Attention(width, heads, groups)

  def forward(self, x, temb):
    x = self.res(x, temb)
    return self.attention(x) if hasattr(self, 'attention') else x


class UNetEncoder(nn.Module):
  """x_t (b, c, h, w), t (b,) -> {tap: (b, d, h', w')}, up to the tap `last`.

  The arguments are the fields of models/unet.py; image_channels: c; size_px: h.
  """

  def __init__(
    self,
    channels,
    multipliers,
    blocks,
    attention,
    heads,
    groups,
    patch,
    size_px,
    image_channels,
    last,
  ):
    super().__init__()
    self.channels, self.patch = channels, patch
    embedded = 4 * channels
    self.time1 = nn.Linear(channels, embedded)
    self.time2 = nn.Linear(embedded, embedded)
    self.stem = nn.Conv2d(image_channels * patch**2, channels, 3, padding=1)
    self.names, width, size = [], channels, size_px // patch

    def add(name, module):
      # Nothing after `last` is made: its tensors are not there.
      if last not in self.names:
        self.add_module(name, module)
        self.names.append(name)

    for level, multiplier in enumerate(multipliers):
      for i in range(blocks[level]):
        shape = width, channels * multiplier, size in attention
        add(f'down{level}_{i}', Stage(*shape, heads, groups, embedded))
        width = channels * multiplier
      if level < len(multipliers) - 1:
        add(f'down{level}_pool', nn.Conv2d(width, width, 3, stride=2))
        size //= 2
    for name, attend in (('mid0', True), ('mid', False)):
      add(name, Stage(width, width, attend, heads, groups, embedded))

  def forward(self, x, t):
    half = self.channels // 2
    at = torch.arange(half, device=x.device)
    angles = t[:, None] * torch.exp(-math.log(10000.0) / (half - 1) * at)[None]
    temb = torch.cat([angles.sin(), angles.cos()], 1)
    temb = self.time2(F.silu(self.time1(temb)))
    h = self.stem(F.pixel_unshuffle(x, self.patch))
    taps = {}
    for name in self.names:
      part = getattr(self, name)
      if name.endswith('pool'):
        h = part(F.pad(h, (0, 1, 0, 1)))
      else:
        h = part(h, temb)
        if name != 'mid0':
          taps[name] = h
    return taps

"""A small module of PyTorch whose files are read."""

import torch


class Tower(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.conv = torch.nn.Conv2d(3, 4, 2, bias=False)
    self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4), Named()])
    self.free = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    self.register_buffer('count', torch.tensor(7))

  def forward(self, x):
    return self.blocks[1](self.blocks[0](self.conv(x).mean((2, 3))))


class Named(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.norm = torch.nn.LayerNorm(4)

  def forward(self, x):
    return self.norm(x)

"""A ResNet of CLIP's form in PyTorch, under OpenAI's names, and wrong ones.

`wrong` names one detail that is done in another plausible way; '' is right.
"""

import torch
from torch import nn
from torch.nn import functional as F


def conv(inputs, outputs, kernel, stride=1):
  return nn.Conv2d(
    inputs, outputs, kernel, stride, padding=kernel // 2, bias=False
  )


class Block(nn.Module):
  def __init__(self, inputs, width, stride, wrong):
    super().__init__()
    self.stride, self.wrong = stride, wrong
    self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
    self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
    self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
    self.downsample = nn.Identity()
    if stride > 1 or inputs != 4 * width:
      self.downsample = nn.Sequential()
      self.downsample.add_module('-1', nn.AvgPool2d(stride))
      self.downsample.add_module('0', conv(inputs, 4 * width, 1))
      self.downsample.add_module('1', nn.BatchNorm2d(4 * width))

  def forward(self, x):
    skip = self.downsample(x)
    if self.wrong == 'strided_skip' and self.stride > 1:
      skip = self.downsample[2](
        self.downsample[1](x)[:, :, :: self.stride, :: self.stride]
      )
    y = F.relu(self.bn1(self.conv1(x)))
    if self.wrong == 'pool_before_conv':
      y = F.relu(self.bn2(self.conv2(F.avg_pool2d(y, self.stride))))
    else:
      y = F.avg_pool2d(F.relu(self.bn2(self.conv2(y))), self.stride)
    return F.relu(skip + self.bn3(self.conv3(y)))


class AttentionPool(nn.Module):
  def __init__(self, pixels, d, heads, out, wrong):
    super().__init__()
    self.heads, self.wrong = heads, wrong
    self.positional_embedding = nn.Parameter(torch.zeros(pixels + 1, d))
    self.q_proj, self.k_proj = nn.Linear(d, d), nn.Linear(d, d)
    self.v_proj, self.c_proj = nn.Linear(d, d), nn.Linear(d, out)

  def forward(self, x):
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(1, keepdim=True), x], 1)
    if self.wrong != 'no_positions':
      x = x + self.positional_embedding
    if self.wrong == 'plain_mean':
      return self.c_proj(self.v_proj(x[:, 1:]).mean(1))

    def split(y):
      return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    y = F.scaled_dot_product_attention(
      split(self.q_proj(x[:, :1])), split(self.k_proj(x)), split(self.v_proj(x))
    )
    return self.c_proj(y.transpose(1, 2).flatten(2)[:, 0])


class Tower(nn.Module):
  def __init__(self, blocks, width, heads, out, size_px, wrong=''):
    super().__init__()
    self.wrong, half = wrong, width // 2
    self.conv1, self.bn1 = conv(3, half, 3, 2), nn.BatchNorm2d(half)
    self.conv2, self.bn2 = conv(half, half, 3), nn.BatchNorm2d(half)
    self.conv3, self.bn3 = conv(half, width, 3), nn.BatchNorm2d(width)
    inputs = width
    for i, count in enumerate(blocks):
      layer = nn.Sequential()
      for j in range(count):
        stride = 2 if i and not j else 1
        layer.append(Block(inputs, width * 2**i, stride, wrong))
        inputs = 4 * width * 2**i
      self.add_module(f'layer{i + 1}', layer)
    pixels = (size_px // 32) ** 2
    self.attnpool = AttentionPool(pixels, inputs, heads, out, wrong)

  def stages(self, x):
    for i in (1, 2, 3):
      norm, layer = getattr(self, f'bn{i}'), getattr(self, f'conv{i}')
      x = F.relu(norm(layer(x)))
    pool = F.max_pool2d if self.wrong == 'stem_max_pool' else F.avg_pool2d
    found = [pool(x, 2)]
    for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
      found.append(layer(found[-1]))
    return found[1:]

  def forward(self, x):
    return self.attnpool(self.stages(x)[-1])


class Clip(nn.Module):
  """The tower under its prefix, beside something of the text tower."""

  def __init__(self, visual):
    super().__init__()
    self.visual = visual
    self.logit_scale = nn.Parameter(torch.tensor(1.0))

  def forward(self, x):
    return self.logit_scale * self.visual(x)


def shake(model):
  """Weights and statistics away from 0 and 1, or places would not matter."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, x in model.state_dict().items():
      if name.endswith('num_batches_tracked'):
        continue
      noise = torch.randn(x.shape, generator=generator)
      x.add_((0.1 * noise).exp() - 1 if name.endswith('var') else 0.1 * noise)
      if name.endswith('positional_embedding'):
        x.add_(noise)
  return model.eval()

"""EfficientNet-Lite in PyTorch, functionally, straight from a state_dict."""

import torch
from torch.nn import functional as F


def same(x, kernel, stride):
  """TensorFlow's SAME padding: the odd pixel goes right and below."""
  pads = []
  for size in (x.shape[3], x.shape[2]):
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    pads += [total // 2, total - total // 2]
  return F.pad(x, pads)


def forward(state, stages, x):
  """x (b, 3, h, w) -> features (b, d, h', w') of the head."""

  def norm(x, name):
    return F.batch_norm(
      x,
      state[f'{name}.running_mean'],
      state[f'{name}.running_var'],
      state[f'{name}.weight'],
      state[f'{name}.bias'],
      eps=1e-3,
    )

  x = F.conv2d(same(x, 3, 2), state['_conv_stem.weight'], stride=2)
  x = F.relu6(norm(x, '_bn0'))
  i = 0
  for kernel, stride, expand, _, repeats in stages:
    for repeat in range(repeats):
      name, s, h = f'_blocks.{i}', stride if repeat == 0 else 1, x
      if expand != 1:
        h = F.conv2d(h, state[f'{name}._expand_conv.weight'])
        h = F.relu6(norm(h, f'{name}._bn0'))
      w = state[f'{name}._depthwise_conv.weight']
      h = F.conv2d(same(h, kernel, s), w, stride=s, groups=len(w))
      h = F.relu6(norm(h, f'{name}._bn1'))
      h = norm(
        F.conv2d(h, state[f'{name}._project_conv.weight']), f'{name}._bn2'
      )
      x = x + h if s == 1 and h.shape == x.shape else h
      i += 1
  x = F.conv2d(x, state['_conv_head.weight'])
  return F.relu6(norm(x, '_bn1'))


def random_state(stages, stem, head, seed=0):
  """A state_dict with statistics that are not trivial."""
  g = torch.Generator().manual_seed(seed)
  state = {}

  def conv(name, out, inner, k):
    w = torch.randn(out, inner, k, k, generator=g)
    state[f'{name}.weight'] = w * (inner * k * k) ** -0.5

  def norm(name, d):
    state[f'{name}.weight'] = 1 + 0.2 * torch.randn(d, generator=g)
    state[f'{name}.bias'] = 0.2 * torch.randn(d, generator=g)
    state[f'{name}.running_mean'] = 0.2 * torch.randn(d, generator=g)
    state[f'{name}.running_var'] = 0.5 + torch.rand(d, generator=g)

  conv('_conv_stem', stem, 3, 3)
  norm('_bn0', stem)
  i, width = 0, stem
  for kernel, _, expand, out, repeats in stages:
    for _ in range(repeats):
      name, inner = f'_blocks.{i}', width * expand
      if expand != 1:
        conv(f'{name}._expand_conv', inner, width, 1)
        norm(f'{name}._bn0', inner)
      conv(f'{name}._depthwise_conv', inner, 1, kernel)
      norm(f'{name}._bn1', inner)
      conv(f'{name}._project_conv', out, inner, 1)
      norm(f'{name}._bn2', out)
      i, width = i + 1, out
  conv('_conv_head', head, width, 1)
  norm('_bn1', head)
  return state

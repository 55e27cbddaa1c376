"""Cost of features per tap: the compiler drops what lies above the tap.

python -m benchmarks.tap_cost --preset=tiny [--batch_size=32] [--rounds=5]

Each layer's extraction is compiled by itself and timed against that of all
layers, which is what a network that returns every map would cost.
"""

import argparse

import jax
import numpy as np

from benchmarks import common
from configs import pretrain
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--preset', default='tiny', choices=sorted(common.SIZES_PX)
  )
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--layers', default='', help="'': each")
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--out', default='', help='JSON file to add to')
  return parser.parse_args()


def main() -> None:
  args = arguments()
  config = pretrain.get_config(args.preset)
  size_px, n = common.SIZES_PX[args.preset], args.batch_size
  method = encoders.make_method(config, size_px, 1)
  info = encoders.EncoderInfo(size_px, 1, path='', step=0)
  encoder = encoders.random_encoder(
    encoders.Encoder(method, None, config, info)
  )
  shape = (n, size_px, size_px, 1)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  inputs = jax.device_put(
    (images, features.image_seeds(images), jax.random.key(0), np.int32(20))
  )
  each = tuple(args.layers.split(',')) if args.layers else method.layers
  sides, flops = {}, {}
  for name in ('all', *each):
    layers = method.layers if name == 'all' else (name,)
    feature_fn = features.make_feature_fn(method, layers, 1)
    compiled = feature_fn.lower(encoder.variables, *inputs).compile()
    flops[name] = compiled.cost_analysis()['flops'] / n
    sides[name] = lambda compiled=compiled: jax.device_get(
      compiled(encoder.variables, *inputs)
    )
  seconds = common.interleave(sides, args.rounds)
  found = common.compare(seconds, n, 'all')
  for name in each:  # 'all' is no peer: its time is what a tap is a share of
    found[name]['share_of_all'] = found[name].pop('ours_is_times_faster')
    del found[name]['quartiles']
    print(f'{name}: {found[name]["share_of_all"]:.2f} of the time of all')
  record = {
    'preset': args.preset,
    'batch_size': n,
    'unit': 'images',
    'flops_per_image': flops,
    'sides': found,
  }
  common.emit(f'tap_cost {args.preset}', record, args.out)


if __name__ == '__main__':
  main()

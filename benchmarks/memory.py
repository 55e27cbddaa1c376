"""Memory and work of a compiled step: dtype, remat, accumulation.

python -m benchmarks.memory --preset=paper [--batch_size=32]

Nothing is run: the numbers are the compiler's own, for this backend. XLA plans
buffers otherwise on a GPU, so those of a CPU are a guide there, not a promise.
`flops` of a loop are those of one pass through its body, so an accumulated
step's are multiplied by its parts.
"""

import argparse
import json

import jax
import numpy as np

from benchmarks import common
from configs import pretrain
from micdiffrep_jax import features, sharding
from micdiffrep_jax.training.train import compile_program

VARIANTS = {
  f'{dtype}{how}': (dtype, remat, parts)
  for dtype in ('float32', 'bfloat16')
  for how, remat, parts in (
    ('', '', 1),
    (' remat norms', 'norms', 1),
    (' remat stages', 'stages', 1),
    (' accumulate 4', '', 4),
  )
}


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--preset', default='paper', choices=sorted(common.SIZES_PX)
  )
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--variants', default=','.join(VARIANTS))
  parser.add_argument('--out', default='', help='JSON file to add to')
  return parser.parse_args()


def measure(args: argparse.Namespace, variant: str) -> dict[str, float]:
  config = pretrain.get_config(args.preset)
  config.batch_size = args.batch_size
  config.model.dtype, config.model.remat, config.accumulate = VARIANTS[variant]
  size_px = common.SIZES_PX[args.preset]
  mesh = sharding.make_mesh()
  method = features.make_method(config, size_px, 1)
  program = compile_program(method, config, 1000, mesh)
  images = jax.ShapeDtypeStruct(
    (args.batch_size, size_px, size_px, 1), np.uint8
  )
  key = jax.eval_shape(lambda: jax.random.key(0))
  compiled = program.step.lower(
    program.abstract, {'image': images}, key
  ).compile()
  memory = compiled.memory_analysis()
  return {
    'state_mb': memory.argument_size_in_bytes / 2**20,
    'temporary_mb': memory.temp_size_in_bytes / 2**20,
    'flops_per_image': compiled.cost_analysis()['flops']
    * config.accumulate
    / args.batch_size,
  }


def main() -> None:
  args = arguments()
  for variant in args.variants.split(','):
    found = measure(args, variant)
    print(variant, json.dumps(common.short(found)), flush=True)
    name = f'memory {args.preset} {args.batch_size} {variant}'
    common.emit(name, found, args.out)


if __name__ == '__main__':
  main()

"""Memory and work of a compiled step: dtype, remat, accumulation.

python -m benchmarks.memory --preset=paper [--batch_size=32]

Nothing is run. kept_mb is what the forward pass leaves for the backward pass,
as traced, the same on any machine; what a stage computes again comes on top,
and a compiler that fuses keeps less of what is not computed again. The other
numbers are the compiler's own, for this backend; XLA:CPU plans no less memory
where less is kept, so there they are no guide to a GPU. --traced leaves them
out.
`flops` of a loop are those of one pass through its body, so an accumulated
step's are multiplied by its parts.
"""

import argparse
import json

import jax
import numpy as np

from benchmarks import common
from configs import pretrain
from micdiffrep_jax.encoders import encoder
from micdiffrep_jax.pretrain.state import compile_program
from micdiffrep_jax.run import devices

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
  parser.add_argument('--traced', action='store_true', help='compile nothing')
  parser.add_argument('--out', default='', help='JSON file to add to')
  return parser.parse_args()


def kept_bytes(method, images: jax.ShapeDtypeStruct) -> int:
  """Bytes of all arrays, weights among them, that the backward pass needs."""

  def backward(params, extra, pixels, key):
    def loss(params):
      return method.loss(params, extra, {'image': pixels}, key)[0]

    return jax.vjp(loss, params)[1]

  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(method.init, key)
  kept = jax.tree.leaves(jax.eval_shape(backward, *state, images, key))
  return sum(
    x.size * x.dtype.itemsize
    for x in kept
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  )


def measure(args: argparse.Namespace, variant: str) -> dict[str, float]:
  config = pretrain.get_config(args.preset)
  config.batch_size = args.batch_size
  config.model.dtype, config.model.remat, config.accumulate = VARIANTS[variant]
  size_px = common.SIZES_PX[args.preset]
  mesh = devices.make_mesh()
  method = encoder.make_method(config, size_px, 1)
  images = jax.ShapeDtypeStruct(
    (args.batch_size, size_px, size_px, 1), np.uint8
  )
  part = jax.ShapeDtypeStruct(
    (args.batch_size // config.accumulate, *images.shape[1:]), np.uint8
  )
  kept = {'kept_mb': kept_bytes(method, part) / 2**20}
  if args.traced:
    return kept
  program = compile_program(method, config, 1000, mesh)
  key = jax.eval_shape(lambda: jax.random.key(0))
  compiled = program.step.lower(
    program.abstract, {'image': images}, key
  ).compile()
  memory = compiled.memory_analysis()
  return {
    **kept,
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

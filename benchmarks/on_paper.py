"""What 10 million images take on 256 chips, worked out from one update.

python -m benchmarks.on_paper [--out=FILE]

The paper preset, 112 px, bfloat16, 8 images on each chip, is compiled for one
device and not run; the rest is arithmetic.
"""

import argparse

import jax
import numpy as np

from benchmarks import common
from configs import pretrain
from micdiffrep_jax.encoders import encoder
from micdiffrep_jax.pretrain.state import compile_program
from micdiffrep_jax.run import devices


def lower(preset: str, size_px: int, batch: int, dtype: str = 'float32'):
  """The compiled update and its program; nothing is run."""
  config = pretrain.get_config(preset)
  config.batch_size, config.model.dtype = batch, dtype
  if size_px != common.SIZES_PX[preset]:
    side = size_px // config.model.patch
    config.model.attention = (side // 2, side // 4)
  mesh = devices.make_mesh()
  program = compile_program(
    encoder.make_method(config, size_px, 1), config, 1000, mesh
  )
  images = devices.place(
    {'image': np.zeros((batch, size_px, size_px, 1), np.uint8)}, mesh
  )
  key = devices.replicate(jax.random.key(0), mesh)
  compiled = program.step.lower(program.abstract, images, key).compile()
  return program, compiled, images, key


def on_paper(
  images: int = 10_000_000, chips: int = 256, batch: int = 8
) -> dict:
  """What a pass over `images` takes on `chips`, `batch` images on each."""
  compiled = lower('paper', 112, batch, 'bfloat16')[1]
  config = pretrain.get_config('paper')
  method = encoder.make_method(config, 112, 1)
  shapes = jax.eval_shape(method.init, jax.random.key(0))[0]
  parameters = sum(x.size for x in jax.tree.leaves(shapes))
  flops = compiled.cost_analysis()['flops'] / batch
  memory = compiled.memory_analysis()
  return {
    'images': images,
    'chips': chips,
    'batch_of_a_chip': batch,
    'parameters': parameters,
    'pixels_gb': images * 112 * 112 / 1e9,
    'pixels_gb_of_a_host_of_4_chips': images * 112 * 112 / 1e9 / (chips / 4),
    'order_mb_of_a_host': images * 8 / 1e6,
    'tflop_per_image': flops / 1e12,
    'steps_of_a_pass': images // (batch * chips),
    'exaflop_of_a_pass': images * flops / 1e18,
    'all_reduce_mb_of_a_step': 4 * parameters / 1e6,
    'state_mb_of_a_chip': memory.argument_size_in_bytes / 2**20,
    'temporary_mb_of_a_chip': memory.temp_size_in_bytes / 2**20,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', default='', help='JSON file to add to')
  common.emit('on_paper', on_paper(), parser.parse_args().out)


if __name__ == '__main__':
  main()

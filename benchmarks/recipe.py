"""Cost of a step with each part of the recipe, against a step with none.

python -m benchmarks.recipe --preset=tiny [--only=crop_px,levels_px] \
  [--batch_size=32] [--rounds=7] [--steps=4] [--traced]

Sides alternate; a round is `steps` updates of each, and the share the median of
the rounds' ratios. FLOPs are those of the step as traced; --traced compiles and
runs nothing.
"""

import argparse

import jax
import numpy as np

from benchmarks import common
from configs import pretrain
from micdiffrep_jax.encoders import encoder
from micdiffrep_jax.pretrain.state import compile_program
from micdiffrep_jax.run import devices


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--preset', default='tiny', choices=sorted(common.SIZES_PX)
  )
  parser.add_argument('--only', default='', help="parts; '' for each")
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--steps', type=int, default=4, help='in a round')
  parser.add_argument('--traced', action='store_true', help='FLOPs alone')
  parser.add_argument('--out', default='', help='JSON file to add to')
  return parser.parse_args()


def parts(config, size_px: int) -> dict[str, dict]:
  """Fields of config.recipe by the name of a side."""
  blocks, levels = config.model.blocks, len(config.model.multipliers)
  px = size_px // 8
  return {
    'tell_augment': {'tell_augment': True},
    'blocks + 1 at last level': {
      'blocks': (blocks,) * (levels - 1) + (blocks + 1,)
    },
    'density': {'density': 'lognormal'},
    'blank_px': {'blank_px': px},
    'levels_px': {'levels_px': px},
    'self_condition own': {'self_condition': 'own'},
    'self_condition first': {'self_condition': 'first'},
    'crop_px': {'crop_px': size_px // 2},
  }


def lowered(preset: str, batch_size: int, fields: dict):
  """A step as traced, and what it takes."""
  config, size_px = pretrain.get_config(preset), common.SIZES_PX[preset]
  config.batch_size = batch_size
  config.recipe.update(fields)
  mesh = devices.make_mesh()
  method = encoder.make_method(config, size_px, 1)
  program = compile_program(method, config, 1000, mesh)
  key = devices.replicate(jax.random.key(0), mesh)
  images = np.random.default_rng(0).integers(
    0, 256, (batch_size, size_px, size_px, 1), np.uint8
  )
  batch = devices.place({'image': images}, mesh)
  return program, program.step.lower(program.abstract, batch, key), batch, key


def make_run(program, traced, batch, key, steps: int):
  """run(): `steps` updates, and waits for the last."""
  compiled, state = traced.compile(), None

  def run():
    nonlocal state
    if state is None:
      # As init gives it, but nothing is compiled for it.
      state = jax.tree.map(
        lambda x: jax.device_put(np.full(x.shape, 0.01, x.dtype), x.sharding),
        program.abstract,
      )
    for _ in range(steps):
      state, metrics = compiled(state, batch, key)
    jax.block_until_ready(metrics)

  return run


def main() -> None:
  args = arguments()
  sides = parts(pretrain.get_config(args.preset), common.SIZES_PX[args.preset])
  wanted = args.only.split(',') if args.only else list(sides)
  runs, flops = {}, {}
  for name in ('base', *wanted):
    found = lowered(args.preset, args.batch_size, sides.get(name, {}))
    flops[name] = found[1].cost_analysis()['flops']
    if not args.traced:
      runs[name] = make_run(*found, args.steps)
  record = {
    'preset': args.preset,
    'batch_size': args.batch_size,
    'flops_of_base': flops['base'],
    'share_of_flops': {k: v / flops['base'] for k, v in flops.items()},
  }
  if runs:
    seconds = common.interleave(runs, args.rounds)
    found = common.compare(seconds, args.batch_size * args.steps, 'base')
    for name in wanted:  # 'base' is no peer: its time is what a part adds to
      found[name]['share_of_base'] = found[name].pop('ours_is_times_faster')
    record |= {'sides': found, 'unit': 'images'}
  print(f'{"part":<26}{"time":>8}{"quartiles":>16}{"FLOPs":>8}')
  for name in wanted:
    side = record.get('sides', {}).get(name)
    low, high = side['quartiles'] if side else (np.nan, np.nan)
    time = side['share_of_base'] if side else np.nan
    share = record['share_of_flops'][name]
    print(f'{name:<26}{time:>8.2f}{low:>9.2f} to{high:>5.2f}{share:>8.2f}')
  common.emit(f'recipe {args.preset}', record, args.out)


if __name__ == '__main__':
  main()

"""Cost of a step with each part of the recipe, against a step with none.

python -m benchmarks.recipe --preset=tiny [--only=crop_px,levels_px] \
  [--batch_size=32] [--rounds=7] [--steps=4] [--traced]

Parts are those of config.recipe, the optimizer, dropout, and the methods that
add to the denoising loss. Sides alternate; a round is `steps` updates of each,
and the share the median of the rounds' ratios. FLOPs are those of the step as
traced; --traced compiles and runs nothing.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from benchmarks import common, functions
from configs import pretrain
from micdiffrep_jax.run import devices

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
  'ddpm_contrast': ('ddpm_contrast', {}),
  'ddpm_contrast share=0.75 denoise_compared=False': (
    'ddpm_contrast',
    {'contrast.share': 0.75, 'contrast.denoise_compared': False},
  ),
  'contrast_alone': ('contrast_alone', {}),
  'ddpm_aligned': ('ddpm_aligned', {}),
  'ddpm_aligned denoise_every=4': (
    'ddpm_aligned',
    {'align.denoise_every': 4},
  ),
  'aligned_alone': ('aligned_alone', {}),
}
_FEATURES = 112  # of EfficientNet-Lite0's block10


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


def parts(config: ConfigDict, size_px: int) -> dict[str, dict[str, Any]]:
  """Fields of the config by the name of a side."""
  blocks, levels = config.model.blocks, len(config.model.multipliers)
  px = size_px // 8
  return {
    'tell_augment': {'recipe.tell_augment': True},
    'blocks + 1 at last level': {
      'recipe.blocks': (blocks,) * (levels - 1) + (blocks + 1,)
    },
    'density': {'recipe.density': 'lognormal'},
    'blank_px': {'recipe.blank_px': px},
    'levels_px': {'recipe.levels_px': px},
    'self_condition own': {'recipe.self_condition': 'own'},
    'self_condition first': {'recipe.self_condition': 'first'},
    'crop_px': {'recipe.crop_px': size_px // 2},
    'dropout': {'model.dropout': 0.1},
    'muon': {'optim.name': 'muon'},
  }


def config_of(
  name: str, preset: str, fields: dict[str, Any], batch_size: int
) -> ConfigDict:
  """Of a side: the DDPM with some fields changed, or another method."""
  method, more = METHODS.get(name, ('ddpm', fields))
  config = functions.config_of(method, preset)
  config.update_from_flattened_dict({**more, 'batch_size': batch_size})
  if 'teacher' in config:
    cells = config.teacher.grid
    config.teacher.shape = (cells, cells, _FEATURES)
  return config


def filled(shapes: Any) -> Any:
  """Arrays of these shapes: small weights, and a key."""

  def array(x: jax.ShapeDtypeStruct) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.device_put(jax.random.key(0), x.sharding)
    value = 0.01 if jnp.issubdtype(x.dtype, jnp.floating) else 0
    return jax.device_put(np.full(x.shape, value, x.dtype), x.sharding)

  return jax.tree.map(array, shapes)


def make_run(
  traced: jax.stages.Lowered, shapes: tuple, steps: int
) -> Callable[[], None]:
  """run(): `steps` updates, and waits for the last."""
  compiled, (state, *rest) = traced.compile(), filled(shapes)

  def run() -> None:
    nonlocal state
    for _ in range(steps):
      state, metrics = compiled(state, *rest)
    jax.block_until_ready(metrics)

  return run


def main() -> None:
  args = arguments()
  size_px = common.SIZES_PX[args.preset]
  sides = parts(pretrain.get_config(args.preset), size_px)
  wanted = args.only.split(',') if args.only else [*sides, *METHODS]
  runs, flops = {}, {}
  for name in ('base', *wanted):
    config = config_of(name, args.preset, sides.get(name, {}), args.batch_size)
    step, shapes = functions.step(config, size_px, devices.make_mesh())
    traced = step.lower(*shapes)
    flops[name] = traced.cost_analysis()['flops']
    if not args.traced:
      runs[name] = make_run(traced, shapes, args.steps)
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

"""Compiles for a GPU or a TPU that is not there, and says what will happen.

python -m benchmarks.ahead --target=cuda:rtx4070 \
  [--preset=paper] [--dtype=float32] [--batch=32] [--fsdp] [--method=ddpm] \
  [--function=step] [--option=xla_gpu_force_conv_nhwc] [--out=FILE]

--target: cuda:rtx4070, cuda:a100:8, cuda:h100; tpu:v5e:2x2, tpu:v5e:16x16,
tpu:v5e:1, and v4, v5p, v6e. For GPUs `pip install jax-cuda12-plugin
jax-cuda12-pjrt`, for TPUs `pip install 'jax[tpu]'`, both of the version of jax
that is installed; neither needs a driver. --function: step, features, sampler
or head (--batch then is theirs). --text=FILE keeps the program.

Nothing is run, so nothing is timed: the plan of memory, the traffic and the
collectives are read from the optimised program. The least time is the longer
of traffic over the chip's bandwidth and products over its peak, both as its
maker states them; a chip reaches neither. cuDNN chooses its algorithms on the
card, so their scratch memory is not in the plan of a GPU.
"""

import argparse
import json
import time
from typing import Any

import jax

from benchmarks import common, flops, functions, program, targets


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--target', required=True, help='cuda:rtx4070, tpu:v5e:2x2'
  )
  parser.add_argument(
    '--preset', default='test', choices=sorted(common.SIZES_PX)
  )
  parser.add_argument('--method', default='ddpm', help='or mae, moco, byol ...')
  parser.add_argument(
    '--function', default='step', choices=list(functions.FUNCTIONS)
  )
  parser.add_argument('--dtype', default='float32', help='or bfloat16')
  parser.add_argument('--batch', type=int, default=32, help='of all devices')
  parser.add_argument('--fsdp', action='store_true', help='split the state')
  parser.add_argument(
    '--option', action='append', default=[], help='of XLA, to set to true'
  )
  parser.add_argument('--text', default='', help='file for the program')
  parser.add_argument('--out', default='', help='JSON file to add to')
  return parser.parse_args()


def compile_for(args: argparse.Namespace, target: targets.Target) -> Any:
  """(compiled program, FLOPs of all devices, seconds by stage)."""
  config = functions.config_of(args.method, args.preset)
  config.batch_size, config.fsdp = args.batch, args.fsdp
  config.model.dtype = args.dtype
  started = time.perf_counter()
  fn, shapes = functions.FUNCTIONS[args.function](
    config, common.SIZES_PX[args.preset], target.mesh
  )
  traced = fn.trace(*shapes)
  lowered = traced.lower()
  lowered_at = time.perf_counter()
  options = {**target.options, **dict.fromkeys(args.option, True)}
  compiled = lowered.compile(compiler_options=options)
  seconds = {
    'lower_s': lowered_at - started,
    'compile_s': time.perf_counter() - lowered_at,
  }
  return compiled, flops.of(traced.jaxpr), seconds


def measure(args: argparse.Namespace, target: targets.Target) -> dict[str, Any]:
  """What the program of one device needs, in bytes, and its least time."""
  chip, count = target.chip, target.mesh.size
  compiled, products, seconds = compile_for(args, target)
  text = compiled.as_text()
  if args.text:
    with open(args.text, 'w') as f:
      f.write(text)
  memory = compiled.memory_analysis()
  done = program.operations(text)
  moved = program.traffic(done)
  state = memory.argument_size_in_bytes
  # What is donated is not there twice.
  result = memory.output_size_in_bytes - memory.alias_size_in_bytes
  peak = state + result + memory.temp_size_in_bytes
  return {
    'chip': chip.name,
    'chips': count,
    'arguments': state,
    'temporary': memory.temp_size_in_bytes,
    'peak': peak,
    'share_of_memory': peak / chip.memory,
    'traffic': moved,
    'flops': products / count,
    'least_ms_of_traffic': 1e3 * moved / chip.bandwidth,
    'least_ms_of_products': 1e3 * products / count / chip.peak[args.dtype],
    'kernels': sum(x.times for x in done),
    'kinds': program.kinds(done),
    'collectives': program.collectives(text),
    'convolutions': program.convolutions(text),
    **seconds,
  }


def table(args: argparse.Namespace, found: dict[str, Any]) -> str:
  """A markdown table of one program."""
  mib, gb = 2**20, 1e9

  def listed(kinds: dict[str, tuple[int, int]], most: int = 8) -> str:
    told = [
      f'{count} {kind} ({moved / 1e6:.3g} MB)'
      for kind, (count, moved) in list(kinds.items())[:most]
    ]
    return ', '.join(told) or 'none'

  layouts = found['convolutions'].items()
  rows = {
    'target': f'{found["chips"]} x {found["chip"]}',
    'program': f'{args.method} {args.function} {args.preset} {args.dtype}, '
    f'batch {args.batch}' + ', fsdp' * args.fsdp,
    'memory of a device, MiB': f'arguments {found["arguments"] / mib:.0f}, '
    f'temporary {found["temporary"] / mib:.0f}, peak '
    f'{found["peak"] / mib:.0f} ({found["share_of_memory"]:.0%})',
    'traffic': f'{found["traffic"] / gb:.3g} GB, at least '
    f'{found["least_ms_of_traffic"]:.3g} ms',
    'products': f'{found["flops"] / 1e12:.3g} TFLOP, at least '
    f'{found["least_ms_of_products"]:.3g} ms',
    'collectives': listed(found['collectives']),
    'operations': f'{found["kernels"]}: {listed(found["kinds"])}',
    'convolutions': ', '.join(f'{n} {k}' for k, n in layouts) or 'none',
    'compiled in': f'{found["lower_s"]:.0f} s to lower, '
    f'{found["compile_s"]:.0f} s to compile',
  }
  lines = [f'| {name} | {value} |' for name, value in rows.items()]
  return '\n'.join([lines[0], '|---|---|', *lines[1:]])


def main() -> None:
  args = arguments()
  jax.config.update('jax_platforms', 'cpu')  # the chip is not there
  try:
    target = targets.find(args.target)
  except ValueError as e:
    raise SystemExit(f'ahead: {e}') from e
  found = measure(args, target)
  print(table(args, found))
  given = (args.target, args.method, args.function, args.preset, args.dtype)
  flags = ['fsdp'] * args.fsdp + args.option
  name = ' '.join(['ahead', *given, str(args.batch), *flags])
  if args.out:
    common.add(name, {**found, 'command': common.command()}, args.out)
  else:
    print(json.dumps({'benchmark': name, **common.short(found)}))


if __name__ == '__main__':
  main()

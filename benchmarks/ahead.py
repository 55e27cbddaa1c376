"""Compiles for a GPU or a TPU that is not there, and says what will happen.

python -m benchmarks.ahead --target=cuda:rtx4070 \
  [--preset=paper] [--dtype=float32] [--batch=32] [--fsdp] [--method=ddpm] \
  [--recipe] [--function=step] [--option=xla_gpu_force_conv_nhwc] [--code] \
  [--effort=0] [--out=FILE]

--target: cuda:rtx4070, cuda:a100:8, cuda:h100; tpu:v5e:2x2, tpu:v5e:16x16,
tpu:v5e:1, and v4, v5p, v6e. For GPUs `pip install jax-cuda12-plugin
jax-cuda12-pjrt`, for TPUs `pip install 'jax[tpu]'`, both of the version of jax
that is installed; neither needs a driver. --function: step, features, sampler
or head (--batch then is theirs). --text=FILE keeps the program.

The compiler is stopped when program and plan of memory are written, before it
makes code of them, which takes most of its time; --code waits for that too, and
--effort=-1 asks XLA for a quicker, less optimised program.
Nothing is run, so nothing is timed: the plan of memory, the traffic and the
collectives are read from the optimised program. The least time is the longer
of traffic over the chip's bandwidth and products over its peak, both as its
maker states them; a chip reaches neither. cuDNN chooses its algorithms on the
card, so their scratch memory is not in the plan of a GPU, nor are the few MB of
a TPU's code and what it needs to run.
"""

import argparse
import glob
import json
import multiprocessing
import resource
import tempfile
import time
from typing import Any, NamedTuple

import jax

from benchmarks import common, flops, functions, program, targets
from configs import reproduce

# What launch/gpu.sh lets JAX have of a card's memory.
USABLE = 0.92
# XLA writes this last, program and plan before it, and then makes the code.
_LAST = '*after_optimizations-memory-usage-report.txt'


class Plan(NamedTuple):
  """What the compiler wrote, FLOPs of all devices, and seconds by stage."""

  program: str
  buffers: str
  products: float
  seconds: dict[str, float]


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
  parser.add_argument(
    '--recipe', action='store_true', help='as configs/reproduce.py trains it'
  )
  parser.add_argument('--fsdp', action='store_true', help='split the state')
  parser.add_argument(
    '--option', action='append', default=[], help='of XLA, to set to true'
  )
  parser.add_argument('--code', action='store_true', help='compile to the end')
  parser.add_argument(
    '--effort', type=float, default=0.0, help='of XLA for speed: -1 to 1'
  )
  parser.add_argument('--text', default='', help='file for the program')
  parser.add_argument('--out', default='', help='JSON file to add to')
  return parser.parse_args()


def compile_into(args: argparse.Namespace, folder: str, pipe: Any) -> None:
  """Compiles, writing into a folder; sends (FLOPs, seconds of lowering)."""
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_enable_compilation_cache', False)  # it writes nothing
  target = targets.find(args.target)
  config = functions.config_of(args.method, args.preset)
  config.batch_size, config.fsdp = args.batch, args.fsdp
  config.model.dtype = args.dtype
  if args.recipe:
    reproduce.use_recipe(config)
  started = time.perf_counter()
  fn, shapes = functions.FUNCTIONS[args.function](
    config, common.SIZES_PX[args.preset], target.mesh
  )
  traced = fn.trace(*shapes)
  lowered = traced.lower()
  pipe.send((flops.of(traced.jaxpr), time.perf_counter() - started))
  options = {**target.options, **dict.fromkeys(args.option, True)}
  options['exec_time_optimization_effort'] = args.effort
  lowered.compile(compiler_options={**options, 'xla_dump_to': folder})


def plan(args: argparse.Namespace) -> Plan:
  """Compiles in a process of its own, which is ended when the plan is there.

  Raises SystemExit where that process ends without one.
  """
  context = multiprocessing.get_context('spawn')
  ours, its = context.Pipe(duplex=False)
  with tempfile.TemporaryDirectory() as folder:
    worker = context.Process(target=compile_into, args=(args, folder, its))
    worker.start()
    its.close()
    try:
      products, lower_s = ours.recv()
      started = time.perf_counter()
      while worker.is_alive() and (
        args.code or not glob.glob(f'{folder}/{_LAST}')
      ):
        worker.join(0.5)
      compile_s = time.perf_counter() - started
    except EOFError:  # it died before it could send; its words stand above
      pass
    finally:
      worker.kill()
      worker.join()
    if (args.code and worker.exitcode) or not glob.glob(f'{folder}/{_LAST}'):
      raise SystemExit(f'ahead: {args.target} did not compile; see above.')
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = {
      'lower_s': lower_s,
      'compile_s': compile_s,
      'cpu_s': used.ru_utime + used.ru_stime,
    }
    texts = []
    for end in ('.txt', '-buffer-assignment.txt'):
      (name,) = glob.glob(f'{folder}/*after_optimizations{end}')
      with open(name) as f:
        texts.append(f.read())
  return Plan(*texts, products, seconds)


def measure(args: argparse.Namespace, target: targets.Target) -> dict[str, Any]:
  """What the program of one device needs, in bytes, and its least time."""
  chip, count = target.chip, target.mesh.size
  text, buffers, products, seconds = plan(args)
  if args.text:
    with open(args.text, 'w') as f:
      f.write(text)
  memory = program.memory(buffers)
  peak = sum(memory.values())
  done = program.operations(text)
  moved = program.traffic(done)
  return {
    'chip': chip.name,
    'chips': count,
    **memory,
    'peak': peak,
    'share_of_memory': peak / chip.memory,
    'room': USABLE * chip.memory - peak,
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
    f'room in {USABLE:.0%} of it, MiB': f'{found["room"] / mib:.0f}: '
    + ('fits' if found['room'] > 0 else 'does not fit'),
    'traffic': f'{found["traffic"] / gb:.3g} GB, at least '
    f'{found["least_ms_of_traffic"]:.3g} ms',
    'products': f'{found["flops"] / 1e12:.3g} TFLOP, at least '
    f'{found["least_ms_of_products"]:.3g} ms',
    'collectives': listed(found['collectives']),
    'operations': f'{found["kernels"]}: {listed(found["kinds"])}',
    'convolutions': ', '.join(f'{n} {k}' for k, n in layouts) or 'none',
    'compiled in': f'{found["lower_s"]:.0f} s to lower, '
    f'{found["compile_s"]:.0f} s to compile, CPU time {found["cpu_s"]:.0f} s',
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
  flags = ['recipe'] * args.recipe + ['fsdp'] * args.fsdp + args.option
  flags += [f'effort={args.effort:g}'] * bool(args.effort)
  name = ' '.join(['ahead', *given, str(args.batch), *flags])
  if args.out:
    common.add(name, {**found, 'command': common.command()}, args.out)
  else:
    print(json.dumps({'benchmark': name, **common.short(found)}))


if __name__ == '__main__':
  main()

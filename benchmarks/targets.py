"""Accelerators that programs are compiled for without having one.

The figures are the makers': memory, bandwidth, and peak FLOP/s of dense
products, of float32 (a GPU's TF32; a TPU multiplies bfloat16 then too) and of
bfloat16. Sources: NVIDIA's white papers on Ada, A100 and H100; Google's pages
on TPU v4, v5e, v5p and v6e.
"""

import importlib.util
import os
from typing import Any, NamedTuple

import numpy as np


class Chip(NamedTuple):
  """One device; memory in bytes, bandwidth in bytes/s, peaks in FLOP/s."""

  name: str
  memory: float
  bandwidth: float
  peak: dict[str, float]
  spec: str = ''  # of a GPU: what XLA asks about it


def _gpu(
  name: str,
  capability: tuple[int, int],
  cores: int,
  threads: int,
  shared: int,
  cache_mib: int,
  clock: float,
  fpus: int,
) -> str:
  """The text of XLA's GpuTargetConfigProto; shared: KiB of a multiprocessor."""
  return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {(shared - 1) * 1024}
  shared_memory_per_core: {shared * 1024}
  threads_per_core_limit: {threads}
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: %(bandwidth)d
  l2_cache_size: {cache_mib * 2**20}
  clock_rate_ghz: {clock}
  device_memory_size: %(memory)d
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
platform_name: "CUDA"
device_description_str: "{name}"
"""


def _peak(tera_float32: float, tera_bfloat16: float) -> dict[str, float]:
  return {'float32': tera_float32 * 1e12, 'bfloat16': tera_bfloat16 * 1e12}


GPUS = {
  'rtx4070': Chip(
    'NVIDIA GeForce RTX 4070',
    12 * 2**30,
    504e9,
    _peak(29.1, 58.3),
    _gpu('NVIDIA GeForce RTX 4070', (8, 9), 46, 1536, 100, 36, 2.475, 128),
  ),
  'a100': Chip(
    'NVIDIA A100-SXM4-80GB',
    80 * 2**30,
    2039e9,
    _peak(156, 312),
    _gpu('NVIDIA A100-SXM4-80GB', (8, 0), 108, 2048, 164, 40, 1.41, 64),
  ),
  'h100': Chip(
    'NVIDIA H100 80GB HBM3',
    80 * 2**30,
    3352e9,
    _peak(494.7, 989.4),
    _gpu('NVIDIA H100 80GB HBM3', (9, 0), 132, 2048, 228, 50, 1.98, 128),
  ),
}
TPUS = {
  'v4': Chip('TPU v4', 32e9, 1228e9, _peak(275, 275)),
  'v5e': Chip('TPU v5e', 16e9, 819e9, _peak(197, 197)),
  'v5p': Chip('TPU v5p', 95e9, 2765e9, _peak(459, 459)),
  'v6e': Chip('TPU v6e', 32e9, 1640e9, _peak(918, 918)),
}
# What the TPU's library asks its surroundings, which are not there.
_NO_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


class Target(NamedTuple):
  """A chip, how many of it, and options of the compiler."""

  chip: Chip
  mesh: Any
  options: dict[str, bool]


def missing(target: str) -> str:
  """The package that compiling for a target needs and that is not there."""
  kind = target.partition(':')[0]
  name = {'cuda': 'jax_cuda12_plugin', 'tpu': 'libtpu'}.get(kind, '')
  return '' if not name or importlib.util.find_spec(name) else name


def parse(target: str) -> tuple[str, str, int, str]:
  """'tpu:v5e:2x2' -> platform, chip, count and the size as given.

  So 'cuda:rtx4070', 'cuda:a100:8'. Raises ValueError that names what there is.
  """
  platform, _, rest = target.partition(':')
  name, _, size = rest.partition(':')
  known = {'cuda': GPUS, 'tpu': TPUS}.get(platform, {})
  try:
    if platform == 'cuda':
      count = int(size or 1)
    else:
      count = int(np.prod([int(x) for x in size.split('x')]))
  except ValueError:
    count = 0
  if name not in known or count < 1:
    raise ValueError(
      f'--target={target} is none of cuda:CARD, cuda:CARD:COUNT with CARD one '
      f'of {", ".join(GPUS)}; tpu:KIND:2x2 and larger with KIND one of '
      f'{", ".join(TPUS)}; tpu:KIND:1 for one chip of 2x2.'
    )
  return platform, name, count, size


def find(target: str) -> Target:
  """The devices of a target along the axis 'data', none of them there.

  Raises ValueError for an unknown target or where its compiler is missing.
  """
  import jax
  from jax.experimental import topologies

  platform, name, count, size = parse(target)
  package = missing(target)
  if package:
    raise ValueError(
      f'--target={target} needs {package}: pip install '
      + (
        f"'jax[tpu]=={jax.__version__}'"
        if platform == 'tpu'
        else f'jax-cuda12-plugin=={jax.__version__} '
        f'jax-cuda12-pjrt=={jax.__version__}'
      )
    )
  if platform == 'cuda':
    chip = GPUS[name]
    spec = chip.spec % {'bandwidth': chip.bandwidth, 'memory': chip.memory}
    topology = topologies.get_topology_desc(
      '', 'cuda', target_config=spec, topology=f'1x1x{count}'
    )
    # Tiles of Triton's are chosen by timing them on the card.
    options = {'xla_gpu_enable_triton_gemm': False}
  else:
    os.environ.update({k: os.environ.get(k, v) for k, v in _NO_TPU.items()})
    chip = TPUS[name]
    shape = '2x2' if count == 1 else size
    # Of v4 and v5p a chip has three neighbours: 2x2 is 2x2x1.
    if name in ('v4', 'v5p') and shape.count('x') == 1:
      shape += 'x1'
    topology = topologies.get_topology_desc(f'{name}:{shape}', 'tpu')
    options = {}
  devices = np.array(topology.devices[:count])
  return Target(chip, jax.sharding.Mesh(devices, ('data',)), options)

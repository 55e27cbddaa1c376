"""What is read from programs for devices that are not there."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spawn import ROOT

from benchmarks import common, flops, functions, program, targets

# As XLA 0.10.2 writes them: two GPUs, and a loop that runs five times.
TEXT = """HloModule jit_f, is_scheduled=true, num_partitions=2

%fused_maximum (param_0: f32[8,4]) -> f32[8,4] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %constant = f32[] constant(0)
  %broadcast = f32[8,4]{1,0} broadcast(%constant), dimensions={}
  ROOT %maximum = f32[8,4]{1,0} maximum(%param_0, %broadcast)
}

%body (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg = (s32[], f32[8,4]{1,0}) parameter(0)
  %one = s32[] get-tuple-element(%arg), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%arg), index=1
  %y = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%fused_maximum
  ROOT %tuple = (s32[], f32[8,4]{1,0}) tuple(%one, %y)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (p: f32[8,4], w: bf16[4,6]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0), metadata={op_name="p"}
  %w = bf16[4,6]{1,0} parameter(1)
  %start = (s32[], f32[8,4]{1,0}) tuple(%p, %p)
  %while = (s32[], f32[8,4]{1,0}) while(%start), condition=%no, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  %got = f32[8,4]{1,0} get-tuple-element(%while), index=1
  %product = (f32[8,6]{1,0}, s8[4096]{0}) custom-call(%got, %w), \
custom_call_target="__cublas$lt$matmul"
  %conv = (f32[8,4,2,2]{3,2,1,0}, u8[0]{0}) custom-call(%p, %w), \
dim_labels=bf01_oi01->bf01, custom_call_target="__cudnn$convForward"
  %part = f32[4,4]{1,0} bitcast(%w)
  %near = f32[8,4]{1,0:T(8,128)S(1)} copy(%p)
  %row = f32[2,4]{1,0:T(8,128)S(1)} slice(%p), slice={[0:2], [0:4]}
  %rows = f32[2,4]{1,0} slice(%p), slice={[2:4], [0:4]}
  %of_near = f32[3,4]{1,0} slice(%near), slice={[0:3], [0:4]}
  %whole = (f32[4,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%part)
  %done = f32[8,4]{1,0} all-gather-done(%whole)
  ROOT %all = f32[8,4]{1,0} all-reduce(%done), to_apply=%add
}
"""


def test_traffic_is_what_operations_read_and_write():
  done = program.operations(TEXT)
  assert program.kinds(done) == {
    # 8 x 4 floats in and out, five times over.
    'fusion': (5, 5 * 2 * 128),
    # The image, the weights and the result; no scratch.
    'cudnn$convForward': (1, 128 + 48 + 512),
    'cublas$lt$matmul': (1, 128 + 48 + 192),
    'all-gather-start': (1, 64 + 128),
    'all-reduce': (1, 256),
    'copy': (1, 128),  # to the chip's own memory
    # To it, then within the device's, then from it.
    'slice': (3, 32 + 2 * 32 + 48),
  }
  assert program.traffic(done) == 1280 + 688 + 368 + 192 + 256 + 128 + 144


def test_collectives_and_layouts_are_counted():
  assert program.collectives(TEXT) == {
    'all-gather f32': (1, 128),
    'all-reduce f32': (1, 128),
  }
  assert program.convolutions(TEXT) == {'bf01_oi01->bf01': 1}


def test_memory_is_by_use_and_only_the_device_s_own():
  # As XLA 0.10.2 writes it, of a GPU and of a TPU.
  text = """BufferAssignment:
allocation 0: size 512, thread-local:
 value: <7 add.1 @0> (size=4,offset=0): f32[]
allocation 1: size 73728, parameter 98, shape |f32[9]| at ShapeIndex {}, \
maybe-live-out:
allocation 2: size 100, parameter 3, shape |u8[100]| at ShapeIndex {}:
allocation 3: size 4096, constant:
allocation 4: size 2048, output shape is |(s32[], f32[8])|, maybe-live-out:
allocation 5: size 8, maybe-live-out:
allocation 6: size 5632, color 6, preallocated-temp:
allocation 7: size 7324160, preallocated-temp:
"""
  assert program.memory(text) == {
    'arguments': 73728 + 100,
    'temporary': 7324160,
    'constants': 4096,
    'results': 2048 + 8,
  }


def test_flops_are_those_of_products_and_convolutions():
  def fn(x, w, kernel, image):
    def body(carry, _):
      return jnp.tanh(carry @ w), None

    x, _ = jax.lax.scan(body, x, None, length=3)
    numbers = ('NHWC', 'HWIO', 'NHWC')
    y = jax.lax.conv_general_dilated(
      image, kernel, (2, 2), 'SAME', dimension_numbers=numbers
    )
    return x.sum() + y.sum()

  shapes = [(5, 4), (4, 4), (3, 3, 6, 7), (2, 8, 8, 6)]
  arrays = [jax.ShapeDtypeStruct(s, np.float32) for s in shapes]
  forward = 3 * 2 * 5 * 4 * 4 + 2 * (2 * 4 * 4 * 7) * (3 * 3 * 6)
  assert flops.of(jax.make_jaxpr(jax.jit(fn))(*arrays)) == forward
  # Backwards the same again for the weights, and for what came in.
  both = jax.value_and_grad(fn, argnums=(0, 1, 2, 3))
  backward = jax.make_jaxpr(both)(*arrays)
  assert flops.of(backward) == 3 * forward


def test_products_that_no_result_needs_are_not_counted():
  @jax.jit
  def two(x):
    return x @ x, x @ x @ x

  x = jax.ShapeDtypeStruct((4, 4), np.float32)
  assert flops.of(jax.make_jaxpr(lambda x: two(x)[0])(x)) == 2 * 4**3


@pytest.mark.parametrize(
  ('given', 'meant'),
  [
    ('cuda:rtx4070', ('cuda', 'rtx4070', 1)),
    ('cuda:a100:8', ('cuda', 'a100', 8)),
    ('tpu:v5e:4x4', ('tpu', 'v5e', 16)),
    ('tpu:v5e:1', ('tpu', 'v5e', 1)),
  ],
)
def test_a_target_is_a_chip_and_how_many(given, meant):
  assert targets.parse(given)[:3] == meant


@pytest.mark.parametrize(
  'given', ['cuda:k80', 'tpu:v5e', 'rocm:x', 'cuda:a100:0']
)
def test_an_unknown_target_says_which_there_are(given):
  with pytest.raises(ValueError, match='rtx4070'):
    targets.parse(given)


def run(*arguments):
  command = [sys.executable, '-m', 'benchmarks.ahead', *arguments]
  return subprocess.run(command, cwd=ROOT, timeout=3000)


def compiled(tmp_path, *arguments):
  """The record of one run of the command."""
  out = tmp_path / 'found.json'
  assert run(*arguments, f'--out={out}').returncode == 0
  (record,) = json.loads(out.read_text()).values()
  return record


@pytest.mark.slow
@pytest.mark.needs('jax_cuda12_plugin')
def test_a_step_compiles_for_a_gpu(tmp_path):
  found = compiled(
    tmp_path, '--target=cuda:rtx4070', '--preset=test', '--batch=8'
  )
  assert 0 < found['arguments'] < found['peak'] < 2**30
  # The file has four digits.
  room = 0.92 * 12 * 2**30 - found['peak']
  assert found['room'] == pytest.approx(room, rel=1e-3)
  assert found['collectives'] == {}
  # Forward, and backward for the weights and for what came in.
  assert sum(found['convolutions'].values()) > 20


@pytest.mark.slow
@pytest.mark.needs('libtpu')
@pytest.mark.parametrize(('slice_', 'chips'), [('2x2', 4), ('4x4', 16)])
def test_a_step_compiles_for_tpus_that_sum_their_gradients(
  slice_, chips, tmp_path
):
  found = compiled(
    tmp_path, f'--target=tpu:v5e:{slice_}', '--preset=test', '--batch=16'
  )
  assert found['chips'] == chips
  assert found['peak'] < 2**30
  count, moved = found['collectives']['all-reduce f32']
  assert count >= 1
  assert moved > 0


@pytest.mark.slow
@pytest.mark.needs('libtpu')
def test_less_effort_makes_a_program_that_moves_more(tmp_path):
  args = ('--target=tpu:v5e:1', '--preset=test', '--batch=8')
  whole = compiled(tmp_path, *args)
  (tmp_path / 'found.json').unlink()
  quick = compiled(tmp_path, *args, '--effort=-1', '--code')
  assert quick['traffic'] > whole['traffic']
  assert quick['flops'] == whole['flops']


@pytest.mark.slow
@pytest.mark.needs('jax_cuda12_plugin')
def test_the_plan_is_that_of_the_finished_program(tmp_path):
  given = 'cuda:rtx4070'
  found = compiled(tmp_path, f'--target={given}', '--preset=test', '--batch=8')
  target = targets.find(given)
  config = functions.config_of('ddpm', 'test')
  config.batch_size = 8
  fn, shapes = functions.step(config, common.SIZES_PX['test'], target.mesh)
  whole = fn.lower(*shapes).compile(compiler_options=target.options)
  memory = whole.memory_analysis()
  assert found['arguments'] == memory.argument_size_in_bytes
  assert found['temporary'] == memory.temp_size_in_bytes
  done = program.operations(whole.as_text())
  assert found['traffic'] == program.traffic(done)


@pytest.mark.slow
@pytest.mark.needs('jax_cuda12_plugin')
def test_a_compiler_that_fails_leaves_no_plan():
  done = run('--target=cuda:rtx4070', '--preset=test', '--option=no_such_thing')
  assert done.returncode == 1

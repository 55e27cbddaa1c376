"""The launch scripts, run with recorders in place of the cluster's commands."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / 'launch'
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch')])
# One write a line: workers record side by side.
RECORDER = """#!/usr/bin/env bash
printf -v line ' %q' "$@"
echo "$(basename "$0")$line [$JAX_PLATFORMS|$CUDA_VISIBLE_DEVICES]" >>"$RECORD"
echo "$XLA_FLAGS|$XLA_PYTHON_CLIENT_MEM_FRACTION" >>"$RECORD.xla"
"""
# Three units, of which the second fails and the third is killed.
PYTHON = """
case " $* " in
  *' --sweep_list '*) printf 'unit status\\n000 a\\n001 b\\n002 c\\n' ;;
  *' --sweep_index=1 '*) exit 2 ;;
  *' --sweep_index=2 '*) kill -9 $$ ;;
esac
"""
SRUN = """
trap 'echo terminated >>"$RECORD"; exit 143' TERM
for _ in {1..100}; do sleep 0.05; done
"""


@pytest.fixture
def fakes(tmp_path):
  """Recorders on the PATH; returns their folder."""
  bodies = {
    'python': PYTHON,
    'nvidia-smi': 'echo 0; echo 1',
    **dict.fromkeys(('srun', 'sbatch', 'gcloud', 'scontrol'), ''),
  }
  for name, body in bodies.items():
    (tmp_path / name).write_text(RECORDER + body)
    (tmp_path / name).chmod(0o755)
  return tmp_path


def environment(fakes, **more):
  kept = {k: v for k, v in os.environ.items() if not k.startswith('SLURM')}
  for name in (
    'JAX_PLATFORMS',
    'CUDA_VISIBLE_DEVICES',
    'XLA_FLAGS',
    'XLA_PYTHON_CLIENT_MEM_FRACTION',
  ):
    kept.pop(name, None)
  return {
    **kept,
    'PATH': f'{fakes}:{os.environ["PATH"]}',
    'RECORD': str(fakes / 'record'),
    **more,
  }


def launch(fakes, script, *arguments, **env):
  return subprocess.run(
    ['bash', str(LAUNCH / script), *arguments],
    env=environment(fakes, **env),
    capture_output=True,
    text=True,
    timeout=60,
  )


def xla_settings(fakes):
  """XLA_FLAGS|XLA_PYTHON_CLIENT_MEM_FRACTION of the commands that ran."""
  return set((fakes / 'record.xla').read_text().splitlines())


def record(fakes):
  path = fakes / 'record'
  return path.read_text().splitlines() if path.exists() else []


SRUN_IS = 'srun --kill-on-bad-exit=1 --cpus-per-task=8'
MAIN = 'python -m micdiffrep_jax.main'
TASK = ('--config=configs/pretrain.py', '--config.model.multipliers=(1, 2)')
QUOTED = r'--config=configs/pretrain.py --config.model.multipliers=\(1\,\ 2\)'


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_clean(script):
  checker = shutil.which('shellcheck')
  if not checker:
    pytest.skip('shellcheck is not installed')
  # Found beside the script, from wherever that is called.
  command = [checker, '-x', '--source-path=SCRIPTDIR/..', str(script)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
  ('script', 'arguments', 'shown'),
  [
    ('gpu.sh', TASK, f'{MAIN} {QUOTED}'),
    ('gpu_minutes.sh', (str(LAUNCH), 'out', '10'), '--config.steps=STEPS'),
    ('slurm.sbatch', TASK, f'{SRUN_IS} {MAIN} {QUOTED}'),
    ('tpu_vm_create.sh', ('n', 'z', 'v6e-8'), 'create n --zone=z'),
    ('tpu_vm_setup.sh', ('n', 'z'), 'tpu-vm scp'),
    ('tpu_pod.sh', ('n', 'z', *TASK), 'launch/tpu_worker.sh'),
    ('tpu_worker.sh', TASK, f'{MAIN} --distributed=on {QUOTED}'),
    ('sweep.sh', ('--pool=2', *TASK), f'{MAIN} {QUOTED} --sweep_index=2'),
    ('sweep.sh', ('--slurm', *TASK), 'sbatch --array=0-2 launch/slurm.sbatch'),
  ],
)
def test_a_dry_run_shows_the_command_and_runs_nothing(
  fakes, script, arguments, shown
):
  done = launch(fakes, script, '--dry_run', *arguments)
  assert done.returncode == 0, done.stderr
  assert shown in done.stdout
  # A sweep asks how many units there are.
  assert [x for x in record(fakes) if '--sweep_list' not in x] == []


def test_gpu_runs_the_task_on_gpus_only(fakes):
  assert launch(fakes, 'gpu.sh', *TASK).returncode == 0
  *checks, task = record(fakes)
  assert task == f'{MAIN} {QUOTED} [cuda,cpu|]'
  assert any('nvidia-smi' in c for c in checks)


def test_a_gpu_of_some_minutes_gets_as_many_steps_as_they_hold(fakes, tmp_path):
  # The real interpreter for sums; a recorder that trains at 100 images/s.
  (fakes / 'python').write_text(
    RECORDER
    + f"""
for last; do :; done
case "$last" in
  --workdir=*/speed)
    mkdir -p "${{last#--workdir=}}"
    echo '{{"images_per_s": 100.0}}' >"${{last#--workdir=}}/results.json"
    echo '{{"batch_size": 256}}' >"${{last#--workdir=}}/config.json" ;;
esac
[[ $1 == -c && $2 != *backend* ]] && exec {sys.executable} "$@"
exit 0
"""
  )
  dataset, out = tmp_path / 'made', tmp_path / 'out'
  dataset.mkdir()
  (dataset / 'dataset.json').write_text('{}')
  command = ('gpu_minutes.sh', str(dataset), str(out))
  done = launch(fakes, *command, '10', '--config.optim.lr=1')
  assert done.returncode == 0, done.stderr
  tasks = [x for x in record(fakes) if 'micdiffrep_jax.main' in x]
  of = dict(zip(('speed', 'run', 'probe', 'bundle'), tasks, strict=True))
  for name, task in of.items():
    assert f'--workdir={out}/{name} ' in task
  # 0.9 of 600 s at 100 images a second, in batches of 256.
  assert '--config.steps=210 ' in of['run']
  assert '--config.optim.lr=1 ' in of['run']
  assert f'--config.probe={out}/probe ' in of['bundle']
  # Again: the speed is not counted anew, and the steps are those of before.
  assert launch(fakes, *command, '10', '--config.optim.lr=1').returncode == 0
  again = [x for x in record(fakes) if 'micdiffrep_jax.main' in x][4:]
  assert again == tasks[1:]
  for minutes in ('0', 'ten'):
    done = launch(fakes, *command, minutes)
    assert done.returncode == 2
    assert 'whole number' in done.stderr


def test_a_teacher_of_a_lent_gpu_spares_images_the_way_back_up(fakes):
  command = ('gpu_minutes.sh', '--dry_run', str(LAUNCH), 'out', '10')
  plain = launch(fakes, *command)
  assert '--config=pretrain:tiny ' in plain.stdout
  taught = launch(fakes, *command, '--config.teacher.checkpoint=runs/imagenet')
  assert taught.returncode == 0, taught.stderr
  speed, run, *_ = (x for x in taught.stdout.splitlines() if '--config=' in x)
  for line in (speed, run):
    assert '--config=baselines:ddpm_aligned' in line
    assert '--config.align.denoise_every=4 ' in line
    assert '--config.teacher.checkpoint=runs/imagenet ' in line


def test_deterministic_sums_are_asked_of_xla(fakes):
  done = launch(fakes, 'gpu.sh', '--deterministic', *TASK, XLA_FLAGS='--a=1')
  assert done.returncode == 0
  assert record(fakes)[-1] == f'{MAIN} {QUOTED} [cuda,cpu|]'
  flag = '--xla_gpu_deterministic_ops=true'
  assert xla_settings(fakes) == {f'--a=1 {flag}|0.92'}


def test_xla_knows_the_options_that_scripts_set():
  for name in ('deterministic_ops', 'enable_triton_gemm'):
    options = {f'xla_gpu_{name}': True}
    jax.jit(lambda: 0.0, compiler_options=options).lower().compile()


@pytest.mark.parametrize(
  ('broken', 'message'),
  [
    ('nvidia-smi', 'install the NVIDIA driver'),
    ('python', 'requirements-cuda12'),
  ],
)
def test_gpu_says_what_is_missing(fakes, broken, message):
  (fakes / broken).write_text('#!/usr/bin/env bash\nexit 1\n')
  done = launch(fakes, 'gpu.sh', *TASK)
  assert done.returncode == 2
  assert message in done.stderr
  assert not any('micdiffrep_jax.main' in x for x in record(fakes))


def test_a_job_runs_srun_and_passes_its_status_on(fakes):
  (fakes / 'srun').write_text(RECORDER + 'exit 7\n')
  done = launch(
    fakes, 'slurm.sbatch', *TASK, SLURM_JOB_ID='5', SLURM_SUBMIT_DIR=str(ROOT)
  )
  assert done.returncode == 7
  assert record(fakes) == [f'{SRUN_IS} {MAIN} {QUOTED} [|]']


def test_a_job_of_an_array_runs_its_unit(fakes):
  env = {'SLURM_JOB_ID': '5', 'SLURM_ARRAY_TASK_ID': '4'}
  assert launch(fakes, 'slurm.sbatch', *TASK, **env).returncode == 0
  assert record(fakes)[0].endswith('--sweep_index=4 [|]')


@pytest.mark.parametrize(
  ('nodes', 'gpus', 'tasks', 'runs'),
  [(1, 4, 1, True), (1, 4, 2, False), (2, 4, 1, False), (2, 4, 4, True)],
)
def test_a_job_with_idle_gpus_is_refused(fakes, nodes, gpus, tasks, runs):
  env = {
    'SLURM_JOB_ID': '5',
    'SLURM_JOB_NUM_NODES': str(nodes),
    'SLURM_GPUS_ON_NODE': str(gpus),
    'SLURM_NTASKS_PER_NODE': str(tasks),
    'SLURM_CPUS_PER_TASK': '3',
  }
  done = launch(fakes, 'slurm.sbatch', *TASK, **env)
  if runs:
    (line,) = record(fakes)
    assert '--cpus-per-task=3' in line
    assert line.endswith('[cuda,cpu|]')
  else:
    assert done.returncode == 2
    assert f'--ntasks-per-node={gpus}' in done.stderr
    assert record(fakes) == []


@pytest.mark.parametrize(
  ('number', 'requeued'), [(signal.SIGUSR1, True), (signal.SIGTERM, False)]
)
def test_a_job_whose_time_is_up_stops_its_run_and_is_requeued(
  fakes, number, requeued
):
  (fakes / 'srun').write_text(RECORDER + SRUN)
  job = subprocess.Popen(
    ['bash', str(LAUNCH / 'slurm.sbatch'), *TASK],
    env=environment(fakes, SLURM_JOB_ID='5'),
    stdout=subprocess.DEVNULL,
  )
  while not record(fakes):
    time.sleep(0.02)
  time.sleep(0.2)
  job.send_signal(number)
  assert job.wait(30) == 143
  assert record(fakes)[1] == 'terminated'
  again = ['scontrol requeue 5 [|]'] if requeued else []
  assert record(fakes)[2:] == again


def test_a_job_script_outside_a_job_says_how_to_submit_it(fakes):
  done = launch(fakes, 'slurm.sbatch', *TASK)
  assert done.returncode == 2
  assert 'sbatch' in done.stderr
  assert record(fakes) == []


@pytest.mark.parametrize(
  ('kind', 'version'),
  [
    ('v6e-8', 'v2-alpha-tpuv6e'),
    ('v5litepod-16', 'v2-alpha-tpuv5-lite'),
    ('v5p-8', 'v2-alpha-tpuv5'),
    ('v4-8', 'tpu-ubuntu2204-base'),
  ],
)
def test_a_tpu_is_created_with_the_image_of_its_type(fakes, kind, version):
  done = launch(fakes, 'tpu_vm_create.sh', 'mri', 'zone-a', kind, '--spot')
  assert done.returncode == 0
  assert record(fakes) == [
    'gcloud compute tpus tpu-vm create mri --zone=zone-a '
    f'--accelerator-type={kind} --version={version} --spot [|]'
  ]
  assert launch(fakes, 'tpu_vm_create.sh', 'mri', 'z', 'h100').returncode == 2


def test_a_tpu_gets_the_committed_code_on_every_worker(fakes):
  assert launch(fakes, 'tpu_vm_setup.sh', 'mri', 'zone-a').returncode == 0
  copy, install = record(fakes)
  assert 'tpu-vm scp' in copy
  assert all('--worker=all' in x for x in (copy, install))
  assert 'requirements-tpu.txt' in install


def test_a_tpu_gets_the_python_and_so_the_jax_of_the_tests(fakes):
  done = launch(fakes, 'tpu_vm_setup.sh', '--dry_run', 'mri', 'zone-a')
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  oldest = project['project']['requires-python'].removeprefix('>=')
  assert re.search(r'--python\W+(3\.\d+)', done.stdout).group(1) == oldest


WORKER = """
case " $* " in
  *micdiffrep_jax.main*)
    trap 'echo saved; exit 143' TERM
    echo started
    for _ in {1..200}; do sleep 0.05; done
    ;;
esac
"""


def wait_for(condition):
  end = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


def test_a_task_on_a_tpu_outlives_its_connection(fakes):
  shutil.copytree(LAUNCH, fakes / 'launch')
  (fakes / 'python').write_text(RECORDER + WORKER)

  def command(*arguments):
    return ['bash', str(fakes / 'launch/tpu_worker.sh'), *arguments]

  def call(*arguments):
    return subprocess.run(
      command(*arguments),
      env=environment(fakes),
      capture_output=True,
      text=True,
      timeout=60,
    )

  first = subprocess.Popen(
    command(*TASK),
    env=environment(fakes),
    stdout=subprocess.DEVNULL,
    start_new_session=True,
  )
  log = fakes / 'runs/tpu_worker/log'
  wait_for(lambda: log.exists() and 'started' in log.read_text())
  os.killpg(first.pid, signal.SIGKILL)
  assert first.wait(30) != 0
  assert 'another task runs here' in call('--config=other.py').stderr
  second = subprocess.Popen(
    command(*TASK), env=environment(fakes), stdout=subprocess.PIPE, text=True
  )
  assert second.stdout.readline() == 'started\n'
  assert call('--stop').returncode == 0
  assert second.communicate(timeout=30)[0] == 'saved\n'
  assert second.returncode == 143
  assert [x for x in record(fakes) if 'main' in x] == [
    f'{MAIN} --distributed=on {QUOTED} [tpu,cpu|]'
  ]
  assert call('--stop').returncode == 2  # nothing is left


def test_a_task_does_not_start_where_there_is_no_tpu(fakes):
  shutil.copytree(LAUNCH, fakes / 'launch')
  (fakes / 'python').write_text(RECORDER + 'exit 1\n')
  done = subprocess.run(
    ['bash', str(fakes / 'launch/tpu_worker.sh'), *TASK],
    env=environment(fakes),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert 'jax sees no TPU' in done.stderr
  assert not any('micdiffrep_jax.main' in x for x in record(fakes))


def test_a_pod_runs_one_program_with_its_arguments_whole(fakes):
  done = launch(fakes, 'tpu_pod.sh', 'mri', 'zone-a', *TASK)
  assert done.returncode == 0
  (line,) = record(fakes)
  assert '--worker=all' in line
  # Quoted once for the worker's shell, so that it sees the arguments given.
  (remote,) = [
    x
    for x in subprocess.run(
      ['bash', '-c', f'printf "%s\\n" {line.removesuffix(" [|]")}'],
      capture_output=True,
      text=True,
    ).stdout.split('\n--')
    if x.startswith('command=')
  ]
  tail = remote.partition('tpu_worker.sh ')[2]
  seen = subprocess.run(
    ['bash', '-c', f'printf "%s\\n" {tail}'], capture_output=True, text=True
  )
  assert seen.stdout.splitlines() == [*TASK]


@pytest.mark.parametrize('where', ['--pool=2', '--gpus'])
def test_a_sweep_runs_every_unit_and_lists_the_failed_ones(fakes, where):
  done = launch(fakes, 'sweep.sh', where, *TASK, '--sweep=x')
  lines = [x for x in record(fakes) if '--sweep_index' in x]
  assert sorted(x.partition(' [')[0] for x in lines) == [
    f'{MAIN} {QUOTED} --sweep=x --sweep_index={i}' for i in range(3)
  ]
  chosen = {x.partition(' [')[2].partition('|')[0] for x in lines}
  assert chosen == ({'cuda,cpu'} if where == '--gpus' else {''})
  # Two that share a device take less than half of its memory each.
  units = xla_settings(fakes) - {'|'}
  assert units == (set() if where == '--gpus' else {'|0.450'})
  devices = {x.partition('|')[2] for x in lines}
  assert devices <= ({'0]', '1]'} if where == '--gpus' else {']'})
  assert done.returncode == 1
  assert done.stdout.splitlines()[-4:] == [
    'unit status',
    '000 a',
    '001 b',
    '002 c',
  ]
  assert done.stderr.splitlines()[-2:] == [
    'unit 1: exit status 2',
    'unit 2: exit status 137',
  ]


def test_a_sweep_on_slurm_is_one_array(fakes):
  assert launch(fakes, 'sweep.sh', '--slurm', *TASK).returncode == 0
  assert record(fakes)[1:] == [
    f'sbatch --array=0-2 launch/slurm.sbatch {QUOTED} [|]'
  ]


@pytest.mark.parametrize(
  'script', [s.name for s in SCRIPTS if s.name != 'common.sh']
)
def test_a_script_without_arguments_says_what_it_takes(fakes, script):
  done = launch(fakes, script)
  assert done.returncode == 2, done.stdout
  assert script in done.stderr
  assert record(fakes) == [] or 'sweep_list' in record(fakes)[0]

"""The pretraining loop, one for all methods.

A resumed run computes exactly what the uninterrupted one would have: all
randomness comes from the seed and the step, the data order from the step.
"""

from collections.abc import Callable
import contextlib
import functools
import os
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import promises
from micdiffrep_jax.data.batches import train_stream
from micdiffrep_jax.encoders.encoder import config_from_json, make_method
from micdiffrep_jax.methods import Method
from micdiffrep_jax.methods.base import trainable
from micdiffrep_jax.pretrain import checks, compiler, monitor
from micdiffrep_jax.pretrain.optim import make_optimizer, make_schedule
from micdiffrep_jax.pretrain.state import TrainState, make_state, make_step
from micdiffrep_jax.run import debug, devices, files, guard, log
from micdiffrep_jax.run.checkpoint import Checkpoints, Metadata, read_metadata
from micdiffrep_jax.run.keys import stream

Tree = Any


class Program(NamedTuple):
  """What a run compiles, and the shapes and shardings of its state."""

  init: Callable  # key -> state
  step: Callable  # state, batch, key -> state, metrics
  abstract: TrainState  # of jax.ShapeDtypeStruct


def count_steps(config: ConfigDict, images: int) -> int:
  """Updates of a whole run: config.steps or, if that is 0, from the epochs."""
  return config.steps or max(1, config.epochs * images // config.batch_size)


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Task `pretrain`: trains config.method on the train part of a split."""
  dataset = data.open_dataset(config.data.path, cache=config.data.cache)
  info = {
    'size_px': dataset.info.size_px,
    'channels': dataset.info.channels,
    'fingerprint': dataset.fingerprint,
    'split': config.data.split,
    'split_hash': data.split_hash(dataset, config.data.split),
    'spared': {
      name: data.split_hash(dataset, name) for name in config.data.spare
    },
  }
  rows = data.pretraining_rows(dataset, config.data.split, config.data.spare)
  # A method may follow a schedule over the run; the config is kept as given.
  resolved = config.copy_and_resolve_references()
  resolved.steps = count_steps(config, len(rows))
  reader = make_method(resolved, info['size_px'], info['channels'])
  method = trainable(reader, config.method)
  info |= method.facts
  if method.check:
    method.check(len(rows))
  proof = {
    'audit_reasons': promises.refuse(
      dataset, config.data.split, config.allow_failed_audit
    ),
    'unseen': checks.prove_unseen(dataset, config.data.split, rows),
    'unseen_of_spared': {
      name: checks.prove_unseen(dataset, name, rows)
      for name in config.data.spare
    },
  }
  debug.parse_window(config.profile)
  with guard.lock(workdir), debug.checks(config.debug):
    return fit(method, config, dataset, rows, info, proof, workdir)


def compile_program(
  method: Method, config: ConfigDict, steps: int, mesh: Any
) -> Program:
  """Prepares the jitted functions of a run; they compile on first use."""
  tx = make_optimizer(config.optim, steps)
  init = functools.partial(make_state, method, tx)
  shapes = jax.eval_shape(init, jax.random.key(0))
  shardings = devices.state_sharding(shapes, mesh, config.fsdp)
  step = jax.jit(
    make_step(method, tx, config.accumulate),
    # What was donated cannot be run again in search of a NaN.
    donate_argnums=() if config.debug else 0,
    out_shardings=(shardings, devices.replicated(mesh)),
    compiler_options=compiler.options(),
  )
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )
  return Program(jax.jit(init, out_shardings=shardings), step, abstract)


def begin(
  checkpoints: Checkpoints,
  program: Program,
  key: jax.Array,
  metadata: Metadata,
  allow_changes: bool,
) -> TrainState:
  """A fresh state, or that of the newest checkpoint.

  Raises ValueError where the checkpoint is of another model, other settings or
  other data.
  """
  if checkpoints.latest is None:
    return program.init(key)
  saved = read_metadata(checkpoints.directory, checkpoints.latest)
  saved = saved._replace(config=files.plain(config_from_json(saved.config)))
  saved.info.pop('images_seen')
  checks.check_unchanged(saved._asdict(), metadata._asdict(), allow_changes)
  log.get_logger().info('Goes on from step %d.', checkpoints.latest)
  return checkpoints.restore(program.abstract)


def fit(
  method: Method,
  config: ConfigDict,
  dataset: data.Dataset,
  rows: np.ndarray,
  info: dict,
  proof: dict,
  workdir: str,
) -> dict[str, Any]:
  """Trains, or goes on from the newest sound checkpoint, to the results."""
  mesh = devices.make_mesh()
  checks.check_batches(config, len(rows), mesh)
  steps, size = count_steps(config, len(rows)), config.batch_size
  schedule = make_schedule(config.optim, steps)
  root = jax.random.key(config.seed)
  program = compile_program(method, config, steps, mesh)
  parameters = sum(x.size for x in jax.tree.leaves(program.abstract.params))
  metadata = Metadata(files.plain(config), info)
  checkpoints = Checkpoints(
    os.path.join(files.absolute(workdir), 'checkpoints'),
    config.keep_every,
    'val_loss',
  )
  start = checkpoints.latest or 0
  state = begin(
    checkpoints, program, stream(root, 'init'), metadata, config.allow_changes
  )
  log.get_logger().info(
    '%s, %.2f M parameters, %d images, %d steps of %d, %d device(s).',
    config.method,
    parameters / 1e6,
    len(rows),
    steps,
    size,
    mesh.shape['data'],
  )
  if jax.process_index() == 0:
    files.write_json(os.path.join(workdir, 'config.json'), config)
  writer = log.Writer(workdir, start)
  watch = monitor.make(method, config, dataset, info, mesh, writer)
  train_key = devices.replicate(stream(root, 'train'), mesh)
  batches = train_stream(
    dataset, rows, size, seed=config.seed, start_step=start
  )
  side = method.side(dataset) if method.side else {}
  bar = log.progress(
    total=steps * size, initial=start * size, desc='pretrain', unit='img'
  )
  clock = monitor.Clock(size)
  pending: tuple[int, dict] | None = None

  def settle():
    """Reads the metrics of the step before; the device is past it."""
    nonlocal pending
    if pending is None:
      return
    (step, metrics), pending = pending, None
    metrics = jax.device_get(metrics)
    checks.require_finite(step, metrics, checkpoints.latest or 0)
    bar.update(size)
    if step % config.log_every == 0 or step == steps:
      bar.set_postfix(loss=f'{metrics["averages"]["loss"]:.4f}')
      writer.scalars(
        step,
        {
          **metrics['averages'],
          'lr': float(schedule(step - 1)),
          'images_seen': step * size,
          'images_per_s': clock.images_per_s(step),
        },
      )

  # A check that reruns operations one by one moves constants to the device.
  transfers = 'allow' if config.debug else 'disallow'
  with (
    contextlib.closing(checkpoints),  # each is closed though others fail
    contextlib.closing(writer),
    contextlib.closing(bar),
    guard.StopSignal() as stop,
    debug.profiler(config.profile, workdir) as trace,
  ):
    for step in range(start + 1, steps + 1):
      trace(step, state)
      drawn = next(batches)
      beside = {k: rows_of[drawn['index']] for k, rows_of in side.items()}
      batch = devices.place({'image': drawn['image'], **beside}, mesh)
      with jax.transfer_guard(transfers):
        state, metrics = program.step(state, batch, train_key)
      settle()
      pending = (step, metrics)
      # Asked once: a signal may come at any line.
      stopped = stop.agreed(step, mesh)
      watched: dict[str, float] = {}
      if step % config.eval_every == 0 or step == steps:
        settle()
        watched = watch(state, step)
        clock.restart(step)
      if step % config.save_every == 0 or step == steps or stopped:
        settle()
        seen = {**info, 'images_seen': step * size}
        checkpoints.save(
          step,
          state,
          metadata._replace(info=seen),
          {k: v for k, v in watched.items() if k == 'val_loss'} or None,
        )
      if stopped:
        checkpoints.wait()
        log.get_logger().warning(
          'Stopped by signal %d at step %d of %d; saved. '
          'The same command goes on from here.',
          stopped,
          step,
          steps,
        )
        raise SystemExit(128 + stopped)
    checkpoints.wait()
  results = {
    'task': 'pretrain',
    'steps': steps,
    'images_seen': steps * size,
    'parameters': parameters,
    'dataset': info,
    **proof,
    'images_per_s': clock.median(),
    'training_s': monitor.training_s(workdir, steps * size),
    **monitor.last_metrics(workdir),
  }
  return files.write_results(workdir, results, config)

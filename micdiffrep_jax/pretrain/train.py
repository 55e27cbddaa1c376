"""The training loop, one for all methods, and the task that pretrains.

A resumed run computes exactly what the uninterrupted one would have: all
randomness comes from the seed and the step, the data order from the step. On a
GPU sums are taken in any order, unless XLA is told otherwise:
launch/gpu.sh --deterministic.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import os
import time
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import promises
from micdiffrep_jax.data.batches import train_stream
from micdiffrep_jax.encoders.encoder import (
  EncoderInfo,
  config_from_json,
  make_method,
)
from micdiffrep_jax.methods import Method
from micdiffrep_jax.methods.base import no_sums, trainable
from micdiffrep_jax.pretrain import monitor
from micdiffrep_jax.pretrain.optim import make_schedule
from micdiffrep_jax.pretrain.state import Program, TrainState, compile_program
from micdiffrep_jax.pretrain.teacher import Teacher, folder_of, open_teacher
from micdiffrep_jax.run import debug, devices, files, guard, log
from micdiffrep_jax.run.checkpoint import Checkpoints, Metadata, read_metadata
from micdiffrep_jax.run.checks import in_range, one_of
from micdiffrep_jax.run.keys import stream

# Readings that may end a run; only val_loss is better where it is lower. None
# of them reads a label.
STOP_METRICS = ('val_loss', 'feature_rank', 'features_kept')
# Fields that change what is seen of a run, not what it computes.
HARMLESS = (
  'log_every save_every keep_every eval_every monitor stop allow_changes '
  'allow_failed_audit debug profile fsdp'
).split()


def count_steps(config: ConfigDict, images: int) -> int:
  """Updates of a whole run: config.steps or, if that is 0, from the epochs."""
  return config.steps or max(1, config.epochs * images // config.batch_size)


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Task `pretrain`: trains config.method on the train part of a split."""
  dataset = data.open_dataset(config.data.path, cache=config.data.cache)
  split, spare = config.data.split, config.data.spare
  rows = data.pretraining_rows(dataset, split, spare)
  size_px, channels = dataset.info.size_px, dataset.info.channels
  # A method may follow a schedule over the run; the config is kept as given.
  resolved = config.copy_and_resolve_references()
  resolved.steps = count_steps(config, len(rows))
  teacher = open_teacher(config, dataset)
  if teacher:
    resolved = teacher.fill_in(resolved)
  reader = make_method(resolved, size_px, channels)
  method = trainable(reader, config.method)
  info = EncoderInfo(
    size_px=size_px,
    channels=channels,
    fingerprint=dataset.fingerprint,
    split=split,
    split_hash=data.split_hash(dataset, split),
    spared={name: data.split_hash(dataset, name) for name in spare},
    facts=method.facts,
  )
  if method.check:
    method.check(len(rows))
  proof = {
    'audit_reasons': promises.refuse(dataset, split, config.allow_failed_audit),
    'unseen': prove_unseen(dataset, split, rows),
    'unseen_of_spared': {
      name: prove_unseen(dataset, name, rows) for name in spare
    },
  }
  debug.parse_window(config.profile)
  with guard.lock(workdir), debug.checks(config.debug):
    return fit(method, config, dataset, rows, info, proof, workdir, teacher)


def check_batches(config: ConfigDict, images: int, mesh: Any) -> None:
  """Raises ValueError where images, devices and parts do not fit the batch."""
  devices.check_batch_size(config.batch_size, mesh, '--config.batch_size')
  share = config.batch_size // mesh.shape['data']
  if config.accumulate < 1 or share % config.accumulate:
    raise ValueError(
      f'accumulate={config.accumulate} does not divide the {share} images of a '
      'device. Set --config.accumulate or --config.batch_size.'
    )
  if images < config.batch_size:
    raise ValueError(
      f'{images} training images are fewer than a batch of '
      f'{config.batch_size}. Set --config.batch_size.'
    )


def prove_unseen(
  dataset: data.Dataset, split: str, rows: np.ndarray
) -> dict[str, int]:
  """What the manifest says of training rows against the test part.

  Raises ValueError where a test image is among them. Pixel twins and shared
  groups are counted: by construction 0 under `grouped`, not under others.
  """
  manifest = dataset.manifest
  test = data.rows(dataset, split, 'test')

  def shared(column: str) -> int:
    # A set, not np.isin, which sorts: text of a million rows takes a minute.
    trained = set(manifest[column][rows].tolist())
    return sum(name in trained for name in manifest[column][test].tolist())

  counts = {
    'shared_images': shared('id'),
    'shared_pixels': shared('sha256'),
    'shared_groups': shared('group'),
  }
  if counts['shared_images']:
    raise ValueError(
      f'{counts["shared_images"]} test images of split {split!r} are among the '
      f'pretraining images of {dataset.path}. Prepare the dataset again.'
    )
  return {'train_images': len(rows), 'test_images': len(test), **counts}


def _flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  out: dict[str, Any] = {}
  for k, v in config.items():
    if isinstance(v, dict):
      out |= _flat(v, f'{prefix}{k}.')
    else:
      out[f'{prefix}{k}'] = list(v) if isinstance(v, tuple) else v
  return out


def check_unchanged(
  before: Mapping[str, Any], now: Mapping[str, Any], accepted: bool
) -> None:
  """Raises ValueError that names what differs from the run being resumed."""
  old, new = _flat(before), _flat(now)
  changes = [
    f'{k}: {old.get(k, "absent")} -> {new.get(k, "absent")}'
    for k in sorted(old.keys() | new.keys())
    if old.get(k, '\0') != new.get(k, '\0')
    and k.removeprefix('config.').split('.')[0] not in HARMLESS
  ]
  if not changes:
    return
  text = 'This folder holds a run with other settings:\n  ' + '\n  '.join(
    changes
  )
  if not accepted:
    raise ValueError(
      f'{text}\nGive another --workdir for a new run, the old settings to go '
      'on, or --config.allow_changes=True to go on with the new ones.'
    )
  log.get_logger().warning('%s\nAccepted by --config.allow_changes.', text)


def require_finite(step: int, metrics: dict[str, Any], saved: int) -> None:
  """Raises FloatingPointError that names the step and what to try."""
  if np.isfinite(metrics['loss']) and np.isfinite(metrics['grad_norm']):
    return
  raise FloatingPointError(
    f'The loss is not finite at step {step} (loss {metrics["loss"]}, gradient '
    f'norm {metrics["grad_norm"]}); nothing was saved after step {saved}. '
    'Lower --config.optim.lr, set --config.optim.clip_norm, or use '
    '--config.model.dtype=float32; --config.debug=True names the operation '
    'that fails.'
  )


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
  check_unchanged(saved._asdict(), metadata._asdict(), allow_changes)
  log.get_logger().info('Goes on from step %d.', checkpoints.latest)
  return checkpoints.restore(program.abstract)


class Meter:
  """Reads the metrics of a step once the device is past it, and logs them.

  So the device never waits for Python. saved: -> the newest step on disk.
  Close it after use.
  """

  def __init__(
    self,
    config: ConfigDict,
    steps: int,
    start: int,
    writer: log.Writer,
    saved: Callable[[], int],
  ):
    self._config, self._steps = config, steps
    self._writer, self._saved = writer, saved
    self._schedule = make_schedule(config.optim, steps)
    self._pending: tuple[int, dict[str, Any]] | None = None
    self._mark: tuple[int, float] | None = None  # step and time of a reading
    self._speeds: list[float] = []
    size = config.batch_size
    self._bar = log.progress(
      total=steps * size, initial=start * size, desc='pretrain', unit='img'
    )

  def push(self, step: int, metrics: dict[str, Any]) -> None:
    """Takes the metrics of a step that was just dispatched."""
    self.settle()
    self._pending = (step, metrics)

  def settle(self) -> None:
    """Reads what was pushed last; FloatingPointError if it is not finite."""
    if self._pending is None:
      return
    (step, metrics), self._pending = self._pending, None
    metrics = jax.device_get(metrics)
    require_finite(step, metrics, self._saved())
    size = self._config.batch_size
    self._bar.update(size)
    if step % self._config.log_every == 0 or step == self._steps:
      loss = f'{metrics["averages"]["loss"]:.4f}'
      self._bar.set_postfix(loss=loss, refresh=False)
      self._writer.scalars(
        step,
        {
          **metrics['averages'],
          'lr': float(self._schedule(step - 1)),
          'images_seen': step * size,
          'images_per_s': self._images_per_s(step),
        },
      )

  def _images_per_s(self, step: int) -> float:
    """Since the last reading; the first covers compilation and is 0."""
    mark = self._mark
    self.restart_clock(step)
    if mark is None or step <= mark[0]:
      return 0.0
    assert self._mark is not None
    images = (step - mark[0]) * self._config.batch_size
    self._speeds.append(images / (self._mark[1] - mark[1]))
    return self._speeds[-1]

  def restart_clock(self, step: int) -> None:
    """Leaves what was done since the last reading out of the speed."""
    self._mark = (step, time.perf_counter())

  def images_per_s(self) -> float:
    """Median of all readings; 0 without any."""
    return float(np.median(self._speeds)) if self._speeds else 0.0

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()


def _side(
  method: Method,
  teacher: Teacher | None,
  dataset: data.Dataset,
  rows: np.ndarray,
  workdir: str,
) -> dict[str, np.ndarray]:
  """What travels with the images, a row for each of the data set."""
  side = method.side(dataset) if method.side else {}
  if teacher:
    side['teacher'] = teacher.read(rows, folder_of(dataset, workdir))
  return side


def _batches(
  side: Mapping[str, np.ndarray],
  dataset: data.Dataset,
  rows: np.ndarray,
  config: ConfigDict,
  start: int,
  mesh: Any,
) -> Iterator[dict[str, jax.Array]]:
  """Batches on the devices, from that of step `start` on; side: of _side."""
  drawn_batches = train_stream(
    dataset, rows, config.batch_size, seed=config.seed, start_step=start
  )
  for drawn in drawn_batches:
    beside = {
      k: np.asarray(rows_of[drawn['index']]) for k, rows_of in side.items()
    }
    yield devices.place({'image': drawn['image'], **beside}, mesh)


class Job(NamedTuple):
  """What a run trains, on what, and who looks on.

  Attributes:
    method: what is trained.
    config: fields of a training run; see configs/pretrain.py.
    steps: updates of the whole run.
    dataset: where the images are.
    rows: of the data set, to train on.
    side: -> what travels with the images, rows of the whole data set.
    metadata: of the checkpoints.
    watch: mesh, writer -> what looks at (state, step) and returns metrics; of
      val_loss the lowest is the best.
    start: -> params and extra to begin with, of which step 0 is evaluated too;
      None begins with those that method.init draws.
    patience: evaluations without a better `judge` that end the run; 0: none.
    judge: one of STOP_METRICS.
  """

  method: Method
  config: ConfigDict
  steps: int
  dataset: data.Dataset
  rows: np.ndarray
  side: Callable[[], Mapping[str, np.ndarray]]
  metadata: Metadata
  watch: Callable[[Any, log.Writer], Callable[[Any, int], dict[str, float]]]
  start: Callable[[], tuple[Any, Any]] | None = None
  patience: int = 0
  judge: str = 'val_loss'


class Done(NamedTuple):
  """A finished run: its last step; evaluated: as Loop has it."""

  step: int
  evaluated: Mapping[int, float]
  parameters: int
  images_per_s: float


def judged(
  step: int, metrics: Mapping[str, float], name: str
) -> dict[int, float]:
  """{step: the metric, negative where more is better}; {} where it lacks."""
  if name not in metrics:
    return {}
  return {step: metrics[name] if name == 'val_loss' else -metrics[name]}


def check_stop(
  method: Method, config: ConfigDict, dataset: data.Dataset
) -> None:
  """Raises ValueError for a config.stop that could never end the run."""
  if not config.stop.metric:
    return
  one_of(STOP_METRICS, config.stop.metric, 'metric', '--config.stop.metric')
  if config.stop.metric == 'val_loss' and method.validate is no_sums:
    raise ValueError(
      "stop.metric='val_loss': this method has no validation loss. Set "
      '--config.stop.metric to features_kept or feature_rank.'
    )
  in_range(config.stop.patience, 1, 10**6, '--config.stop.patience')
  images = len(data.rows(dataset, config.data.split, 'val'))
  if min(images, config.monitor.images) < 2:
    raise ValueError(
      f'stop.metric={config.stop.metric!r} is read of validation images: there '
      f'are {images}, and --config.monitor.images={config.monitor.images}.'
    )


def stale(evaluated: Mapping[int, float], patience: int) -> bool:
  """Whether so many evaluations have passed since the best; 0: never."""
  if not patience or not evaluated:
    return False
  best = min(evaluated, key=lambda step: (evaluated[step], step))
  return sum(step > best for step in evaluated) >= patience


class Loop(NamedTuple):
  """The steps of a run and what is done between them.

  watch: as Job.watch gives it; evaluated: what judges, by step so far, the
  lower the better.
  """

  job: Job
  program: Program
  checkpoints: Checkpoints
  meter: Meter
  watch: Callable[[TrainState, int], dict[str, float]]
  mesh: Any
  evaluated: dict[int, float]

  def run(
    self,
    state: TrainState,
    batches: Iterator[dict[str, jax.Array]],
    key: jax.Array,
    steps: range,
    trace: Callable[[int, TrainState], None],
  ) -> None:
    """Does `steps`; SystemExit once a signal was answered by a save."""
    config, last = self.job.config, steps.stop - 1
    # A check that reruns operations one by one moves constants to the device.
    transfers = 'allow' if config.debug else 'disallow'
    if stale(self.evaluated, self.job.patience):
      return  # it ended before
    with guard.StopSignal() as stop:
      for step in steps:
        trace(step, state)
        batch = next(batches)
        with jax.transfer_guard(transfers):
          state, metrics = self.program.step(state, batch, key)
        self.meter.push(step, metrics)
        # Asked once: a signal may come at any line.
        stopped = stop.agreed(step, self.mesh)
        watched: dict[str, float] = {}
        ended = step == last
        if step % config.eval_every == 0 or ended:
          self.meter.settle()
          watched = self.evaluate(state, step)
          self.meter.restart_clock(step)
          ended = ended or stale(self.evaluated, self.job.patience)
        if step % config.save_every == 0 or ended or stopped:
          self.save(step, state, watched)
        if stopped:
          self.checkpoints.wait()
          log.get_logger().warning(
            'Stopped by signal %d at step %d of %d; saved. '
            'The same command goes on from here.',
            stopped,
            step,
            last,
          )
          raise SystemExit(128 + stopped)
        if ended and step < last:
          log.get_logger().info(
            'Ended at step %d of %d: %s has not improved for %d evaluations.',
            step,
            last,
            self.job.judge,
            self.job.patience,
          )
          break
      self.checkpoints.wait()

  def evaluate(self, state: TrainState, step: int) -> dict[str, float]:
    """What is measured of the state."""
    watched = self.watch(state, step)
    self.evaluated.update(judged(step, watched, self.job.judge))
    return watched

  def save(
    self, step: int, state: TrainState, watched: dict[str, float]
  ) -> None:
    """Starts to save the state; watched: what was measured of it."""
    self.meter.settle()
    metadata = self.job.metadata
    images_seen = step * self.job.config.batch_size
    info = {**metadata.info, 'images_seen': images_seen}
    metrics = {k: v for k, v in watched.items() if k == 'val_loss'}
    metadata = metadata._replace(info=info)
    self.checkpoints.save(step, state, metadata, metrics or None)


def train(job: Job, workdir: str) -> Done:
  """Trains, or goes on from the newest sound checkpoint, to the end."""
  config, mesh = job.config, devices.make_mesh()
  root = jax.random.key(config.seed)
  program = compile_program(job.method, config, job.steps, mesh)
  parameters = sum(x.size for x in jax.tree.leaves(program.abstract.params))
  checkpoints = Checkpoints(
    os.path.join(files.absolute(workdir), 'checkpoints'),
    config.keep_every,
    'val_loss',
  )
  start, fresh = checkpoints.latest or 0, checkpoints.latest is None
  if fresh and job.start:
    assert program.place is not None
    state = program.place(*job.start())
  else:
    key = stream(root, 'init')
    state = begin(checkpoints, program, key, job.metadata, config.allow_changes)
  log.get_logger().info(
    '%s, %.2f M parameters, %d images, %d steps of %d, %d device(s).',
    config.method,
    parameters / 1e6,
    len(job.rows),
    job.steps,
    config.batch_size,
    mesh.shape['data'],
  )
  if jax.process_index() == 0:
    files.write_json(os.path.join(workdir, 'config.json'), config)
  evaluated: dict[int, float] = {}
  for line in log.read_metrics(workdir):
    if line['step'] <= start and not fresh:
      evaluated |= judged(int(line['step']), line, job.judge)
  writer = log.Writer(workdir, start)
  watch = job.watch(mesh, writer)
  meter = Meter(
    config, job.steps, start, writer, lambda: checkpoints.latest or 0
  )
  with (
    contextlib.closing(checkpoints),  # each is closed though others fail
    contextlib.closing(writer),
    contextlib.closing(meter),
    debug.profiler(config.profile, workdir) as trace,
  ):
    loop = Loop(job, program, checkpoints, meter, watch, mesh, evaluated)
    if fresh and job.start:  # what training is to be better than
      loop.save(0, state, loop.evaluate(state, 0))
    batches = _batches(job.side(), job.dataset, job.rows, config, start, mesh)
    train_key = devices.replicate(stream(root, 'train'), mesh)
    loop.run(state, batches, train_key, range(start + 1, job.steps + 1), trace)
    last = checkpoints.latest or 0
  return Done(last, evaluated, parameters, meter.images_per_s())


def fit(
  method: Method,
  config: ConfigDict,
  dataset: data.Dataset,
  rows: np.ndarray,
  info: EncoderInfo,
  proof: files.Results,
  workdir: str,
  teacher: Teacher | None = None,
) -> files.Results:
  """Trains, or goes on from the newest sound checkpoint, to the results."""
  check_batches(config, len(rows), devices.make_mesh())
  check_stop(method, config, dataset)
  steps = count_steps(config, len(rows))
  told = teacher.fill_in(config) if teacher else config
  job = Job(
    method,
    config,
    steps,
    dataset,
    rows,
    lambda: _side(method, teacher, dataset, rows, workdir),
    Metadata(files.plain(told), info.to_json()),
    functools.partial(monitor.make, method, config, dataset, info),
    patience=config.stop.patience if config.stop.metric else 0,
    judge=config.stop.metric or 'val_loss',
  )
  done = train(job, workdir)
  images_seen = done.step * config.batch_size
  results = {
    'task': 'pretrain',
    'steps': done.step,
    'ended_early': done.step < steps,
    'images_seen': images_seen,
    'parameters': done.parameters,
    'dataset': info.to_json(),
    **proof,
    'images_per_s': done.images_per_s,
    'training_s': monitor.training_s(workdir, images_seen),
    **monitor.last_metrics(workdir),
  }
  return files.write_results(workdir, results, config)

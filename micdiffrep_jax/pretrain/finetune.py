"""Fine-tunes an encoder and a head on it; stops by validation images.

It runs in the loop that pretrains, so a killed run goes on bit by bit. Test
images are not in reach: the labels that come here are -1 for them, and only
rows to train on and to validate are read.
Letters: N images of the data set, n of some rows, d features, k classes.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.encoders.encoder import Encoder, EncoderInfo
from micdiffrep_jax.heads.base import HeadInfo
from micdiffrep_jax.heads.head_file import SavedHead
from micdiffrep_jax.heads.trained import class_weights
from micdiffrep_jax.methods import METHODS
from micdiffrep_jax.methods import finetune as method
from micdiffrep_jax.methods.finetune import Tuning
from micdiffrep_jax.pretrain import train
from micdiffrep_jax.pretrain.optim import make_schedule
from micdiffrep_jax.pretrain.state import TrainState
from micdiffrep_jax.run import devices, files, log
from micdiffrep_jax.run.checkpoint import Metadata, sealed_steps
from micdiffrep_jax.run.checks import in_range, whole_number
from micdiffrep_jax.run.keys import stream
from micdiffrep_jax.scores import calibration, metrics


class Labelled(NamedTuple):
  """What may be learned from: train and val (n,) are rows of the data set.

  labels (N,) are -1 on all other rows.
  """

  dataset: data.Dataset
  train: np.ndarray
  val: np.ndarray
  labels: np.ndarray
  split: str


class Tuned(NamedTuple):
  """A fine-tuned encoder and its head, both of the best step.

  place: folder of that checkpoint; evaluated: validation loss by step.
  """

  encoder: Encoder
  head: SavedHead
  place: str
  step: int
  evaluated: dict[int, float]
  parameters: int


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before anything runs."""
  for name in ('epochs', 'steps', 'min_steps', 'patience'):
    whole_number(config[name], 0, float('inf'), f'--config.{name}')
  for name in ('batch_size', 'eval_every', 'save_every'):
    whole_number(config[name], 1, float('inf'), f'--config.{name}')
  in_range(config.lora.alpha, 0, float('inf'), '--config.lora.alpha')
  if config.eval_every % config.save_every:
    raise ValueError(
      f'eval_every={config.eval_every} is no multiple of save_every='
      f'{config.save_every}, and the best of all evaluated steps is to be kept.'
      ' Set --config.eval_every or --config.save_every.'
    )


def net_of(head: SavedHead) -> ConfigDict:
  """What a head is, as `resolve` takes it."""
  wide = [x.shape[1] for n, x in head.params.items() if n.split('.')[-1] == 'W']
  return ConfigDict(
    {
      'kind': head.info.kind,
      'hidden': wide[0] if wide else 0,
      'bias': any(name.endswith('M_bias') for name in head.params),
    }
  )


def steps_of(config: ConfigDict, images: int) -> int:
  """Updates on so many images: those of the config, or of its epochs.

  The latter are cut to a multiple of eval_every, so that folds of about the
  same size have the same number and share a compiled program.
  """
  passes = config.epochs * images // config.batch_size
  if passes > config.eval_every:
    passes -= passes % config.eval_every
  steps: int = config.steps or max(config.min_steps, passes, 1)
  return steps


def resolve(
  config: ConfigDict,
  encoder: Encoder,
  info: HeadInfo,
  net: ConfigDict,
  images: int,
) -> ConfigDict:
  """The config of the run: complete, as its checkpoints hold it.

  info: of the head, which features and classes it reads; images: to train on.
  `base` is the config that made the encoder: a checkpoint is read without it.
  """
  found = config.copy_and_resolve_references().unlock()
  found.method = 'finetune'
  found.base = encoder.config.copy_and_resolve_references()
  found.net = net
  for name in ('classes', 'layers', 'timestep', 'grid'):
    found[name] = getattr(info, name)
  found.deviation = bool(info.deviation)
  found.steps = steps_of(config, images)
  return found.lock()


def prepare(
  config: ConfigDict,
  encoder: Encoder,
  info: HeadInfo,
  net: ConfigDict,
  images: int,
) -> tuple[ConfigDict, Tuning]:
  """What will be trained; ValueError, before anything runs, where it cannot."""
  check(config)
  resolved = resolve(config, encoder, info, net, images)
  size_px, channels = encoder.info.size_px, encoder.info.channels
  t = method.tuning(METHODS, resolved, size_px, channels)
  method.method_of(t, resolved)
  make_schedule(resolved.optim, resolved.steps)
  mesh = devices.make_mesh()
  train.check_batches(resolved, max(images, resolved.batch_size), mesh)
  return resolved, t


def tune(
  config: ConfigDict,
  encoder: Encoder,
  head: SavedHead,
  known: Labelled,
  workdir: str,
) -> Tuned:
  """Trains encoder and head on, or goes on where a stopped run was.

  head: fitted on the frozen encoder, which training starts from.
  """
  images = len(known.train)
  resolved, t = prepare(config, encoder, head.info, net_of(head), images)
  own = method.method_of(t, resolved)
  ds = known.dataset
  before = dataclasses.replace(encoder.info, path=None)
  rows = np.concatenate([known.train, known.val])
  info = EncoderInfo(
    size_px=encoder.info.size_px,
    channels=encoder.info.channels,
    fingerprint=ds.fingerprint,
    split=known.split,
    split_hash=data.split_hash(ds, known.split),
    facts={
      **own.facts,
      'base': before.to_json(),
      'rows_sha256': hashlib.sha256(rows.tobytes()).hexdigest(),
    },
  )
  job = train.Job(
    own,
    resolved,
    resolved.steps,
    ds,
    known.train,
    lambda: _side(known, t.classes, config.balanced),
    Metadata(files.plain(resolved), info.to_json()),
    lambda mesh, writer: _watch(t, resolved, known, mesh, writer),
    lambda: _start(t, encoder, head, resolved.seed),
    config.patience,
  )
  done = train.train(job, workdir)
  place, step = _best(workdir, done)
  tuned = encoders.load_encoder(place)
  return Tuned(
    tuned,
    _head_of(tuned, head),
    place,
    step,
    dict(done.evaluated),
    done.parameters,
  )


def _side(
  known: Labelled, classes: int, balanced: bool
) -> dict[str, np.ndarray]:
  """Label and weight of each image (N,); both 0 where it is not trained on."""
  label = np.zeros(len(known.labels), np.int32)
  weight = np.zeros(len(known.labels), np.float32)
  y = known.labels[known.train]
  label[known.train] = y
  weight[known.train] = class_weights(balanced, y, classes)[y]
  return {'label': label, 'weight': weight}


def _start(
  t: Tuning, encoder: Encoder, head: SavedHead, seed: int
) -> tuple[Any, Any]:
  """Params and extra to begin with: the encoder's weights and the head's."""
  first = method.initial(
    t,
    encoder.variables,
    {name: jnp.asarray(x[0]) for name, x in head.params.items()},
    jnp.asarray(head.shift, jnp.float32),
    jnp.asarray(head.scale, jnp.float32),
    stream(jax.random.key(seed), 'lora'),
  )
  return jax.device_get(first)


def logits_fn(t: Tuning) -> Callable:
  """Compiles (variables, images, seeds, key, t) -> {'logits': (b, k)}."""

  @jax.jit
  def fn(variables: Any, images: Any, seeds: Any, key: Any, level: Any) -> Any:
    keys = features.image_keys(key, seeds)
    return {'logits': method.logits(t, variables, images, keys, level)}

  return fn


def _watch(
  t: Tuning,
  config: ConfigDict,
  known: Labelled,
  mesh: jax.sharding.Mesh,
  writer: log.Writer,
) -> Callable[[TrainState, int], dict[str, float]]:
  """Returns watch(state, step) -> scores of the validation images.

  val_loss is the cross-entropy at the best temperature, as the classifier will
  be calibrated: a network that is only too sure of itself is not stopped.
  """
  rows, labels = known.val, known.labels[known.val]
  said_by = logits_fn(t)
  size = -(-config.eval_batch_size // mesh.size) * mesh.size
  keys = features.noise_keys(config.seed, config.draws, mesh)
  frozen = jax.jit(
    lambda params, extra: method.frozen(t, params, extra),
    out_shardings=devices.replicated(mesh),
  )

  def watch(state: TrainState, step: int) -> dict[str, float]:
    variables = frozen(state.params, state.extra)
    shown = features.batches(known.dataset.images, rows, size, mesh)
    said = np.concatenate(
      [
        found['logits'][:valid]
        for valid, found in features.passes(
          said_by, variables, shown, keys, t.timestep, mesh
        )
      ]
    )
    temperature = calibration.fit_temperature(said, labels)
    probs = calibration.softmax(said, temperature)
    right = probs[np.arange(len(labels)), labels]
    found = {
      'val_loss': float(-np.log(np.maximum(right, 1e-12)).mean()),
      **{
        f'val_{name}': metrics.value(name, labels, probs)
        for name in metrics.HEADLINE
      },
    }
    writer.scalars(step, found)
    log.get_logger().info(
      'Step %d: validation loss %.4f, accuracy %.1f %%.',
      step,
      found['val_loss'],
      100 * found['val_accuracy'],
    )
    return found

  return watch


def _best(workdir: str, done: train.Done) -> tuple[str, int]:
  """Folder and number of the step of the lowest validation loss."""
  folder = os.path.join(files.absolute(workdir), 'checkpoints')
  kept = [step for step in sealed_steps(folder) if step in done.evaluated]
  best = min(kept, key=lambda step: (done.evaluated[step], step))
  return os.path.join(folder, str(best)), best


def _head_of(tuned: Encoder, first: SavedHead) -> SavedHead:
  """The head of a fine-tuned encoder, as a file holds it."""
  settings = {k: v for k, v in first.info.settings.items() if k != 'strength'}
  info = dataclasses.replace(
    first.info,
    encoder=tuned.info.to_json(),
    checkpoint=tuned.info.path,
    settings=settings,
  )
  return head_beside(tuned, info)


def head_beside(tuned: Encoder, info: HeadInfo) -> SavedHead:
  """The head that stands beside a fine-tuned encoder's weights."""
  held = devices.fetch(
    {k: tuned.variables[k] for k in ('head', 'shift', 'scale')}
  )
  return SavedHead(
    {name: np.asarray(x)[None] for name, x in held['head'].items()},
    np.asarray(held['shift']),
    np.asarray(held['scale']),
    info,
  )

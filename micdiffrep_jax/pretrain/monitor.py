"""What a pretraining run shows of itself while it trains.

Three evaluators and a picture. Validation images only: the test part is never
touched here.
"""

from collections.abc import Callable, Iterator
import functools
import itertools
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.draw import grids
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.encoders.cache import make_view_fn
from micdiffrep_jax.heads.matrix import pool
from micdiffrep_jax.methods import Method
from micdiffrep_jax.pretrain import readings
from micdiffrep_jax.run import devices, log
from micdiffrep_jax.run.keys import stream
from micdiffrep_jax.scores.metrics import effective_rank, kept_share

# How the second view differs; half-ranges, as config.augment has them.
VIEW = ConfigDict(
  {
    'flip': 0.5,
    'rotate_deg': 10.0,
    'scale': 0.1,
    'shift': 0.05,
    'brightness': 0.1,
    'contrast': 0.2,
  }
)


class Subject(NamedTuple):
  """What is watched: a method in training, its images, where it is computed.

  info: of the encoder that it is to be; split: of the data set; seed: of the
  run; batch_size: that the devices share.
  """

  method: Method
  info: encoders.EncoderInfo
  dataset: data.Dataset
  split: str
  seed: int
  mesh: jax.sharding.Mesh
  batch_size: int

  def key(self) -> jax.Array:
    """The monitor's own key, on all devices."""
    root = jax.random.key(self.seed)
    return devices.replicate(stream(root, 'monitor'), self.mesh)

  def batches(self, rows: np.ndarray) -> Iterator[features.Batch]:
    """Rows of the data set, on the devices."""
    images = self.dataset.images
    return features.batches(images, rows, self.batch_size, self.mesh)

  def encoder(self, variables: Any) -> encoders.Encoder:
    """The method as it is now."""
    return encoders.Encoder(self.method, variables, ConfigDict(), self.info)


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
  """`count` rows at equal distances: the same ones at every call."""
  if len(rows) <= count:
    return rows
  return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def validation_loss(
  subject: Subject, rows: np.ndarray
) -> Callable[[Any], dict[str, float]]:
  """val_loss and val_loss_t*: fixed images, timesteps and noise."""
  key = subject.key()

  @jax.jit
  def validate(variables: Any, images: Any, seeds: Any, weights: Any) -> Any:
    keys = features.image_keys(key, seeds)
    return subject.method.validate(variables, images, keys, weights)

  def evaluate(variables: Any) -> dict[str, float]:
    found = features.weighted_means(
      validate(variables, batch.images, batch.seeds, batch.weights)
      for batch in subject.batches(rows)
    )
    return {f'val_{name}': value for name, value in found.items()}

  return evaluate


def feature_spread(
  subject: Subject, rows: np.ndarray, t: int
) -> Callable[[Any], tuple[float, float]]:
  """Of the averaged output layer: effective rank, and what two views share.

  A loss may fall while features collapse, or while images are learnt by heart.
  No label is read.
  """
  method, mesh, key = subject.method, subject.mesh, subject.key()
  layer = method.output or method.layers[-1]
  as_is = features.make_feature_fn(method, (layer,), 1)
  changed = make_view_fn(method, (layer,), 1, VIEW)
  other = devices.replicate(stream(key, 'view'), mesh)

  def read(feature_fn: Callable, variables: Any, key: Any) -> np.ndarray:
    shown = subject.batches(rows)
    found = [
      means[layer][:valid]
      for valid, means in features.passes(
        feature_fn, variables, shown, [key], t, mesh
      )
    ]
    return np.concatenate(found).reshape(len(rows), -1)

  def spread(variables: Any) -> tuple[float, float]:
    first = read(as_is, variables, key)
    second = read(changed, variables, other)
    return effective_rank(first), kept_share(first, second)

  return spread


def quick_probe(
  subject: Subject, images: int, t: int
) -> Callable[[Any], readings.QuickProbe | None]:
  """What a ridge classifier makes of a few frozen features; None without any.

  Features peak before samples do. images: how many of each part.
  """
  ds, method = subject.dataset, subject.method
  labels = data.labels(ds)
  rows = {}
  for part in ('train', 'val'):
    whole = data.rows(ds, subject.split, part)
    rows[part] = _spread(whole[labels[whole] >= 0], images)
  feature_fn = features.make_feature_fn(method, method.layers, 2)

  def matrix(variables: Any, part: str) -> np.ndarray:
    found = features.extract(
      subject.encoder(variables),
      ds,
      rows[part],
      t=t,
      grid=2,
      batch_size=subject.batch_size,
      feature_fn=feature_fn,
      desc='quick probe',
    )
    pooled = [pool(x, 2) for x in found.values()]
    return np.concatenate(pooled, axis=1).astype(np.float32)

  def evaluate(variables: Any) -> readings.QuickProbe | None:
    if not all(map(len, rows.values())):
      return None
    x = matrix(variables, 'train')
    scaler = StandardScaler().fit(x)
    probe = RidgeClassifierCV(
      alphas=np.logspace(1, 5, 5), class_weight='balanced'
    )
    probe.fit(scaler.transform(x), labels[rows['train']])
    guess = probe.predict(scaler.transform(matrix(variables, 'val')))
    return readings.score(
      labels[rows['val']],
      guess,
      data.groups(ds)[rows['val']],
      len(ds.classes),
      len(rows['train']),
    )

  return evaluate


def samples(subject: Subject, count: int) -> Callable[[Any], np.ndarray]:
  """frozen variables -> a picture (h, w, c) uint8 of `count` samples."""
  method, key = subject.method, subject.key()
  assert method.sample is not None
  sample = method.sample

  @jax.jit
  def draw(variables: Any) -> jax.Array:
    return sample(variables, jax.random.split(stream(key, 'samples'), count))

  def picture(variables: Any) -> np.ndarray:
    return grids.make_grid(grids.to_uint8(devices.fetch(draw(variables))))

  return picture


def make(
  method: Method,
  config: ConfigDict,
  dataset: data.Dataset,
  info: encoders.EncoderInfo,
  mesh: jax.sharding.Mesh,
  writer: log.Writer,
) -> Callable[[Any, int], dict[str, float]]:
  """Returns watch(state, step) -> metrics, which it also logs.

  config: of the run. What is measured, config.monitor says. The log also has
  the quick probe of initial weights, and an interval of each.
  """
  settings = config.monitor
  batch_size = -(-settings.batch_size // mesh.size) * mesh.size
  split = config.data.split
  subject = Subject(method, info, dataset, split, config.seed, mesh, batch_size)
  rows = _spread(data.rows(dataset, split, 'val'), settings.images)
  losses = validation_loss(subject, rows) if len(rows) else lambda _: {}
  read = reader(subject, rows, settings)
  picture = None
  if settings.samples and method.sample is not None:
    picture = samples(subject, settings.samples)
  frozen = jax.jit(method.frozen, out_shardings=devices.replicated(mesh))

  @functools.cache
  def read_initial() -> readings.Reading:
    # Computed, not stored: a resumed run has it too.
    first = encoders.random_encoder(subject.encoder(None), config.seed)
    return read(first.variables)

  def watch(state: Any, step: int) -> dict[str, float]:
    variables = frozen(state.params, state.extra)
    metrics = losses(variables)
    now, initial = read(variables), read_initial()
    metrics |= readings.metrics(now, initial)
    readings.warn_of_collapse(now, initial)
    if picture:
      writer.image(step, 'samples', picture(variables))
    writer.scalars(step, metrics)
    log.get_logger().info(
      '%s', readings.line(step, metrics.get('val_loss'), now, initial)
    )
    return metrics

  return watch


def reader(
  subject: Subject, rows: np.ndarray, settings: ConfigDict
) -> Callable[[Any], readings.Reading]:
  """frozen variables -> what is read of their features; as config.monitor says.

  rows: validation images whose rank is taken, where there are several.
  """
  method = subject.method
  t = min(settings.probe_timestep, method.timesteps - 1)
  ranked = len(rows) > 1 and bool(method.layers)
  spread = feature_spread(subject, rows, t) if ranked else None
  wanted = settings.probe_images
  probe = quick_probe(subject, wanted, t) if wanted else None

  def read(variables: Any) -> readings.Reading:
    rank, kept = spread(variables) if spread else (None, None)
    found = probe(variables) if probe else None
    return readings.Reading(rank, found, kept)

  return read


def last_metrics(workdir: str) -> dict[str, float]:
  """The newest value of every metric of a run, from its metrics.jsonl."""
  found: dict[str, float] = {}
  for line in log.read_metrics(workdir):
    found |= line
  drop = ('step', 'images_per_s', 'images_seen')
  return {k: v for k, v in found.items() if k not in drop}


def training_s(workdir: str, images_seen: int) -> float | None:
  """Seconds that training took up to `images_seen`, over all of its starts.

  From the speeds in metrics.jsonl, so without compilation and evaluation. A
  stretch without one, as each start has first, counts at the median speed; what
  was lost by a kill and done again counts once. None where no speed is known.
  """
  marks = [(0.0, 0.0)]
  for line in log.read_metrics(workdir):
    if 'images_per_s' in line and line['images_seen'] <= images_seen:
      marks.append((line['images_seen'], line['images_per_s']))
  speeds = [speed for _, speed in marks if speed]
  if not speeds:
    return None
  marks.append((images_seen, 0.0))
  usual = float(np.median(speeds))
  return sum(
    (seen - before) / (speed or usual)
    for (before, _), (seen, speed) in itertools.pairwise(marks)
  )

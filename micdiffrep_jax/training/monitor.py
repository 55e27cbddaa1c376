"""What a pretraining run shows of itself while it trains.

Validation images only: the test part is never touched here.
"""

from collections.abc import Callable
import functools
import itertools
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

from micdiffrep_jax import encoders, features, log, sharding
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.generation import grids
from micdiffrep_jax.keys import stream
from micdiffrep_jax.methods import Method
from micdiffrep_jax.stats.rank import effective_rank
from micdiffrep_jax.training import readings


class Clock:
  """Images per second between readings, without what stops the clock."""

  def __init__(self, batch_size: int):
    self._batch_size = batch_size
    self._mark: tuple[int, float] | None = None
    self._speeds: list[float] = []

  def restart(self, step: int) -> None:
    """Starts to count at `step`."""
    self._mark = (step, time.perf_counter())

  def images_per_s(self, step: int) -> float:
    """Since the last reading; the first covers compilation and is 0."""
    now, mark = time.perf_counter(), self._mark
    self._mark = (step, now)
    if mark is None or step <= mark[0]:
      return 0.0
    self._speeds.append((step - mark[0]) * self._batch_size / (now - mark[1]))
    return self._speeds[-1]

  def median(self) -> float:
    """Median of all readings; 0 without any."""
    return float(np.median(self._speeds)) if self._speeds else 0.0


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
  """`count` rows at equal distances: the same ones at every call."""
  if len(rows) <= count:
    return rows
  return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def make(
  method: Method,
  config: ConfigDict,
  dataset: data.Dataset,
  info: dict,
  mesh: jax.sharding.Mesh,
  writer: log.Writer,
) -> Callable[[Any, int], dict[str, float]]:
  """Returns watch(state, step) -> metrics, which it also logs.

  val_loss and val_loss_t* (fixed images, timesteps and noise), probe_accuracy
  (balanced, of a ridge classifier on a few frozen features: features peak
  before samples do), feature_rank (effective, of the averaged output layer, and
  feature_rank_init with initial weights: a loss may fall while features
  collapse), and a picture of samples. The log also has the quick probe of
  initial weights, and an interval of each.
  """
  split = config.data.split
  val = data.rows(dataset, split, 'val')
  labels = data.labels(dataset)
  everywhere = sharding.replicated(mesh)
  key = sharding.replicate(stream(jax.random.key(config.seed), 'monitor'), mesh)
  frozen = jax.jit(method.frozen, out_shardings=everywhere)
  batch_size = -(-config.monitor.batch_size // mesh.size) * mesh.size

  @jax.jit
  def validate(variables, images, seeds, weights):
    keys = features.image_keys(key, seeds)
    return method.validate(variables, images, keys, weights)

  @jax.jit
  def draw(variables):
    keys = jax.random.split(stream(key, 'samples'), config.monitor.samples)
    return method.sample(variables, keys)

  feature_fn = features.make_feature_fn(method, method.layers, 2)
  level = min(config.monitor.probe_timestep, method.timesteps - 1)
  watched = _spread(val, config.monitor.images)

  def batches_of(rows):
    for start in range(0, len(rows), batch_size):
      part = rows[start : start + batch_size]
      weights = (np.arange(batch_size) < len(part)).astype(np.float32)
      images = dataset.images[np.resize(part, batch_size)]
      yield (
        len(part),
        features.place_whole(
          (images, features.image_seeds(images), weights), mesh
        ),
      )

  @jax.jit
  def outputs(variables, images, seeds, t):
    keys = features.image_keys(key, seeds)
    taps = method.features(variables, images, keys, t)
    return features.pool_map(taps[method.output or method.layers[-1]], 1)

  def rank(variables):
    t = sharding.replicate(np.int32(level), mesh)
    found = [
      sharding.fetch(outputs(variables, *batch[:2], t))[:count]
      for count, batch in batches_of(watched)
    ]
    return effective_rank(np.concatenate(found).reshape(len(watched), -1))

  def validation_loss(variables):
    sums: dict[str, np.ndarray] = {}
    for _, batch in batches_of(watched):
      found = sharding.fetch(validate(variables, *batch))
      for name, pair in found.items():
        sums[name] = sums.get(name, np.zeros(2)) + np.array(pair)
    return {f'val_{k}': s[0] / s[1] for k, s in sums.items() if s[1] > 0}

  def quick_probe(variables):
    encoder = encoders.Encoder(method, variables, config, info)
    fit_rows = data.rows(dataset, split, 'train')
    fit_rows = _spread(
      fit_rows[labels[fit_rows] >= 0], config.monitor.probe_images
    )
    test_rows = _spread(val[labels[val] >= 0], config.monitor.probe_images)
    if not len(fit_rows) or not len(test_rows):
      return None
    x = [
      np.concatenate(
        [
          features.pool(f, 2)
          for f in features.extract(
            encoder,
            dataset,
            rows,
            t=level,
            grid=2,
            batch_size=batch_size,
            feature_fn=feature_fn,
            desc='quick probe',
          ).values()
        ],
        axis=1,
      ).astype(np.float32)
      for rows in (fit_rows, test_rows)
    ]
    scaler = StandardScaler().fit(x[0])
    probe = RidgeClassifierCV(
      alphas=np.logspace(1, 5, 5), class_weight='balanced'
    )
    probe.fit(scaler.transform(x[0]), labels[fit_rows])
    return readings.score(
      labels[test_rows],
      probe.predict(scaler.transform(x[1])),
      data.groups(dataset)[test_rows],
      len(dataset.classes),
      len(fit_rows),
    )

  def read(variables):
    enough = len(watched) > 1 and method.layers
    return readings.Reading(
      rank(variables) if enough else None,
      quick_probe(variables) if config.monitor.probe_images else None,
    )

  @functools.cache
  def read_initial():
    # Computed, not stored: a resumed run has it too.
    encoder = encoders.Encoder(method, None, config, info)
    return read(encoders.random_encoder(encoder, config.seed).variables)

  def watch(state, step):
    variables = frozen(state.params, state.extra)
    metrics = validation_loss(variables) if len(val) else {}
    now, initial = read(variables), read_initial()
    metrics |= readings.metrics(now, initial)
    ranked = now.rank is not None
    if ranked and readings.may_collapse(now.rank, initial.rank):
      log.get_logger().warning('%s', readings.warning(now.rank, initial.rank))
    if config.monitor.samples and method.sample is not None:
      images = sharding.fetch(draw(variables))
      writer.image(step, 'samples', grids.make_grid(grids.to_uint8(images)))
    writer.scalars(step, metrics)
    log.get_logger().info(
      '%s', readings.line(step, metrics.get('val_loss'), now, initial)
    )
    return metrics

  return watch


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

"""Generated images against the real ones: copies, quality, loss by timestep.

Every number of quality holds in the feature space it was worked out in, and
depends on the number of images; compare it with the same number for real ones.
Dimension letters: n m images, h w pixels, c channels, d features.
"""

from collections.abc import Iterable, Iterator
import csv
import dataclasses
import io
from typing import Any, NamedTuple

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np
from scipy import stats

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.draw import grids
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.methods import Method
from micdiffrep_jax.run import devices, log
from micdiffrep_jax.run.keys import stream
from micdiffrep_jax.run.records import Record

_BLOCK = 2048  # images compared at once
_CHANCE = 0.05  # the probability below which closeness is no accident


class Real(NamedTuple):
  """Rows of the dataset that samples are compared with."""

  dataset: data.Dataset
  train: np.ndarray  # (m,) all that the model was trained on
  val: np.ndarray  # (m,)


class FeatureSets(NamedTuple):
  """Features (., d) of three sets of images, from one feature space."""

  generated: np.ndarray
  val: np.ndarray
  train: np.ndarray


class Space(NamedTuple):
  """Frozen features of an encoder; train_rows are those of sets.train."""

  name: str
  sets: FeatureSets
  train_rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scores(Record):
  """How like the validation images a set of images is."""

  frechet_distance: float
  kernel_distance: float
  precision: float
  recall: float


@dataclasses.dataclass(frozen=True)
class Comparison(Record):
  """The scores of generated images, and of as many real ones: the floor.

  Attributes:
    features: the number of them.
    images: how many there are in each of the sets generated, val and floor.
    generated: scores of the generated images.
    floor: scores of training images: no generator can be asked for more.
  """

  features: int
  images: dict[str, int]
  generated: Scores
  floor: Scores


class Nearest(NamedTuple):
  """The nearest reference of each query: distance (n,), row (n,) int64."""

  distance: np.ndarray
  row: np.ndarray


@dataclasses.dataclass(frozen=True)
class Memorisation(Record):
  """Whether samples lie closer to training images than unseen images do.

  Attributes:
    share_close: of samples closer than `threshold`.
    share_expected: the same share of unseen images, by definition.
    warn_share: the share above which, beyond chance, `warning` is set.
    warning: whether copies are likely.
    threshold: a percentile of the distances of unseen images.
    median_distance: of samples.
    median_distance_val: of unseen images.
    space: the name of the features; None for pixels.
  """

  share_close: float
  share_expected: float
  warn_share: float
  warning: bool
  threshold: float
  median_distance: float
  median_distance_val: float
  space: str | None = None


class Copies(NamedTuple):
  """The check for copies in one space, and each sample's nearest image."""

  found: Memorisation
  nearest: Nearest


def _check(a: np.ndarray, b: np.ndarray, least: int) -> None:
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise ValueError(
      f'Features of shapes {a.shape} and {b.shape} cannot be compared; both '
      'must be (images, features) from one feature space.'
    )
  if min(len(a), len(b)) < least:
    raise ValueError(
      f'{len(a)} and {len(b)} images given; at least {least} of each are '
      'needed. Set --config.images.'
    )


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
  """Frechet distance of two Gaussians fitted to a (n, d) and b (m, d).

  On Inception features it is FID (Heusel et al. 2017). It is biased upward,
  the more the fewer images: compare only equal n. Raises ValueError for shapes
  that do not match.
  """
  _check(a, b, 2)
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)

  def factor(x: np.ndarray) -> np.ndarray:
    """F with F^T F = the covariance, at most (d, d)."""
    root = np.sqrt(len(x) - 1)
    return np.asarray(np.linalg.qr((x - x.mean(0)) / root, mode='r'))

  f_a, f_b = factor(a), factor(b)
  # tr sqrt(A B) is the sum of the singular values of F_a F_b^T: no root of a
  # matrix, so fewer images than features, whose covariance is singular, do no
  # harm.
  cross = np.linalg.svd(f_a @ f_b.T, compute_uv=False).sum()
  mean = np.sum((a.mean(0) - b.mean(0)) ** 2)
  return float(mean + np.sum(f_a**2) + np.sum(f_b**2) - 2 * cross)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
  """Squared MMD of a (n, d) and b (m, d), kernel (x y / d + 1)^3, unbiased.

  On Inception features it is KID (Binkowski et al. 2018). Unbiased, so it may
  be a little below 0 for equal distributions.
  """
  _check(a, b, 2)
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)

  def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3

  def within(x: np.ndarray) -> float:
    k = kernel(x, x)
    return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

  return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Squared Euclidean distances (n, m) of rows of a and of b."""
  cross = a @ b.T
  square = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)[None]
  return np.maximum(square - 2 * cross, 0)


def precision_recall(
  real: np.ndarray, generated: np.ndarray, k: int = 3
) -> tuple[float, float]:
  """Share of generated images on the real manifold, and the reverse.

  A manifold is the union of balls around its images, each reaching to its k-th
  neighbour (Kynkaanniemi et al. 2019). real (n, d), generated (m, d).
  """
  _check(real, generated, k + 1)
  real = np.asarray(real, np.float64)
  generated = np.asarray(generated, np.float64)

  def radii(x: np.ndarray) -> np.ndarray:
    # Index k, as the nearest of all is the image itself.
    return np.partition(squared_distances(x, x), k, axis=1)[:, k]

  between = squared_distances(real, generated)
  precision = (between <= radii(real)[:, None]).any(axis=0).mean()
  recall = (between <= radii(generated)[None]).any(axis=1).mean()
  return float(precision), float(recall)


def on_scale(sets: FeatureSets) -> FeatureSets:
  """Features on the scale of the training images' mean and deviation.

  A feature that real images hardly have, such as a channel behind a ReLU, would
  outweigh all others where generated ones have it: its deviation counts as a
  tenth of the average one.
  """
  mean, deviation = sets.train.mean(0), sets.train.std(0)
  least = max(0.1 * float(deviation.mean()), 1e-6)
  scale = np.maximum(deviation, least)
  return FeatureSets(*((x - mean) / scale for x in sets))


def compare(sets: FeatureSets) -> Comparison:
  """Generated and training images, each against validation, on one scale.

  Of `train` the same number as of `generated` is taken, evenly spread.
  """
  generated, val, train = sets
  take = np.linspace(0, len(train) - 1, min(len(generated), len(train)))

  def scores(x: np.ndarray) -> Scores:
    return Scores(
      frechet_distance(x, val),
      kernel_distance(x, val),
      *precision_recall(val, x),
    )

  counts = {'generated': len(generated), 'val': len(val), 'floor': len(take)}
  return Comparison(
    generated.shape[1],
    counts,
    scores(generated),
    scores(train[take.astype(int)]),
  )


def nearest(queries: np.ndarray, blocks: Iterable[np.ndarray]) -> Nearest:
  """Nearest neighbours among all blocks, rows counted through them.

  queries (n, d); blocks of (m_i, d). The distance is the root mean square over
  the d features, in float32; ties go to the lower row. Raises ValueError where
  there are no references.
  """
  queries = np.asarray(queries, np.float32)
  centre = queries.mean(0)  # smaller numbers: less is lost to cancellation
  centred = queries - centre
  best = np.full(len(queries), np.inf, np.float32)
  row = np.zeros(len(queries), np.int64)
  match = np.zeros_like(queries)
  seen = 0
  for block in blocks:
    block = np.asarray(block, np.float32)
    square = squared_distances(centred, block - centre)
    at = square.argmin(axis=1)
    found = square[np.arange(len(queries)), at]
    better = found < best
    best[better], row[better] = found[better], seen + at[better]
    match[better] = block[at[better]]
    seen += len(block)
  if not seen:
    raise ValueError('There are no training images to compare with.')
  # Again and directly, so that the distance to an exact copy is exactly 0.
  rms = np.sqrt(np.mean((queries - match) ** 2, axis=1))
  return Nearest(rms, row)


def check_memorisation(percentile: float, warn_share: float) -> None:
  """Raises ValueError for what is no percentile or no share."""
  if not 0 < percentile < 100 or not 0 <= warn_share <= 1:
    raise ValueError(
      f'percentile={percentile} must be in (0, 100) and '
      f'warn_share={warn_share} in [0, 1]. '
      'Set --config.memorisation.percentile and .warn_share.'
    )


def memorisation(
  sample: np.ndarray,
  val: np.ndarray,
  percentile: float,
  warn_share: float,
  space: str | None = None,
) -> Memorisation:
  """Whether samples lie closer to training images than unseen images do.

  sample (n,), val (m,): distances to the nearest training image. A sample is
  called close where its distance is under the given percentile (0 to 100) of
  val's: of unseen images that is the share percentile / 100 by definition, so
  a larger share of samples speaks for copies, and a warning is given where it
  is larger beyond chance, by Fisher's exact test against val: a few samples
  would often warn of nothing. Blurred samples are close in pixels without being
  copies: look at the figure.
  """
  check_memorisation(percentile, warn_share)
  threshold = float(np.percentile(val, percentile))
  close, close_val = sample < threshold, val < threshold
  share = float(close.mean())
  table = [[x.sum(), (~x).sum()] for x in (close, close_val)]
  p = stats.fisher_exact(table, alternative='greater').pvalue
  return Memorisation(
    share_close=share,
    share_expected=percentile / 100,
    warn_share=warn_share,
    warning=bool(share > warn_share and p < _CHANCE),
    threshold=threshold,
    median_distance=float(np.median(sample)),
    median_distance_val=float(np.median(val)),
    space=space,
  )


def evenly(rows: np.ndarray, count: int) -> np.ndarray:
  """At most `count` rows at equal distances; 0 takes all."""
  if not count or len(rows) <= count:
    return rows
  return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def _pixels(images: np.ndarray) -> np.ndarray:
  """uint8 (n, h, w, c) -> (n, d) float32 in [0, 1]."""
  return images.reshape(len(images), -1).astype(np.float32) / 255


def _blocks(real: Real) -> Iterator[np.ndarray]:
  starts = range(0, len(real.train), _BLOCK)
  for start in log.progress(starts, desc='nearest training image'):
    yield _pixels(real.dataset.images[real.train[start : start + _BLOCK]])


def layer_of(config: ConfigDict, encoder: encoders.Encoder) -> str:
  """The layer of the sub-config `features`, or what stands for an image."""
  method = encoder.method
  return config.layer or method.output or method.layers[-1]


def feature_space(
  encoder: encoders.Encoder,
  real: Real,
  generated: np.ndarray,
  config: ConfigDict,
  batch_size: int,
) -> Space:
  """Features of generated (n, h, w, c) uint8, validation and training images.

  config: the sub-config `features`. Averaged over the image and put on the
  scale of the training images.
  """
  layer = layer_of(config, encoder)
  rows = evenly(real.train, config.train_images)
  (timestep,) = features.timesteps_of(encoder.method, (config.timestep,))
  feature_fn = features.make_feature_fn(encoder.method, (layer,), 1)

  def extract(dataset: data.Dataset, rows: np.ndarray, desc: str) -> np.ndarray:
    found = features.extract(
      encoder,
      dataset,
      rows,
      (layer,),
      timestep,
      grid=1,
      batch_size=batch_size,
      feature_fn=feature_fn,
      desc=f'features of {desc}',
    )
    return found[layer].reshape(len(rows), -1).astype(np.float32)

  drawn = real.dataset._replace(path='samples', images=generated)
  sets = FeatureSets(
    extract(drawn, np.arange(len(generated)), 'samples'),
    extract(real.dataset, real.val, 'validation images'),
    extract(real.dataset, rows, 'training images'),
  )
  name = f'{layer} at t = {timestep}'
  if config.checkpoint:
    name = f'{config.checkpoint}: {name}'
  return Space(name, on_scale(sets), rows)


def find_copies(
  real: Real,
  generated: np.ndarray,
  space: Space,
  percentile: float,
  warn_share: float,
) -> dict[str, Copies]:
  """The check for copies in pixels and in frozen features; warns of them.

  generated (n, h, w, c) uint8. Distances are root mean squares: of pixels as
  shares of the full range, of features in standard deviations.
  """
  n, sets = len(generated), space.sets
  both = np.concatenate([generated, real.dataset.images[real.val]])
  pixels = nearest(_pixels(both), _blocks(real))
  feats = nearest(np.concatenate([sets.generated, sets.val]), [sets.train])
  copies = {}
  for kind, near, rows, name in (
    ('pixels', pixels, real.train, None),
    ('features', feats, space.train_rows, space.name),
  ):
    sample, val = near.distance[:n], near.distance[n:]
    found = memorisation(sample, val, percentile, warn_share, name)
    copies[kind] = Copies(found, Nearest(sample, rows[near.row[:n]]))
    if found.warning:
      log.get_logger().warning(
        'Memorisation, in %s: %.0f %% of the samples lie closer to a training '
        'image than %.0f %% of unseen images do (%.0f %% expected). Look at '
        'nearest.png before giving samples or weights away.',
        kind,
        100 * found.share_close,
        100 - percentile,
        percentile,
      )
  return copies


def nearest_figure(
  generated: np.ndarray,
  dataset: data.Dataset,
  copies: dict[str, Copies],
  columns: int,
) -> np.ndarray:
  """Each sample above its nearest training images; '<' marks the close ones."""
  n = len(generated)
  rows, captions = [('sample', generated)], [[str(i) for i in range(n)]]
  for kind, (found, near) in copies.items():
    rows.append((f'by {kind}', dataset.images[near.row[:n]]))
    captions.append(
      [
        f'{x:.3f}' + (' <' if x < found.threshold else '')
        for x in near.distance[:n]
      ]
    )
  return grids.figure(rows, captions, columns)


def save_nearest(
  path: str, dataset: data.Dataset, copies: dict[str, Copies]
) -> None:
  """A line per sample: nearest training image by each space, and how near."""
  table = io.StringIO()
  writer = csv.writer(table)
  writer.writerow(
    ['image', *(f'{kind}_{x}' for kind in copies for x in ('id', 'rms'))]
  )
  ids = dataset.manifest['id']
  found = [c.nearest for c in copies.values()]
  for i in range(len(found[0].row)):
    cells = [
      x for near in found for x in (ids[near.row[i]], f'{near.distance[i]:.5f}')
    ]
    writer.writerow([i, *cells])
  epath.Path(path).write_text(table.getvalue())


def external_sets(path: str, images: int) -> FeatureSets:
  """Features of another network from an npz, on the scale of its `train`.

  Raises ValueError if they do not fit.
  """
  with np.load(path) as file:
    missing = set(FeatureSets._fields) - set(file.files)
    if missing:
      raise ValueError(
        f'{path} lacks the arrays {sorted(missing)}; it has {file.files}. '
        'Mend it, or set --config.quality.external= to do without.'
      )
    sets = FeatureSets(
      *(np.asarray(file[k], np.float64) for k in FeatureSets._fields)
    )
  count = len(sets.generated)
  if count != images:
    raise ValueError(
      f'{path} has features of {count} generated images, but {images} are '
      f'drawn. Set --config.images={count}.'
    )
  return on_scale(sets)


def loss_by_timestep(
  encoder: encoders.Encoder,
  dataset: data.Dataset,
  rows: np.ndarray,
  batch_size: int,
  seed: int,
  draws: int = 4,
) -> dict[str, float]:
  """The unweighted loss on dataset rows, whole and by tenths of the timesteps.

  Each image is noised `draws` times, to a random step each time.
  """
  mesh = devices.make_mesh()
  root = stream(jax.random.key(seed), 'loss')

  method = encoder.method
  assert isinstance(method, Method)  # not a bundle's; sample.check

  @jax.jit
  def evaluate(
    variables: Any,
    images: jax.Array,
    seeds: jax.Array,
    weights: jax.Array,
    draw: jax.Array,
  ) -> dict:
    keys = features.image_keys(jax.random.fold_in(root, draw), seeds)
    return method.validate(variables, images, keys, weights)

  return features.weighted_means(
    evaluate(encoder.variables, x.images, x.seeds, x.weights, draw)
    for x in features.batches(dataset.images, rows, batch_size, mesh)
    for draw in range(draws)
  )

"""Generated images against the real ones: copies, quality, loss by timestep.

Dimension letters: n m images, h w pixels, c channels, d features.
"""

from collections.abc import Iterator
import csv
import io
from typing import Any, NamedTuple

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.draw import grids
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.generate import quality
from micdiffrep_jax.run import devices, log
from micdiffrep_jax.run.keys import stream

_BLOCK = 2048  # images compared at once


class Real(NamedTuple):
  """Rows of the dataset that samples are compared with."""

  dataset: data.Dataset
  train: np.ndarray  # (m,) all that the model was trained on
  val: np.ndarray  # (m,)


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


def feature_sets(
  encoder: encoders.Encoder,
  real: Real,
  generated: np.ndarray,
  config: ConfigDict,
  batch_size: int,
) -> tuple[str, dict[str, np.ndarray]]:
  """The space's name and features (., d) of generated, val and train images.

  config: the sub-config `features`. Averaged over the image and put on the
  scale of the training images.
  """
  layer = config.layer
  feature_fn = features.make_feature_fn(encoder.method, (layer,), 1)

  def extract(dataset, rows, desc):
    found = features.extract(
      encoder,
      dataset,
      rows,
      (layer,),
      config.timestep,
      grid=1,
      batch_size=batch_size,
      feature_fn=feature_fn,
      desc=f'features of {desc}',
    )
    return found[layer].reshape(len(rows), -1).astype(np.float32)

  drawn = real.dataset._replace(path='samples', images=generated)
  train = extract(real.dataset, real.train, 'training images')
  sets = {
    'generated': extract(drawn, np.arange(len(generated)), 'samples'),
    'val': extract(real.dataset, real.val, 'validation images'),
    'train': train,
  }
  mean, deviation = train.mean(0), train.std(0) + 1e-6
  name = f'{layer} at t = {config.timestep}'
  return name, {k: (x - mean) / deviation for k, x in sets.items()}


def memorisation(
  real: Real,
  generated: np.ndarray,
  name: str,
  sets: dict[str, np.ndarray],
  train: np.ndarray,
  config: ConfigDict,
) -> tuple[dict[str, Any], dict[str, quality.Nearest]]:
  """The check of quality.memorisation in pixels and in frozen features.

  generated (n, h, w, c) uint8; `name` and `sets` from feature_sets, `train`
  the rows of its training images. Distances are root mean squares: of pixels
  as shares of the full range, of features in standard deviations. Returns the
  results and the nearest training rows of each sample.
  """
  n = len(generated)
  both = np.concatenate([generated, real.dataset.images[real.val]])
  pixels = quality.nearest(_pixels(both), _blocks(real))
  feats = quality.nearest(
    np.concatenate([sets['generated'], sets['val']]), [sets['train']]
  )
  spaces = {
    'pixels': pixels._replace(row=real.train[pixels.row]),
    'features': feats._replace(row=train[feats.row]),
  }
  results, found = {}, {}
  for space, near in spaces.items():
    results[space] = quality.memorisation(
      near.distance[:n],
      near.distance[n:],
      config.percentile,
      config.warn_share,
    )
    found[space] = quality.Nearest(near.distance[:n], near.row[:n])
    if results[space]['warning']:
      log.get_logger().warning(
        'Memorisation, in %s: %.0f %% of the samples lie closer to a training '
        'image than %.0f %% of unseen images do (%.0f %% expected). Look at '
        'nearest.png before giving samples or weights away.',
        space,
        100 * results[space]['share_close'],
        100 - config.percentile,
        config.percentile,
      )
  results['features']['space'] = name
  return results, found


def nearest_figure(
  generated: np.ndarray,
  dataset: data.Dataset,
  found: dict[str, quality.Nearest],
  thresholds: dict[str, float],
  columns: int,
) -> np.ndarray:
  """Each sample above its nearest training images; '<' marks the close ones."""
  n = len(generated)
  rows, captions = [('sample', generated)], [[str(i) for i in range(n)]]
  for space, near in found.items():
    rows.append((f'by {space}', dataset.images[near.row[:n]]))
    captions.append(
      [
        f'{x:.3f}' + (' <' if x < thresholds[space] else '')
        for x in near.distance[:n]
      ]
    )
  return grids.figure(rows, captions, columns)


def save_nearest(
  path: str, dataset: data.Dataset, found: dict[str, quality.Nearest]
) -> None:
  """A line per sample: nearest training image by each space, and how near."""
  table = io.StringIO()
  writer = csv.writer(table)
  writer.writerow(
    ['image', *(f'{s}_{x}' for s in found for x in ('id', 'rms'))]
  )
  ids = dataset.manifest['id']
  for i in range(len(next(iter(found.values())).row)):
    cells = [
      x for f in found.values() for x in (ids[f.row[i]], f'{f.distance[i]:.5f}')
    ]
    writer.writerow([i, *cells])
  epath.Path(path).write_text(table.getvalue())


def external_sets(path: str, images: int) -> dict[str, np.ndarray]:
  """Features of another network from an npz; ValueError if they do not fit."""
  with np.load(path) as file:
    missing = {'generated', 'val', 'train'} - set(file.files)
    if missing:
      raise ValueError(
        f'{path} lacks the arrays {sorted(missing)}; it has {file.files}. '
        'Mend it, or set --config.quality.external= to do without.'
      )
    sets = {k: file[k] for k in ('generated', 'val', 'train')}
  if len(sets['generated']) != images:
    raise ValueError(
      f'{path} has features of {len(sets["generated"])} generated images, but '
      f'{images} are drawn. Set --config.images={len(sets["generated"])}.'
    )
  return sets


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

  @jax.jit
  def evaluate(variables, images, seeds, weights, draw):
    keys = features.image_keys(jax.random.fold_in(root, draw), seeds)
    return encoder.method.validate(variables, images, keys, weights)

  return features.weighted_means(
    evaluate(encoder.variables, x.images, x.seeds, x.weights, draw)
    for x in features.batches(dataset.images, rows, batch_size, mesh)
    for draw in range(draws)
  )

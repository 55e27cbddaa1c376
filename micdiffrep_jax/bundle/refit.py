"""A head that was chosen and measured, fitted again on all labelled images."""

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.heads import head_file, matrix, table
from micdiffrep_jax.heads.base import Problem
from micdiffrep_jax.heads.head_file import SavedHead
from micdiffrep_jax.run import log


def labelled_rows(ds: data.Dataset, split: str) -> np.ndarray:
  """Labelled rows of all parts of a split; what it excludes stays out."""
  rows = np.concatenate(
    [data.rows(ds, split, part) for part in ('train', 'val', 'test')]
  )
  return rows[data.labels(ds)[rows] >= 0]


def refit(
  head: SavedHead,
  encoder: encoders.Encoder,
  ds: data.Dataset,
  config: ConfigDict,
) -> SavedHead:
  """The same kind of head with the same settings, fitted on every part.

  config: of the probe that chose it. Its temperature stays, as no image is
  left to fit one on. Nothing can be measured on this dataset any more.
  """
  info = head.info
  rows = labelled_rows(ds, config.data.split)
  labels = data.labels(ds)[rows].astype(np.int64)
  k, every = len(info['classes']), np.arange(len(rows))
  log.get_logger().info('Head fitted again on all %d images.', len(rows))
  extracted = features.extract_for_head(
    info, encoder, ds, rows, config.batch_size
  )
  x = head_file.flatten(info, extracted)
  found = matrix.literal(x)
  if info['standardise']:
    found = matrix.standardise(x)
  name = table.name_of(info)
  chosen = {setting: info[setting] for setting in table.HEADS[name].chooses}
  heads = config.heads.copy_and_resolve_references().unlock()
  heads.best_epoch = False  # no image is left to choose it on
  problem = Problem(found, labels, k, every, every[:1])
  (fitted,) = table.fit(name, problem, heads, config.seeds[:1], chosen)
  return SavedHead(fitted.params, found.shift, found.scale, info)

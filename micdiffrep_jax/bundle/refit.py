"""A head that was chosen and measured, fitted again on all labelled images."""

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.heads import classic, head_file, kernel, matrix, trained
from micdiffrep_jax.heads.head_file import Bundle
from micdiffrep_jax.run import log


def labelled_rows(ds: data.Dataset, split: str) -> np.ndarray:
  """Labelled rows of all parts of a split; what it excludes stays out."""
  rows = np.concatenate(
    [data.rows(ds, split, part) for part in ('train', 'val', 'test')]
  )
  return rows[data.labels(ds)[rows] >= 0]


def refit(
  head: Bundle, encoder: encoders.Encoder, ds: data.Dataset, config: ConfigDict
) -> Bundle:
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
  if info['kind'] == 'kernel':
    tried = ((info['gamma'],), (info['strength'],))
    params = kernel.kernel_ridge(
      found, labels, k, every, every[:1], *tried
    ).params
  elif 'strength' in info:
    params = classic.logistic_regression(
      found, labels, k, every, every[:1], (info['strength'],)
    ).params
  else:
    (fitted,) = trained.fit(
      [found],
      labels,
      k,
      [trained.Cell(0, every, config.seeds[0])],
      [trained.Setting(**info['setting'])],
      every[:1],
      trained.options_of(config.heads, info['kind'])._replace(best_epoch=False),
      trained.class_weights(config.heads.balanced, labels, k),
      keep_params=True,
      memory_mb=config.heads.memory_mb,
    )
    assert fitted.params is not None
    params = fitted.params
  return Bundle(params, found.shift, found.scale, info)

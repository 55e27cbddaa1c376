"""A head that was chosen and measured, fitted again on all labelled images."""

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax import encoders, log
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.heads import (
  classic_heads,
  feature_matrix,
  fit_heads,
  kernel_head,
)
from micdiffrep_jax.probing import bundle, probe_suite
from micdiffrep_jax.probing.bundle import Bundle


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
  extracted = bundle.extract(info, encoder, ds, rows, config.batch_size)
  x = bundle.flatten(info, extracted)
  found = feature_matrix.literal(x)
  if info['standardise']:
    found = feature_matrix.standardise(x)
  if info['kind'] == 'kernel':
    tried = ((info['gamma'],), (info['strength'],))
    params = kernel_head.kernel_ridge(
      found, labels, k, every, every[:1], *tried
    ).params
  elif 'strength' in info:
    params = classic_heads.logistic_regression(
      found, labels, k, every, every[:1], (info['strength'],)
    ).params
  else:
    (fitted,) = fit_heads.fit(
      [found],
      labels,
      k,
      [fit_heads.Cell(0, every, config.seeds[0])],
      [fit_heads.Setting(**info['setting'])],
      every[:1],
      probe_suite.options_of(config, info['kind'])._replace(best_epoch=False),
      probe_suite.class_weights(config, labels, k),
      keep_params=True,
      memory_mb=config.heads.memory_mb,
    )
    assert fitted.params is not None
    params = fitted.params
  return Bundle(params, found.shift, found.scale, info)

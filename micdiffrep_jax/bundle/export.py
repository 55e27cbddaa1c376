"""Task `bundle`: a probe's head and its encoder as one file."""

import json
import os
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.bundle import fingerprints, portable_file, refit
from micdiffrep_jax.bundle.classifier import Portable, assemble, bundle_predict
from micdiffrep_jax.bundle.portable_file import load as load_bundle
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.heads import head_file
from micdiffrep_jax.run import archive, log
from micdiffrep_jax.run.checks import lookup

__all__ = ['bundle_predict', 'load_bundle', 'run']

_COMPARED = 512  # validation images on which the file is compared with the run
_UNSURE = 0.1  # share of validation images that are called low in confidence


class Probe(NamedTuple):
  """What a probe left: its bundled head, results.json, and `known`.

  known: index (n,) of the validation images, val (n, k) the head's
  probabilities of them.
  """

  head: head_file.SavedHead
  results: dict[str, Any]
  known: dict[str, np.ndarray]


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Writes config.out, by default workdir/bundle.npz, and what it is worth.

  The file is read again and compared with the probe's own validation
  predictions, or, fitted again, with the head before rounding. Raises
  ValueError where parts do not belong together.
  """
  kinds = dict.fromkeys(fingerprints.KINDS)
  lookup(kinds, config.fingerprints, 'kind', '--config.fingerprints')
  archive.check_precision(config.precision)
  out = config.out or os.path.join(workdir, 'bundle.npz')
  probe = _probe(config.probe)
  encoder, dataset = _open(config, probe)
  model = _model(config, encoder, dataset, probe)
  portable_file.write(out, model, config.precision)
  found = {
    'bundle': os.path.abspath(out),
    'bytes': os.path.getsize(out),
    'precision': config.precision,
    'fingerprints': config.fingerprints,
    **_compare(model, load_bundle(out), dataset, probe.known, config.refit),
    'encoder': model.encoder.info,
    'data': {
      'fingerprint': dataset.fingerprint,
      'split': model.meta['split'],
      'split_hash': model.meta['split_hash'],
    },
    'parameters': _count(model),
  }
  log.get_logger().info(
    'Bundle %s: %.2f MB, %.1f %% of validation images get the same class as '
    'from the probe.',
    out,
    found['bytes'] / 1e6,
    100 * found['same_class'],
  )
  return log.write_results(workdir, {'task': 'bundle', **found}, config)


def _open(
  config: ConfigDict, probe: Probe
) -> tuple[encoders.Encoder, data.Dataset]:
  """What the probe was fitted on, where it is now; ValueError for others."""
  info = probe.head.info
  place = config.checkpoint or info['checkpoint']
  encoder = encoders.load_encoder(place, info['encoder']['step'])
  if encoder.info['fingerprint'] != info['encoder']['fingerprint']:
    raise ValueError(
      f'{place} is not the encoder that {config.probe} probed. Set '
      '--config.checkpoint.'
    )
  dataset = data.open_dataset(config.data.path or probe.results['data']['path'])
  if dataset.fingerprint != info['dataset']:
    raise ValueError(
      f'{dataset.path} is not the dataset that {config.probe} was fitted on. '
      'Set --config.data.path.'
    )
  return encoder, dataset


def _model(
  config: ConfigDict,
  encoder: encoders.Encoder,
  dataset: data.Dataset,
  probe: Probe,
) -> Portable:
  """The classifier; with config.refit its head has seen all labelled images."""
  head, results = probe.head, probe.results
  info, split = head.info, head.info['split']
  if config.refit:
    rows = refit.labelled_rows(dataset, split)
    settings = encoders.config_from_json(results['config'])
    head = refit.refit(head, encoder, dataset, settings)
  else:
    parts = [data.rows(dataset, split, p) for p in ('train', 'val')]
    rows = np.concatenate(parts)
  meta = {
    'classes': list(info['classes']),
    'size_px': encoder.info['size_px'],
    'channels': encoder.info['channels'],
    'preparation': info.get('preparation', {}),
    'dataset': info['dataset'],
    'split': split,
    'split_hash': info['split_hash'],
    'same_data_in_pretraining': encoder.info['fingerprint'] == info['dataset'],
    'low_confidence': float(np.quantile(probe.known['val'].max(1), _UNSURE)),
    'normal_class': results.get('normal_class', ''),
    'training_images': len(rows),
    'fitted_on_test_images': config.refit,
    'test': _scores(results),
  }
  # Paths of this machine are no part of a file that is given away.
  encoder = encoder._replace(info={**encoder.info, 'path': ''})
  private = ('checkpoint', 'encoder', 'preparation')
  head = head._replace(info={k: v for k, v in info.items() if k not in private})
  seen = fingerprints.make(dataset, rows, config.fingerprints)
  return assemble(encoder, head, meta, seen)


def _probe(folder: str) -> Probe:
  """Reads a finished probe; ValueError where there is none."""
  head = head_file.load(folder)
  try:
    with open(os.path.join(folder, 'results.json')) as f:
      results = json.load(f)
    name = results['bundle']
    path = os.path.join(folder, 'predictions.npz')
    with np.load(path, allow_pickle=False) as z:
      known = {'index': z['val.index'], 'val': z[f'val.probs.{name}']}
  except (OSError, KeyError, ValueError) as e:
    raise ValueError(
      f'{folder!r} is no finished probe ({e}). Set --config.probe to a folder '
      'that configs/probe.py wrote.'
    ) from e
  return Probe(head, results, known)


def _scores(results: dict[str, Any]) -> dict[str, Any]:
  """Test scores of the bundled head, for whoever gets the file alone."""
  test = results['rows'][results['bundle']]['test']
  return {
    part: {name: test[part][name] for name in ('accuracy', 'balanced_accuracy')}
    for part in ('all', 'sources')
    if part in test
  }


def _compare(
  model: Portable,
  stored: Portable,
  dataset: data.Dataset,
  known: dict[str, np.ndarray],
  again: bool,
) -> dict[str, Any]:
  """How far the file's predictions are from the probe's, on validation rows."""
  n = len(known['index'])
  at = np.linspace(0, n - 1, min(n, _COMPARED)).astype(int)
  images = dataset.images[known['index'][at]]
  full = bundle_predict(model, images)
  want = full if again else known['val'][at]
  have = bundle_predict(stored, images)
  drift = float(np.abs(full - want).max())
  if drift > 0.05:
    raise ValueError(
      f'Head and encoder do not give the predictions of the probe: they are '
      f'apart by up to {drift:.2f}. Probe the checkpoint again.'
    )
  return {
    'compared_images': len(at),
    'same_class': float((have.argmax(1) == want.argmax(1)).mean()),
    'largest_difference': float(np.abs(have - want).max()),
    'largest_difference_before_rounding': drift,
  }


def _count(model: Portable) -> dict[str, int]:
  """Parameters of the head, of the whole encoder and of what is stored."""
  use = portable_file.needed(
    model.encoder,
    model.head.info['layers'],
    model.meta['size_px'],
    model.meta['channels'],
  )
  sizes = [x.size for x in jax.tree.leaves(model.encoder.variables)]
  return {
    'encoder': int(sum(sizes)),
    'stored': int(sum(n for n, u in zip(sizes, use.values()) if u)),
    'head': int(sum(x.size for x in model.head.params.values())),
  }

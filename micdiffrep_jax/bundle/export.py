"""Task `bundle`: a probe's head and its encoder as one file."""

import dataclasses
import json
import os
import shutil
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.bundle import classifier, fingerprints, hub, portable
from micdiffrep_jax.bundle.classifier import Classifier, Meta
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.heads import head_file, matrix, table
from micdiffrep_jax.heads.base import Problem
from micdiffrep_jax.run import archive, files, log
from micdiffrep_jax.run.checks import one_of

_COMPARED = 512  # validation images on which the file is compared with the run
_SCORES = ('accuracy', 'balanced_accuracy')  # that a bundle tells of its head
_UNSURE = 0.1  # share of validation images that are called low in confidence


class Probe(NamedTuple):
  """What a probe left.

  head: that it bundles, with test scores by set of images and metric; config:
  its own; path: of its data set; rows (n,) of the validation images, val
  (n, k) the head's probabilities of them; results: all that it wrote.
  """

  head: head_file.SavedHead
  test: dict[str, dict[str, Any]]
  normal_class: str
  config: ConfigDict
  path: str
  rows: np.ndarray
  val: np.ndarray
  results: dict[str, Any]


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Writes config.out, by default workdir/bundle.npz, and what it is worth.

  The file is read again and compared with the probe's own validation
  predictions, or, fitted again, with the head before rounding. Raises
  ValueError where parts do not belong together.
  """
  one_of(
    fingerprints.KINDS, config.fingerprints, 'kind', '--config.fingerprints'
  )
  archive.check_precision(config.precision)
  check_more(config)
  out = config.out or os.path.join(workdir, 'bundle.npz')
  probe = read_probe(config.probe)
  encoder, dataset = _open(config, probe)
  head, rows = probe.head, _rows(dataset, probe, config.refit)
  if config.refit:
    folder = os.path.join(workdir, 'features')
    head = refit(head, encoder, dataset, probe.config, folder)
    shutil.rmtree(folder, ignore_errors=True)
  seen = fingerprints.make(dataset, rows, config.fingerprints)
  meta = _meta(probe, encoder, len(rows), config.refit)
  model = classifier.assemble(*_without_paths(encoder, head), meta, seen)
  classifier.write(out, model, config.precision)
  stored = classifier.load_bundle(out)
  compared = _compare(model, stored, dataset, probe, config.refit)
  results = {**probe.results, 'origins': dataset.info.origins}
  more = write_more(config, model, stored, results, workdir)
  size = os.path.getsize(out)
  log.get_logger().info(
    'Bundle %s: %.2f MB, %.1f %% of validation images get the same class as '
    'from the probe.',
    out,
    size / 1e6,
    100 * compared['same_class'],
  )
  return files.write_results(
    workdir,
    {
      'task': 'bundle',
      'bundle': os.path.abspath(out),
      'bytes': size,
      'precision': config.precision,
      'fingerprints': config.fingerprints,
      **compared,
      **more,
      'encoder': model.encoder.info.as_dict(),
      'data': {
        'fingerprint': dataset.fingerprint,
        'split': meta.split,
        'split_hash': meta.split_hash,
      },
      'parameters': _count(model),
    },
    config,
  )


def check_more(config: ConfigDict) -> None:
  """Raises ValueError for other forms that cannot be written."""
  portable.check(config.exports)
  if config.push_to and not config.hub:
    raise ValueError(
      f'push_to={config.push_to!r} without a folder. Set --config.hub=FOLDER.'
    )
  if config.hub:
    archive.check_safetensors(config.hub)


def write_more(
  config: ConfigDict,
  model: Classifier,
  stored: Classifier,
  results: dict[str, Any],
  workdir: str,
) -> dict[str, Any]:
  """Writes the other forms that the config asks for; what results say of them.

  stored: the classifier with rounded weights, which exports compute with;
  results: of the probe, and the origins of its data.
  """
  told: dict[str, Any] = {}
  if config.hub:
    hub.write(config.hub, model, config.precision, results, config.licence)
    told['hub'] = os.path.abspath(config.hub)
  if config.push_to:
    told['pushed'] = hub.push(config.hub, config.push_to)
  if config.exports:
    folder = os.path.join(workdir, 'exports')
    told['exports'] = portable.write(folder, stored, config.exports)
  return told


def read_probe(folder: str) -> Probe:
  """Reads a finished probe; ValueError where there is none."""
  head = head_file.load(folder)
  try:
    with open(os.path.join(folder, 'results.json')) as f:
      results = json.load(f)
    name = results['bundle']
    test = results['rows'][name]['test']
    path = os.path.join(folder, 'predictions.npz')
    with np.load(path, allow_pickle=False) as z:
      index, val = z['val.index'], z[f'val.probs.{name}']
    return Probe(
      head,
      {
        part: {metric: test[part][metric] for metric in _SCORES}
        for part in ('all', 'sources')
        if part in test
      },
      results.get('normal_class', ''),
      encoders.config_from_json(results['config']),
      results['data']['path'],
      index,
      val,
      results,
    )
  except (OSError, KeyError, ValueError) as e:
    raise ValueError(
      f'{folder!r} is no finished probe ({e}). Set --config.probe to a folder '
      'that configs/probe.py wrote.'
    ) from e


def _open(
  config: ConfigDict, probe: Probe
) -> tuple[encoders.Encoder, data.Dataset]:
  """What the probe was fitted on, where it is now; ValueError for others."""
  info = probe.head.info
  place = config.checkpoint or info['checkpoint']
  known = encoders.EncoderInfo.from_dict(info['encoder'])
  encoder = encoders.load_encoder(place, known.step)
  if encoder.table is not None:
    raise ValueError(
      f'{place} is a table of features: it sees no new picture, so it makes no '
      'bundle. Set --config.probe to the probe of an encoder.'
    )
  if encoder.info.fingerprint != known.fingerprint:
    raise ValueError(
      f'{place} is not the encoder that {config.probe} probed. Set '
      '--config.checkpoint.'
    )
  dataset = data.open_dataset(config.data.path or probe.path)
  if dataset.fingerprint != info['dataset']:
    raise ValueError(
      f'{dataset.path} is not the dataset that {config.probe} was fitted on. '
      'Set --config.data.path.'
    )
  return encoder, dataset


def _rows(ds: data.Dataset, probe: Probe, refitted: bool) -> np.ndarray:
  """The rows of the data set that the head has seen."""
  split = probe.head.info['split']
  if refitted:
    return labelled_rows(ds, split)
  return np.concatenate([data.rows(ds, split, p) for p in ('train', 'val')])


def labelled_rows(ds: data.Dataset, split: str) -> np.ndarray:
  """Labelled rows of all parts of a split; what it excludes stays out."""
  rows = np.concatenate(
    [data.rows(ds, split, part) for part in ('train', 'val', 'test')]
  )
  return rows[data.labels(ds)[rows] >= 0]


def refit(
  head: head_file.SavedHead,
  encoder: encoders.Encoder,
  ds: data.Dataset,
  config: ConfigDict,
  folder: str,
) -> head_file.SavedHead:
  """The same kind of head with the same settings, fitted on every part.

  config: of the probe that chose it; folder: for the features. Its temperature
  stays, as no image is left to fit one on. Nothing can be measured on this
  dataset any more.
  """
  info = head.info
  rows = labelled_rows(ds, config.data.split)
  labels = data.labels(ds)[rows].astype(np.int64)
  log.get_logger().info('Head fitted again on all %d images.', len(rows))
  layers = tuple(info['layers'])
  cache = feature_cache.fill(
    folder,
    encoder,
    ds,
    rows,
    layers,
    (info['timestep'],),
    info['extracted_grid'],
    info['draws'],
    info['feature_seed'],
    config.batch_size,
  )
  x = feature_cache.matrix(cache, info['timestep'], layers, info['grid'])
  found = matrix.standardise(x) if info['standardise'] else matrix.literal(x)
  name = table.name_of(info)
  chosen = {setting: info[setting] for setting in table.HEADS[name].chooses}
  heads = config.heads.copy_and_resolve_references().unlock()
  heads.best_epoch = False  # no image is left to choose it on
  every = np.arange(len(rows))
  problem = Problem(found, labels, len(info['classes']), every, every[:1])
  (fitted,) = table.fit(name, problem, heads, config.seeds[:1], chosen)
  return head_file.SavedHead(fitted.params, found.shift, found.scale, info)


def _meta(
  probe: Probe, encoder: encoders.Encoder, images: int, refitted: bool
) -> Meta:
  """What is to be known; images: that the head has seen."""
  info = probe.head.info
  return Meta(
    classes=tuple(info['classes']),
    size_px=encoder.info.size_px,
    channels=encoder.info.channels,
    preparation=info.get('preparation', {}),
    dataset=info['dataset'],
    split=info['split'],
    split_hash=info['split_hash'],
    same_data_in_pretraining=encoder.info.fingerprint == info['dataset'],
    low_confidence=float(np.quantile(probe.val.max(1), _UNSURE)),
    normal_class=probe.normal_class,
    training_images=images,
    fitted_on_test_images=refitted,
    test=probe.test,
  )


def _without_paths(
  encoder: encoders.Encoder, head: head_file.SavedHead
) -> tuple[encoders.Encoder, head_file.SavedHead]:
  """Paths of this machine are no part of a file that is given away."""
  info = dataclasses.replace(encoder.info, path='')
  private = ('checkpoint', 'encoder', 'preparation')
  public = {k: v for k, v in head.info.items() if k not in private}
  return encoder._replace(info=info), head._replace(info=public)


def _compare(
  model: Classifier,
  stored: Classifier,
  dataset: data.Dataset,
  probe: Probe,
  refitted: bool,
) -> dict[str, Any]:
  """Predicts validation images as users will; ValueError if they are far off.

  Far from the probe's own predictions: its head and encoder do not belong
  together.
  """
  n = len(probe.rows)
  at = np.linspace(0, n - 1, min(n, _COMPARED)).astype(int)
  images = dataset.images[probe.rows[at]]
  full = classifier.bundle_predict(model, images)
  want = full if refitted else probe.val[at]
  have = classifier.bundle_predict(stored, images)
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


def _count(model: Classifier) -> dict[str, int]:
  """Parameters of the head, of the whole encoder and of what is stored."""
  use = classifier.needed(
    model.encoder,
    model.head.info['layers'],
    model.meta.size_px,
    model.meta.channels,
  )
  sizes = [x.size for x in jax.tree.leaves(model.encoder.variables)]
  return {
    'encoder': int(sum(sizes)),
    'stored': int(sum(n for n, u in zip(sizes, use.values()) if u)),
    'head': int(sum(x.size for x in model.head.params.values())),
  }

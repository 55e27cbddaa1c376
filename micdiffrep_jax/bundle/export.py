"""Task `bundle`: a probe's head and its encoder as one file.

Of several probes of the same data set and split a committee, whose
probabilities are the mean of theirs.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
import shutil
from typing import NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.bundle import classifier, fingerprints, hub, portable
from micdiffrep_jax.bundle.classifier import Classifier, Meta
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.heads import head_file, matrix, table
from micdiffrep_jax.heads.base import Params, Problem
from micdiffrep_jax.run import archive, files, log
from micdiffrep_jax.run.checks import one_of
from micdiffrep_jax.scores import bootstrap
from micdiffrep_jax.scores.bootstrap import Score

_COMPARED = 512  # validation images on which the file is compared with the run
_SCORES = ('accuracy', 'balanced_accuracy')  # that a bundle tells of its head
_RESAMPLES = 1000  # of groups, for the intervals of a committee
_UNSURE = 0.1  # share of validation images that are called low in confidence


class Probe(NamedTuple):
  """What a probe left.

  head: that it bundles; config: its own; path: of its data set; rows (n,) of
  the validation images, val (n, k) the head's probabilities of them; test: rows
  of the test images as `index`, with their labels, groups and variants;
  results: all that it wrote.
  """

  head: head_file.SavedHead
  normal_class: str
  config: ConfigDict
  path: str
  rows: np.ndarray
  val: np.ndarray
  test: dict[str, np.ndarray]
  results: files.Results


class Compared(NamedTuple):
  """A file beside its probe: probabilities and classes of the same images."""

  compared_images: int
  same_class: float  # the share of them
  largest_difference: float
  largest_difference_before_rounding: float


def run(config: ConfigDict, workdir: str) -> files.Results:
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
  folders = (config.probe, *config.others)
  probes = [read_probe(folder) for folder in folders]
  opened = [
    _open(folder, one, config.data.path, config.checkpoint if i == 0 else '')
    for i, (folder, one) in enumerate(zip(folders, probes))
  ]
  probe, dataset = join(folders, probes), opened[0][1]
  rows = _rows(dataset, probe, config.refit)
  used = [one for one, _ in opened]
  heads: list[tuple[head_file.SavedHead, Params | None]]
  heads = [(one.head, None) for one in probes]
  if config.refit:
    place = os.path.join(workdir, 'features')
    heads = [
      refit(one.head, encoder, dataset, one.config, os.path.join(place, str(i)))
      for i, (encoder, one) in enumerate(zip(used, probes))
    ]
    shutil.rmtree(place, ignore_errors=True)
  seen = fingerprints.make(dataset, rows, config.fingerprints)
  meta = _meta(probe, used, dataset, len(rows), config.refit)
  model, *others = (
    classifier.assemble(*_without_paths(encoder, head), meta, seen)._replace(
      measured=measured
    )
    for encoder, (head, measured) in zip(used, heads)
  )
  model = model._replace(others=tuple(others))
  model, stored = _write(out, model, config.precision, dataset, probe)
  compared = _compare(model, stored, dataset, probe, config.refit)
  results = {**probe.results, 'origins': dataset.info.origins}
  more = write_more(config, model, stored, results, workdir)
  tell(out, stored.meta, compared)
  return files.write_results(
    workdir,
    {
      'task': 'bundle',
      'bundle': os.path.abspath(out),
      'bytes': os.path.getsize(out),
      'precision': config.precision,
      'fingerprints': config.fingerprints,
      **compared._asdict(),
      'test': stored.meta.test,
      **more,
      'encoder': model.encoder.info.to_json(),
      'others': [one.encoder.info.to_json() for one in others],
      'data': {
        'fingerprint': dataset.fingerprint,
        'split': meta.split,
        'split_hash': meta.split_hash,
      },
      'parameters': _count(model),
    },
    config,
  )


def tell(out: str, meta: Meta, compared: Compared) -> None:
  """Logs how large the file is, and how good."""
  assert meta.test is not None
  log.get_logger().info(
    'Bundle %s: %.2f MB, %.1f %% of validation images get the same class as '
    'from the probe. Test accuracy of the head that has not seen it: %.1f %%.',
    out,
    os.path.getsize(out) / 1e6,
    100 * compared.same_class,
    100 * meta.test['all']['accuracy'].value,
  )


def _write(
  out: str,
  model: Classifier,
  precision: str,
  dataset: data.Dataset,
  probe: Probe,
) -> tuple[Classifier, Classifier]:
  """Writes the file with its test scores; the model, and as it is read again.

  Twice, as the scores are those of the file itself.
  """
  classifier.write(out, model, precision)
  scores = _scores(classifier.load_bundle(out), dataset, probe.test)
  model = model._replace(meta=dataclasses.replace(model.meta, test=scores))
  classifier.write(out, model, precision)
  return model, classifier.load_bundle(out)


def check_more(config: ConfigDict) -> None:
  """Raises ValueError for what is asked besides and cannot be had."""
  portable.check(config.exports)
  if config.others and (config.hub or 'torch' in config.exports):
    raise ValueError(
      'A folder for a hub, and the form torch, are of one encoder: leave out '
      '--config.others, or --config.hub and torch.'
    )
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
  results: files.Results,
  workdir: str,
) -> files.Results:
  """Writes the other forms that the config asks for; what results say of them.

  stored: the classifier with rounded weights, which exports compute with;
  results: of the probe, and the origins of its data.
  """
  told: files.Results = {}
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
    path = os.path.join(folder, 'predictions.npz')
    with np.load(path, allow_pickle=False) as z:
      index, val = z['val.index'], z[f'val.probs.{name}']
      columns = ('index', 'label', 'group', 'variant')
      test = {k: z[f'test.{k}'] for k in columns}
    return Probe(
      head,
      results.get('normal_class', ''),
      encoders.config_from_json(results['config']),
      results['data']['path'],
      index,
      val,
      test,
      results,
    )
  except (OSError, KeyError, ValueError) as e:
    raise ValueError(
      f'{folder!r} is no finished probe ({e}). Set --config.probe to a folder '
      'that configs/probe.py wrote.'
    ) from e


def join(folders: Sequence[str], probes: Sequence[Probe]) -> Probe:
  """A committee of probes as one, whose probabilities are the mean of theirs.

  head and config are those of the first. ValueError for probes that are not of
  the same images, classes and split.
  """
  first, *rest = probes
  for folder, one in zip(folders[1:], rest):
    for key in ('dataset', 'split', 'split_hash', 'classes'):
      mine, theirs = (getattr(x.head.info, key) for x in (first, one))
      if mine != theirs:
        raise ValueError(
          f'{folder} is a probe of {key} {theirs!r}, {folders[0]} of {mine!r}: '
          'they make no committee. Set --config.others.'
        )
  if not rest:
    return first
  return first._replace(val=np.mean([one.val for one in probes], axis=0))


def _scores(
  stored: Classifier, dataset: data.Dataset, test: dict[str, np.ndarray]
) -> dict[str, dict[str, Score]]:
  """Test scores of a file, by the head that has not seen test images.

  Of the file, as rounding moves a class now and then: whoever scores it on the
  test part gets these numbers.
  """
  found = {}
  probs = classifier.bundle_predict(
    classifier.as_measured(stored), dataset.images[test['index']]
  )
  slices = bootstrap.Slices(test['group'], test['variant'])
  sets = bootstrap.sets_of(test['label'], probs, slices)
  for part, one in sets.items():
    resampled = bootstrap.resample(
      one.labels,
      one.probs.argmax(1)[None],
      one.groups,
      one.probs.shape[1],
      _RESAMPLES,
      0,
    )
    found[part] = {
      metric: bootstrap.score(resampled[metric].mean) for metric in _SCORES
    }
  return found


def _open(
  folder: str, probe: Probe, path: str, checkpoint: str
) -> tuple[encoders.Encoder, data.Dataset]:
  """What the probe was fitted on, where it is now; ValueError for others.

  path and checkpoint: where its data set and encoder are, '' as it says.
  """
  info = probe.head.info
  place = checkpoint or info.checkpoint or ''
  known = encoders.EncoderInfo.from_json(info.encoder or {})
  encoder = encoders.load_encoder(place, known.step)
  if encoder.table is not None:
    raise ValueError(
      f'{place} is a table of features: it sees no new picture, so it makes no '
      'bundle. Set --config.probe to the probe of an encoder.'
    )
  if encoder.info.fingerprint != known.fingerprint:
    raise ValueError(
      f'{place} is not the encoder that {folder} probed. Set '
      '--config.checkpoint.'
    )
  dataset = data.open_dataset(path or probe.path)
  if dataset.fingerprint != info.dataset:
    raise ValueError(
      f'{dataset.path} is not the dataset that {folder} was fitted on. Set '
      '--config.data.path.'
    )
  return encoder, dataset


def _rows(ds: data.Dataset, probe: Probe, refitted: bool) -> np.ndarray:
  """The rows of the data set that the head has seen."""
  split = probe.head.info.split
  if refitted:
    return labelled_rows(ds, split)
  return np.concatenate([data.rows(ds, split, p) for p in ('train', 'val')])


def measured_on(ds: data.Dataset, split: str) -> dict[str, int]:
  """How many of labelled_rows come before the test part: Meta.measured_on."""
  rows = labelled_rows(ds, split)
  rows = rows[~np.isin(rows, data.rows(ds, split, 'test'))]
  untouched = ds.manifest['variant'][rows] == ''
  return {'images': len(rows), 'untouched': int(untouched.sum())}


def labelled_rows(ds: data.Dataset, split: str) -> np.ndarray:
  """Labelled rows of train, val and test; what a split excludes stays out."""
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
) -> tuple[head_file.SavedHead, Params]:
  """The same kind of head with the same settings, fitted on every part.

  And the parameters of the head before, for whoever measures: the new one has
  seen all of this dataset. config: of the probe that chose it; folder: for the
  features. Temperature and standardisation stay; no image is left to fit a
  temperature on, and the statistics of the training part are those of all.
  """
  info = head.info
  if config.task == 'finetune':
    raise ValueError(
      'A fine-tuned head is one with its encoder: it cannot be fitted again on '
      'all images. Set --config.refit=False.'
    )
  rows = labelled_rows(ds, config.data.split)
  labels = data.labels(ds)[rows].astype(np.int64)
  log.get_logger().info('Head fitted again on all %d images.', len(rows))
  cache = feature_cache.fill(
    folder,
    encoder,
    ds,
    rows,
    info.layers,
    (info.timestep,),
    info.extracted_grid,
    info.draws,
    info.feature_seed,
    config.batch_size,
    deviation=bool(info.deviation),
  )
  where = (cache, info.timestep, info.layers, info.grid)
  found = matrix.Features(
    feature_cache.matrix(*where),
    head.shift,
    head.scale,
    feature_cache.maps_of(*where),
  )
  name = table.name_of(info)
  chosen = {x: info.settings[x] for x in table.HEADS[name].chooses}
  heads = config.heads.copy_and_resolve_references().unlock()
  heads.best_epoch = False  # no image is left to choose it on
  every = np.arange(len(rows))
  problem = Problem(found, labels, len(info.classes), every, every[:1])
  after, before = table.refit(
    name, problem, head.params, heads, config.seeds[:1], chosen
  )
  return head._replace(params=after), before


def _meta(
  probe: Probe,
  used: Sequence[encoders.Encoder],
  dataset: data.Dataset,
  images: int,
  refitted: bool,
) -> Meta:
  """What is to be known; used: encoders; images: that the heads have seen."""
  info, encoder = probe.head.info, used[0]
  return Meta(
    classes=info.classes,
    size_px=encoder.info.size_px,
    channels=encoder.info.channels,
    preparation=info.preparation or {},
    dataset=info.dataset,
    split=info.split,
    split_hash=info.split_hash,
    same_data_in_pretraining=any(
      one.info.fingerprint == info.dataset for one in used
    ),
    low_confidence=float(np.quantile(probe.val.max(1), _UNSURE)),
    normal_class=probe.normal_class,
    # Of a share of the labels fewer images than the parts have.
    training_images=info.training_images or images,
    fitted_on_test_images=refitted,
    measured_on=measured_on(dataset, info.split) if refitted else None,
  )


def _without_paths(
  encoder: encoders.Encoder, head: head_file.SavedHead
) -> tuple[encoders.Encoder, head_file.SavedHead]:
  """Paths of this machine are no part of a file that is given away."""
  info = dataclasses.replace(encoder.info, path='')
  public = dataclasses.replace(
    head.info, checkpoint=None, encoder=None, preparation=None
  )
  return encoder._replace(info=info), head._replace(info=public)


def _compare(
  model: Classifier,
  stored: Classifier,
  dataset: data.Dataset,
  probe: Probe,
  refitted: bool,
) -> Compared:
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
  return Compared(
    len(at),
    float((have.argmax(1) == want.argmax(1)).mean()),
    float(np.abs(have - want).max()),
    drift,
  )


def _count(model: Classifier) -> dict[str, int]:
  """Parameters of heads, of whole encoders and of what is stored."""
  each = [_count_one(one) for one in model.members]
  return {name: sum(one[name] for one in each) for name in each[0]}


def _count_one(model: Classifier) -> dict[str, int]:
  use = classifier.needed(
    model.encoder,
    model.head.info.layers,
    model.meta.size_px,
    model.meta.channels,
  )
  sizes = [x.size for x in jax.tree.leaves(model.encoder.variables)]
  return {
    'encoder': int(sum(sizes)),
    'stored': int(sum(n for n, u in zip(sizes, use.values()) if u)),
    'head': int(sum(x.size for x in model.head.params.values())),
  }

"""Task `finetune`: an encoder trained on with labels, beside its frozen head.

It learns from the training part of a split, or from a share of its patients,
and is stopped by the validation part. Test labels are read by `probe.score`
alone, when everything is final. What it leaves is a probe's folder, so that
bundles and reports read it, and the bundle itself.
"""

import dataclasses
import os
import shutil

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.bundle import classifier, export
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import promises
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders.encoder import Encoder
from micdiffrep_jax.heads import head_file
from micdiffrep_jax.heads.base import HeadInfo
from micdiffrep_jax.heads.head_file import SavedHead
from micdiffrep_jax.heads.table import HEADS
from micdiffrep_jax.pretrain.finetune import head_beside
from micdiffrep_jax.run import debug, files, guard
from micdiffrep_jax.run.checks import one_of, whole_number
from micdiffrep_jax.studies import (
  base,
  cuts,
  grid,
  imagenet,
  labels,
  probe,
  tuned,
)
from micdiffrep_jax.studies.base import Parts, Study
from micdiffrep_jax.studies.grid import Row
from micdiffrep_jax.studies.tuned import FROZEN, TUNED

STARTS = ('fit', 'zero', 'checkpoint')
# Fields that decide nothing of what is trained, or only where it is found.
_AROUND = (
  'task checkpoint step data bundle floors pooling normal_class resamples '
  'allow_failed_audit allow_seen_test'
).split()


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before anything runs."""
  one_of(STARTS, config.start, 'start of the head', '--config.start')
  one_of(
    cuts.VALIDATION, config.validation, 'validation', '--config.validation'
  )
  if not 0 < config.share <= 1:
    raise ValueError(
      f'share={config.share} is outside (0, 1]. Set --config.share.'
    )
  whole_number(config.draw, 0, 10_000, '--config.draw')
  if not config.checkpoint:
    raise ValueError(
      'No encoder given. Set --config.checkpoint to a pretraining folder or a '
      'bundle, and --config.random_encoder=True for its random weights.'
    )
  imagenet.check(config.floors)
  tuned.check(config)


def cut(ds: data.Dataset, parts: Parts, config: ConfigDict) -> Parts:
  """The rows of a share of the patients, a draw of label_efficiency, and test.

  No others are in the parts.
  """
  (draw,) = labels.make_draws(
    ds,
    parts,
    ConfigDict(
      {
        'fractions': (config.share,),
        'draws_of_labels': 1,
        'seed': config.seed + config.draw,
        'validation': config.validation,
        'sources_only': False,
      }
    ),
  )
  at = np.concatenate([draw.train, draw.val, parts.test])
  ends = np.cumsum([len(draw.train), len(draw.val)])
  train, val, test = np.split(np.arange(len(at)), ends)
  known = parts.labels[at]
  found = Parts(parts.rows[at], train, val, test, known, parts.classes)
  flags = '--config.share or --config.draw'
  tuned.check_classes(found, ds.classes, flags)
  return found


def recipe_of(config: ConfigDict) -> ConfigDict:
  """The fields that a checkpoint of the run holds, and a resumed run keeps."""
  found = config.copy_and_resolve_references().unlock()
  for name in _AROUND:
    del found[name]
  return found.lock()


def given_head(
  config: ConfigDict, encoder: Encoder, ds: data.Dataset
) -> tuple[ConfigDict, SavedHead]:
  """The head of a bundle or of a fine-tuned run, and the config that reads so.

  Raises ValueError where there is none, or one of other classes.
  """
  path = config.checkpoint
  if encoders.is_bundle(path):
    model = classifier.load_bundle(path)
    head = model.head
    if model.meta.fitted_on_test_images:
      raise ValueError(
        f'The head of {path!r} was fitted on test images too. Set '
        '--config.start=fit.'
      )
  elif encoder.config.method == 'finetune':
    fields = encoder.config
    info = HeadInfo(
      fields.net.kind,
      fields.layers,
      fields.timestep,
      fields.grid,
      extracted_grid=fields.grid,
      draws=fields.draws,
      feature_seed=fields.seed,
      temperature=1.0,
      deviation=fields.deviation,
      classes=fields.classes,
    )
    head = head_beside(encoder, info)
  else:
    raise ValueError(
      f'{path!r} holds no head: it is neither a bundle nor a fine-tuned run. '
      'Set --config.start=fit.'
    )
  if head.info.classes != ds.classes:
    raise ValueError(
      f'The head of {path!r} tells {head.info.classes} apart, '
      f'{ds.path} has {ds.classes}. Set --config.start=fit for a new '
      'head, or --config.data.path.'
    )
  one_of(
    [h.kind for name, h in HEADS.items() if name in tuned.HEAD_NAMES],
    head.info.kind,
    'kind of head to train on',
    '--config.start=fit',
  )
  found = config.copy_and_resolve_references()
  with found.unlocked():
    found.deviation = bool(head.info.deviation)
    for name in ('layers', 'timestep', 'grid', 'draws'):
      found[name] = getattr(head.info, name)
  return found.lock(), head


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Fine-tunes config.checkpoint; writes results, predictions, the bundle."""
  check(config)
  debug.parse_window(config.profile)
  study = base.open_study(
    config,
    lambda reader, c: tuned.spot_of(reader, c).layers,
    config.step or None,
  )
  ds, split = study.ds, config.data.split
  encoder, head = study.encoder, None
  doubts = promises.refuse(ds, split, config.allow_failed_audit)
  normal = base.normal_class(config.normal_class, ds.classes)
  if config.start == 'checkpoint':
    config, head = given_head(config, encoder, ds)
  if config.random_encoder:
    encoder = encoders.random_encoder(encoder, config.seed)
  parts = cut(ds, study.parts, config)
  recipe = recipe_of(config)
  tuned.check_tuning(recipe, encoder, ds, split, len(parts.train))
  absent = imagenet.told(config.floors)
  folder = os.path.join(workdir, 'features')
  os.makedirs(workdir, exist_ok=True)
  with guard.lock(workdir), debug.checks(config.debug):
    s = tuned.subject(encoder, ds, parts.rows, split, recipe, folder)
    frozen = (
      tuned.row_of(head, s, parts) if head else tuned.frozen_row(s, parts)
    )
    first = tuned.zero_head(s) if config.start == 'zero' else frozen.head
    assert first is not None
    row, found = tuned.tuned_row(s, first, parts, workdir)
    rows = {TUNED: row, FROZEN: frozen}
    rows |= grid.floor_rows(ds, [parts], config.floors, config.seed, folder)[0]
    shutil.rmtree(folder, ignore_errors=True)
    results = probe.score(
      rows, ds, parts, normal, config.resamples, config.seed, config.pooling
    )
    results |= about(study, parts, config, found)
    results |= {'audit_reasons': doubts, **absent}
    return finish(workdir, results, rows, ds, parts, config)


def about(
  study: Study, parts: Parts, config: ConfigDict, found: tuned.Tuned
) -> files.Results:
  """What the results say of the run beside its scores."""
  groups = data.groups(study.ds)[parts.rows]
  return {
    'task': 'finetune',
    'bundle': TUNED,
    'chosen_on': 'validation images',
    'trials': {},
    **base.told(study, config.data.split),
    'base': study.encoder.info.to_json(),
    'encoder': found.encoder.info.to_json(),
    'share': config.share,
    'draw': config.draw,
    'train_images': len(parts.train),
    'train_groups': len(np.unique(groups[parts.train])),
    'val_images': len(parts.val),
    'best_step': found.step,
    'trained_parameters': found.parameters,
    'validation_loss': {str(k): v for k, v in found.evaluated.items()},
  }


def finish(
  workdir: str,
  results: files.Results,
  rows: dict[str, Row],
  ds: data.Dataset,
  parts: Parts,
  config: ConfigDict,
) -> files.Results:
  """Writes what a probe leaves, then the bundle made of it."""
  head = rows[TUNED].head
  assert head is not None
  images = len(parts.train) + len(parts.val)
  info = dataclasses.replace(head.info, training_images=images)
  head_file.save(workdir, head._replace(info=info))
  probe.draw(workdir, results)
  probe.save_predictions(workdir, rows, ds, parts)
  written = files.write_results(workdir, results, config)
  unit = config.bundle.copy_and_resolve_references()
  with unit.unlocked():
    unit.probe = workdir
  export.run(unit, os.path.join(workdir, 'bundle'))
  print(probe.text(results), flush=True)
  return written

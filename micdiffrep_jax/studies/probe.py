"""Task `probe`: what a frozen encoder's features are worth, head by head.

Layer, timestep, pooling, learning rate and weight decay are chosen on
validation rows. Test labels are not in reach until every head is final.
"""

import os
import shutil
import time
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import promises
from micdiffrep_jax.encoders import cache as feature_cache
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.heads import floors, head_file
from micdiffrep_jax.heads.nets import HEADS
from micdiffrep_jax.methods.views import check_augment
from micdiffrep_jax.run import files
from micdiffrep_jax.run.checks import lookup
from micdiffrep_jax.scores import metrics
from micdiffrep_jax.studies import grid, probe_report, probe_rows

GRIDS = (1, 2, 4)
_NORMAL = ('normal', 'no_tumor', 'notumor', 'no tumor', 'healthy')


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before anything runs."""
  for kind in config.heads.kinds:
    lookup(HEADS, kind, 'head', '--config.heads.kinds')
  for name in config.classic:
    lookup(grid.CLASSIC, name, 'probe', '--config.classic')
  floors.check(config.floors)
  lookup(
    metrics.CRITERIA,
    config.select,
    'criterion',
    '--config.select',
  )
  for name in ('heads.kinds', 'timesteps', 'seeds', 'grids'):
    group, _, field = name.rpartition('.')
    if not (config[group] if group else config)[field]:
      raise ValueError(f'--config.{name} is empty; give at least one.')
  bad = [g for g in config.grids if g not in GRIDS]
  if bad:
    raise ValueError(
      f'Grids {bad} given; one of {GRIDS}. Set them with --config.grids.'
    )
  if config.online.views < 0:
    raise ValueError(
      f'online.views={config.online.views} is negative; 0 means none. Set '
      '--config.online.views.'
    )
  check_augment(config.online.augment)
  if not config.checkpoint:
    raise ValueError(
      'No encoder given. Set --config.checkpoint to a pretraining folder.'
    )
  rows = [f'{k}_{s}' for k in config.heads.kinds for s in ('single', 'concat')]
  # Nearest neighbours need the training images' features: no head.
  rows += [name for name in config.classic if name != 'knn']
  table = dict.fromkeys(rows)
  lookup(table, config.bundle, 'row', '--config.bundle')


def views_of(
  config: ConfigDict, parts: probe_rows.Parts
) -> feature_cache.Views | None:
  """The views of config.online, for the train rows; None for 0 views."""
  online = config.online
  if not online.views:
    return None
  return feature_cache.Views(online.views, parts.train, online.augment)


def normal_class(name: str, classes: tuple[str, ...]) -> str:
  """The class to report with and without; 'auto' is the one called normal."""
  if name == 'auto':
    return next((c for c in classes if c.lower() in _NORMAL), '')
  if name:
    lookup(dict.fromkeys(classes), name, 'class', '--config.normal_class')
  return name


def seen_in_pretraining(
  info: encoders.EncoderInfo, ds: data.Dataset, split: str, allow: bool
) -> str:
  """Whether the encoder's pretraining drew test images: no, maybe or unknown.

  Raises ValueError where it was pretrained under another split of these data,
  unless `allow`.
  """
  if info.fingerprint != ds.fingerprint:
    return 'unknown: the encoder was pretrained on another dataset'
  known = (info.split_hash, *(info.spared or {}).values())
  if data.split_hash(ds, split) in known:
    return 'no'
  if not allow:
    raise ValueError(
      f'The encoder was pretrained on the train part of split '
      f'{info.split!r}, so it may have seen test images of split '
      f'{split!r}. Set --config.data.split={info.split}, or '
      '--config.allow_seen_test=True, which the results will say.'
    )
  return f'maybe: pretrained on split {info.split!r}'


def labelled_parts(ds: data.Dataset, split: str) -> probe_rows.Parts:
  """Labelled rows, train then val then test; test labels are left out."""
  labels = data.labels(ds)
  found = []
  for part in ('train', 'val', 'test'):
    rows = data.rows(ds, split, part)
    rows = rows[labels[rows] >= 0]
    if not len(rows):
      raise ValueError(
        f'Split {split!r} has no labelled {part} images in {ds.path}. Choose '
        'another with --config.data.split.'
      )
    found.append(rows)
  rows = np.concatenate(found)
  train, val, test = np.split(
    np.arange(len(rows)), np.cumsum([len(r) for r in found])[:-1]
  )
  known = labels[rows].astype(np.int64)
  known[test] = -1
  return probe_rows.Parts(rows, train, val, test, known)


def describe(
  ds: data.Dataset, split: str, parts: probe_rows.Parts
) -> dict[str, Any]:
  """Which images a result is of."""
  return {
    'path': ds.path,
    'fingerprint': ds.fingerprint,
    'split': split,
    'split_hash': data.split_hash(ds, split),
    'classes': ds.classes,
    'images': {
      part: len(getattr(parts, part)) for part in ('train', 'val', 'test')
    },
  }


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Probes config.checkpoint; writes results.json, predictions, head, plots."""
  check(config)
  started = time.monotonic()
  encoder = encoders.load_encoder(config.checkpoint, config.step or None)
  ds = data.open_dataset(config.data.path, config.data.cache)
  doubts = promises.refuse(ds, config.data.split, config.allow_failed_audit)
  features.check_images(encoder, ds)
  layers = features.check_request(
    encoder.method, config.layers, config.timesteps
  )
  normal = normal_class(config.normal_class, ds.classes)
  seen = seen_in_pretraining(
    encoder.info, ds, config.data.split, config.allow_seen_test
  )
  parts = labelled_parts(ds, config.data.split)
  os.makedirs(workdir, exist_ok=True)

  rows: dict[str, probe_rows.Row] = {}
  trials: dict[str, list[dict]] = {}
  by_prefix = encoders.with_twin(encoder, config.random_encoder, config.seed)
  for prefix, one in by_prefix.items():
    folder = os.path.join(workdir, 'features', prefix.strip('/') or 'encoder')
    cache = feature_cache.fill(
      folder,
      one,
      ds,
      parts.rows,
      layers,
      config.timesteps,
      max(config.grids),
      config.draws,
      config.seed,
      config.batch_size,
      weights_seed=config.seed if prefix else 0,
      views=views_of(config, parts),
    )
    found, tried, head = grid.run_suite(
      cache, parts, ds.classes, config, desc=prefix + 'heads'
    )
    rows |= {prefix + name: row for name, row in found.items()}
    trials[prefix.strip('/') or 'encoder'] = tried
    if not prefix:
      head_file.save(
        workdir,
        head._replace(
          info=head.info
          | {
            'classes': ds.classes,
            'encoder': one.info.as_dict(),
            'checkpoint': config.checkpoint,
            'dataset': ds.fingerprint,
            'preparation': ds.info.settings,
            'split': config.data.split,
            'split_hash': data.split_hash(ds, config.data.split),
          }
        ),
      )
  if config.floors:
    query = parts.rows[np.concatenate([parts.val, parts.test])]
    for name, probs in floors.predict(
      ds, parts.rows[parts.train], query, config.floors, config.seed
    ).items():
      val, test = np.split(probs, [len(parts.val)])
      rows['floor/' + name] = probe_rows.Row({}, val, test[None])

  results = probe_report.score(rows, ds, parts, config, normal)
  results |= {
    'task': 'probe',
    'trials': trials,
    'encoder': encoder.info.as_dict(),
    'pretraining_saw_test_images': seen,
    'audit_reasons': doubts,
    'data': describe(ds, config.data.split, parts),
    'elapsed_s': round(time.monotonic() - started, 1),
  }
  probe_report.draw(workdir, results)
  probe_report.save_predictions(workdir, rows, ds, parts)
  if not config.keep_features:
    shutil.rmtree(os.path.join(workdir, 'features'), ignore_errors=True)
  print(probe_report.table(results), flush=True)
  return files.write_results(workdir, results, config)

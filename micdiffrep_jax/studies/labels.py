"""Task `label_efficiency`: accuracy against the share of labelled groups.

Every method sees the same draws of training groups, stratified by class. The
features are standardised by all training images, whose labels that needs not.
Chosen on validation, anew for each draw: timestep, pooling, learning rate and
decay of the heads, strength of the logistic regression, number of neighbours.
"""

import os
import shutil
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.encoders.cache import Cache
from micdiffrep_jax.run import files
from micdiffrep_jax.run.checks import lookup
from micdiffrep_jax.studies import (
  ablate,
  ablate_pass,
  label_curves,
  label_methods,
  probe,
)
from micdiffrep_jax.studies.label_methods import Draw, Said
from micdiffrep_jax.studies.label_subsets import subsets
from micdiffrep_jax.studies.probe_rows import Parts


def check(config: ConfigDict) -> None:
  """Raises ValueError for what can be told to be wrong before anything runs."""
  ablate.check(config)
  table = dict.fromkeys(('share', 'all'))
  lookup(table, config.validation, 'validation', '--config.validation')
  if config.online.views:
    raise ValueError(
      f'online.views={config.online.views}: draws of labels share features '
      'without views. Set --config.online.views=0.'
    )
  if config.heads.best_epoch:
    raise ValueError(
      'Choosing the epoch would use all validation labels for every share. '
      'Set --config.heads.best_epoch=False.'
    )
  for name in ('fractions', 'draws_of_labels'):
    if not config[name]:
      raise ValueError(f'--config.{name} is empty; give at least one.')


def make_draws(
  ds: data.Dataset, parts: Parts, config: ConfigDict
) -> list[Draw]:
  """The draws of all shares; validation shrinks alike unless told otherwise."""
  groups = data.groups(ds)[parts.rows]
  sources = ds.manifest['variant'][parts.rows] == ''
  found = []
  for number in range(config.draws_of_labels):
    rows = {}
    for part in ('train', 'val'):
      at = getattr(parts, part)
      shares = subsets(
        parts.labels[at], groups[at], config.fractions, config.seed + number
      )
      kept = [at[s] for s in shares]
      if part == 'val' and config.validation == 'all':
        kept = [at] * len(kept)
      if config.sources_only:
        kept = [rows_[sources[rows_]] for rows_ in kept]
      if not all(len(rows_) for rows_ in kept):
        raise ValueError(
          'A draw holds no untouched source. Set --config.sources_only=False.'
        )
      rows[part] = kept
    found += [
      Draw(share, number, train, val)
      for share, train, val in zip(config.fractions, rows['train'], rows['val'])
    ]
  return found


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Writes label_efficiency.csv, comparisons.csv, plots and results.json."""
  check(config)
  started = time.monotonic()
  encoder = encoders.load_encoder(config.checkpoint, config.step or None)
  ds = data.open_dataset(config.data.path, config.data.cache)
  features.check_images(encoder, ds)
  layers = ablate.choose_layers(encoder.method, config)
  split = config.data.split
  seen = probe.seen_in_pretraining(
    encoder.info, ds, split, config.allow_seen_test
  )
  parts = probe.labelled_parts(ds, split)
  draws = make_draws(ds, parts, config)
  by_prefix = encoders.with_twin(encoder, config.random_encoder, config.seed)
  said: list[Said] = []
  for prefix, one in by_prefix.items():
    folder = os.path.join(workdir, 'features', prefix.strip('/') or 'encoder')
    cache = Cache(folder, layers, tuple(config.timesteps))
    weights_seed = config.seed if prefix else 0
    ablate_pass.extract(
      cache, one, ds, parts, cache.timesteps, config, weights_seed
    )
    answers = label_methods.features_said(
      cache, draws, parts, len(ds.classes), config
    )
    said += [s._replace(method=prefix + s.method) for s in answers]
  said += label_methods.floors_said(ds, draws, parts, config)

  curves, comparisons = label_curves.score(said, ds, parts, config)
  if jax.process_index() == 0:
    label_curves.write(workdir, curves, comparisons)
    print(label_curves.table(curves, split), flush=True)
  results = files.write_results(
    workdir,
    {
      'task': 'label_efficiency',
      'curves': curves,
      'comparisons': comparisons,
      'draws': [
        {
          'share': d.share,
          'draw': d.number,
          'train_images': len(d.train),
          'train_groups': len(np.unique(data.groups(ds)[parts.rows[d.train]])),
          'val_images': len(d.val),
        }
        for d in draws
      ],
      'chosen_on': 'validation groups, '
      + ('all' if config.validation == 'all' else 'the same share of them'),
      'encoder': encoder.info.as_dict(),
      'pretraining_saw_test_images': seen,
      'data': probe.describe(ds, split, parts),
      'elapsed_s': round(time.monotonic() - started, 1),
    },
    config,
  )
  if not config.keep_features:
    shutil.rmtree(os.path.join(workdir, 'features'), ignore_errors=True)
  return results

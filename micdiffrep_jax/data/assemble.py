"""Puts a dataset together: reads, groups, splits, writes one folder."""

from collections import Counter
from collections.abc import Mapping
import os
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import (
  gather,
  manifest,
  relatives,
  sources,
  splits,
  store,
)
from micdiffrep_jax.run import log


def assemble(
  folder: str,
  listed: list[sources.Source],
  labels: list[list[str]],
  data: ConfigDict,
  seed: int,
  settings: Mapping[str, Any],
  stamp: str,
) -> dict[str, Any]:
  """Fills an empty folder and returns the description written there.

  labels names the class of each file of each source, '' for none. Raises
  ValueError for too many bad files, one picture under two labels and classes
  that a split cannot serve.
  """
  raw = os.path.join(folder, 'pixels.raw')
  with open(raw, 'wb') as f:
    found = gather.gather(listed, data.size_px, data.channels, f, data.workers)
  _check_share(found, listed, data.max_bad_share)
  table = manifest.build(found, listed, labels, data)
  near = relatives.find(table, found, data.near_duplicates)
  table['group'] = near.group.astype(str)
  usable = relatives.usable(table, near, data.conflicts)
  table.update(_splits(table, near, usable, data, seed))
  shape = (len(found.rows), data.size_px, data.size_px, data.channels)
  images = np.memmap(raw, np.uint8, 'r', shape=shape)
  store.write_images(
    folder, images, table['id'].tolist(), table['class'].tolist()
  )
  del images
  os.remove(raw)
  store.write_manifest(folder, table)
  store.write_table(
    os.path.join(folder, store.REJECTED), ('file', 'reason'), found.rejected
  )
  junk = sum((Counter(s.junk) for s in listed), Counter())
  names = tuple(data.classes) or tuple(sorted(set(table['class']) - {''}))
  info = {
    'size_px': data.size_px,
    'channels': data.channels,
    'images': len(found.rows),
    'classes': names,
    'counts': manifest.counts(table, names),
    'origins': [s.origin for s in listed],
    'rejected': len(found.rejected),
    'junk': dict(junk),
    'rules': found.rules,
    'near_duplicates': near.summary,
    'settings': settings,
    'stamp': stamp,
    'fingerprint': manifest.fingerprint(table, settings),
  }
  store.write_info(folder, info)
  return info


def _check_share(
  found: gather.Gathered, listed: list[sources.Source], allowed: float
) -> None:
  total = sum(len(s.files) for s in listed)
  bad = found.rejected
  if bad:
    log.get_logger().warning(
      '%d of %d files cannot be read; rejected.csv says why.', len(bad), total
    )
  if len(bad) > allowed * total or len(bad) == total:
    reasons = ''.join(f'\n  {file}: {why}' for file, why in bad[:20])
    more = f'\n  and {len(bad) - 20} more' if len(bad) > 20 else ''
    raise ValueError(
      f'{len(bad)} of {total} files cannot be read, more than '
      f'config.data.max_bad_share={allowed} allows:{reasons}{more}'
    )


def _splits(
  table: dict[str, np.ndarray],
  near: relatives.Near,
  usable: np.ndarray,
  data: ConfigDict,
  seed: int,
) -> dict[str, np.ndarray]:
  """All named splits; unlabelled rows train unless they repeat a held-out."""
  labelled = table['class'] != ''
  rows = np.flatnonzero(labelled)
  parts = {name: np.full(len(labelled), '', '<U8') for name in splits.NAMES}
  if len(rows):
    made = splits.make_splits(
      table['class'][rows],
      table['unit'][rows],
      table['group'][rows],
      usable[rows],
      data.test_share,
      data.val_share,
      seed,
    )
    for name, part in made.items():
      parts[name][rows] = part
  return {
    name: splits.exclude_seen(part, ~labelled, near.seen, near.group)
    for name, part in parts.items()
  }

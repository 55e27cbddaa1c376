"""Task `predict`: pictures and a bundle to a table of classes.

Letters: n images, k classes.
"""

from collections.abc import Sequence
import os
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.bundle import intake, occlusion
from micdiffrep_jax.bundle.classifier import Portable, bundle_predict
from micdiffrep_jax.bundle.intake import Item
from micdiffrep_jax.bundle.portable_file import load as load_bundle
from micdiffrep_jax.data import store
from micdiffrep_jax.draw import grids
from micdiffrep_jax.run import log
from micdiffrep_jax.run.files import write_results

FAILED = 3  # exit status where some file could not be read
_DOUBTFUL = ('constant', 'tiny')  # rules that make any class a guess


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Writes predictions.csv, one row per input in its order.

  SystemExit(3) where some file could not be read; the others are predicted.
  """
  model = load_bundle(config.bundle)
  threshold = config.low_confidence or model.meta['low_confidence']
  if not 0 <= threshold <= 1:
    raise ValueError(
      f'low_confidence={threshold} is outside [0, 1]. Set '
      '--config.low_confidence, 0 for that of the bundle.'
    )
  root, files = intake.list_files(config.source)
  os.makedirs(workdir, exist_ok=True)
  rows: list[list[str]] = []
  failed: list[list[str]] = []
  unsure = 0
  for chunk in intake.read(
    root,
    files,
    model.meta['size_px'],
    model.meta['channels'],
    config.workers,
    'predict',
  ):
    probs = predict_items(model, chunk)
    for item, p in zip(chunk, probs):
      row = table_row(model.classes, item, p, threshold)
      unsure += row[4] == '1'
      if item.image is None:
        failed.append([item.file, item.reason])
      elif config.heatmaps:
        save_heatmap(model, item, p, len(rows), workdir, config.occlusion)
      rows.append(row)
  path = os.path.join(workdir, 'predictions.csv')
  partial = path + '.partial'
  store.write_table(partial, columns(model.classes), rows)
  os.replace(partial, path)
  classes = [row[2] for row in rows]
  record = write_results(
    workdir,
    {
      'task': 'predict',
      'predictions': path,
      'images': len(rows) - len(failed),
      'failed': failed,
      'low_confidence': unsure,
      'low_confidence_below': threshold,
      'counts': {name: classes.count(name) for name in model.classes},
      'bundle': model.meta,
    },
    config,
  )
  log.get_logger().info(
    '%d pictures in %s, %d of low confidence. Research use only.',
    len(rows) - len(failed),
    path,
    unsure,
  )
  if failed:
    for file, reason in failed[:20]:
      log.get_logger().error('%s: %s', file, reason)
    log.get_logger().error('%d of %d files failed.', len(failed), len(rows))
    raise SystemExit(FAILED)
  return record


def predict_items(
  model: Portable, items: Sequence[Item]
) -> list[np.ndarray | None]:
  """Probabilities (k,) of each item, None where there is no picture."""
  good = [i for i, item in enumerate(items) if item.image is not None]
  found: list[np.ndarray | None] = [None] * len(items)
  if good:
    images = np.stack([items[i].image for i in good])  # type: ignore[misc]
    for i, p in zip(good, bundle_predict(model, images)):
      found[i] = p
  return found


def columns(classes: Sequence[str]) -> list[str]:
  """The header of predictions.csv."""
  return [
    'file',
    'status',
    'class',
    'confidence',
    'low_confidence',
    *(f'p_{name}' for name in classes),
    'notes',
  ]


def table_row(
  classes: Sequence[str],
  item: Item,
  probs: np.ndarray | None,
  threshold: float,
) -> list[str]:
  """A line of predictions.csv; notes hold the reason or the decoding rules."""
  if probs is None:
    blank = [''] * (3 + len(classes))
    return [item.file, 'failed', *blank, item.reason]
  best = int(probs.argmax())
  unsure = probs[best] < threshold or any(r in _DOUBTFUL for r in item.rules)
  return [
    item.file,
    'ok',
    classes[best],
    f'{probs[best]:.4f}',
    '1' if unsure else '0',
    *(f'{p:.4f}' for p in probs),
    ' '.join(item.rules),
  ]


def save_heatmap(
  model: Portable,
  item: Item,
  probs: np.ndarray | None,
  number: int,
  workdir: str,
  config: ConfigDict,
) -> None:
  """Writes heatmaps/<number>_<name>.png: the picture, and what it hangs on."""
  assert item.image is not None
  assert probs is not None
  folder = os.path.join(workdir, 'heatmaps')
  os.makedirs(folder, exist_ok=True)
  drop = occlusion.drop_map(
    model, item.image, int(probs.argmax()), config.window, config.stride
  )
  stem = os.path.splitext(os.path.basename(item.file))[0]
  path = os.path.join(folder, f'{number:05d}_{stem}.png')
  grids.save_png(path, occlusion.overlay(item.image, drop, config.size_px))

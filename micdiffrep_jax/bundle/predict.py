"""Task `predict`: pictures and a bundle to a table of classes.

The files are read as preparation reads them, so that a picture is the same to a
classifier as it was in training.

Letters: n images, k classes.
"""

from collections import Counter
from collections.abc import Sequence
import os

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.bundle import inputs, occlusion
from micdiffrep_jax.bundle.classifier import (
  Classifier,
  bundle_predict,
  load_bundle,
)
from micdiffrep_jax.bundle.inputs import Item
from micdiffrep_jax.data import identity, store
from micdiffrep_jax.draw import grids
from micdiffrep_jax.run import files, log
from micdiffrep_jax.scores import pooling

FAILED = 3  # exit status where some file could not be read
_DOUBTFUL = ('constant', 'tiny')  # rules that make any class a guess


class Patients:
  """What is said of the slices of each patient, gathered as they come."""

  def __init__(self) -> None:
    self._names: list[str] = []
    self._probs: list[np.ndarray] = []
    self._true: dict[str, dict[str, None]] = {}  # classes, in order

  def add(self, patient: str, probs: np.ndarray, true: str = '') -> None:
    """Adds a slice: probabilities (k,) and its true class, '' for unknown."""
    self._names.append(patient)
    self._probs.append(probs)
    self._true.setdefault(patient, {}).update({true: None} if true else {})

  def write(
    self,
    workdir: str,
    classes: Sequence[str],
    threshold: float,
    how: str = 'mean',
  ) -> int:
    """Writes patients.csv, slices pooled as pooling.pool says of `how`.

    Returns how many patients. Without a patient there is no table.
    """
    if not self._names:
      return 0
    # Of no label, so that none is left out for having several.
    unlabelled = np.zeros(len(self._names), int)
    pooled = pooling.pool(
      unlabelled, np.stack(self._probs), np.array(self._names), how
    )
    slices = Counter(self._names)
    rows = []
    for first, probs in zip(pooled.first, pooled.probs):
      name = self._names[first]
      rows.append(
        [
          name,
          str(slices[name]),
          *said(classes, probs, bool(probs.max() < threshold)),
          # Of several classes where the folders say so.
          ' '.join(self._true[name]),
        ]
      )
    header = ['patient', 'slices', *said_columns(classes), 'true_class']
    if not any(self._true.values()):
      header, rows = header[:-1], [row[:-1] for row in rows]
    store.write_table(os.path.join(workdir, 'patients.csv'), header, rows)
    return len(rows)


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Writes predictions.csv, a row per slice in the order of the inputs.

  Where patients are known, patients.csv has a row for each. SystemExit(3) where
  some file could not be read; the others are predicted.
  """
  model = load_bundle(config.bundle, config.head)
  threshold = config.low_confidence or model.meta.low_confidence
  if not 0 <= threshold <= 1:
    raise ValueError(
      f'low_confidence={threshold} is outside [0, 1]. Set '
      '--config.low_confidence, 0 for that of the bundle.'
    )
  os.makedirs(workdir, exist_ok=True)
  rows: list[list[str]] = []
  failed: list[list[str]] = []
  ignored = 0
  people = Patients()
  with inputs.open_inputs(
    config.source, model.meta, '--config.source'
  ) as source:
    for chunk in inputs.read(source, model.meta, config.workers, 'predict'):
      probs = predict_items(model, chunk)
      for item, p, who in zip(chunk, probs, inputs.patients(chunk)):
        if item.failed:
          failed.append([item.name, item.reason])
        ignored += item.reason == inputs.NO_PICTURE
        if p is not None and who:
          people.add(who, p)
        row = table_row(model.classes, item, p, threshold)
        if config.heatmaps:
          name = heatmap_name(item, len(rows)) if p is not None else ''
          row.append(name)
          if p is not None:
            path = os.path.join(workdir, name)
            save_heatmap(model, item.image, p, path, config.occlusion)
        rows.append(row)
    junk = inputs.tell_ignored(source.junk, ignored)
  path = os.path.join(workdir, 'predictions.csv')
  header = columns(model.classes) + ['heatmap'] * bool(config.heatmaps)
  store.write_table(path, header, rows)
  record = {
    'task': 'predict',
    'predictions': path,
    'files': len(source.files),
    'images': len(rows) - len(failed) - ignored,
    'patients': people.write(workdir, model.classes, threshold),
    'ignored': junk,
    'failed': failed,
    **count_classes(model.classes, rows),
    'low_confidence_below': threshold,
    'bundle': model.meta.to_json(),
    'chosen': model.chosen,
  }
  record = files.write_results(workdir, record, config)
  tell(record, path)
  return record


def count_classes(
  classes: Sequence[str], rows: Sequence[Sequence[str]]
) -> files.Results:
  """How often each class is said in predictions.csv, and how often unsure."""
  header = columns(classes)
  told = [row[header.index('class')] for row in rows]
  unsure = [row[header.index('low_confidence')] for row in rows]
  return {
    'low_confidence': unsure.count('1'),
    'counts': {name: told.count(name) for name in classes},
  }


def tell(record: files.Results, path: str) -> None:
  """Logs what became of the inputs; SystemExit(3) where some failed."""
  failed = record['failed']
  log.get_logger().info(
    '%d pictures%s in %s, %d of low confidence. Research use only.',
    record['images'],
    f' of {record["patients"]} known patients' if record['patients'] else '',
    path,
    record['low_confidence'],
  )
  if failed:
    for file, reason in failed[:20]:
      log.get_logger().error('%s: %s', file, reason)
    log.get_logger().error(
      '%d of %d files failed.', len(failed), record['files']
    )
    raise SystemExit(FAILED)


def predict_items(
  model: Classifier, items: Sequence[Item]
) -> list[np.ndarray | None]:
  """Probabilities (k,) of each item, None where there is no picture."""
  good = [i for i, item in enumerate(items) if item.image is not None]
  found: list[np.ndarray | None] = [None] * len(items)
  if good:
    images = np.stack([items[i].image for i in good])  # type: ignore[misc]
    for i, p in zip(good, bundle_predict(model, images)):
      found[i] = p
  return found


def said_columns(classes: Sequence[str]) -> list[str]:
  """The header over what `said` gives."""
  return [
    'class',
    'confidence',
    'low_confidence',
    *(f'p_{name}' for name in classes),
  ]


def said(classes: Sequence[str], probs: np.ndarray, unsure: bool) -> list[str]:
  """The cells that tell a class: its name, how sure, all probabilities."""
  best = int(probs.argmax())
  return [
    classes[best],
    f'{probs[best]:.4f}',
    '1' if unsure else '0',
    *(f'{p:.4f}' for p in probs),
  ]


def columns(classes: Sequence[str]) -> list[str]:
  """The header of predictions.csv."""
  return ['file', 'slice', 'status', *said_columns(classes), 'notes']


def table_row(
  classes: Sequence[str],
  item: Item,
  probs: np.ndarray | None,
  threshold: float,
) -> list[str]:
  """A line of predictions.csv; notes hold the reason or the decoding rules."""
  if probs is None:
    status = 'failed' if item.failed else 'ignored'
    blank = [''] * len(said_columns(classes))
    return [item.file, item.part, status, *blank, item.reason]
  unsure = probs.max() < threshold or any(r in _DOUBTFUL for r in item.rules)
  notes = ' '.join(item.rules)
  return [
    item.file,
    item.part,
    'ok',
    *said(classes, probs, bool(unsure)),
    notes,
  ]


def heatmap_name(item: Item, number: int) -> str:
  """heatmaps/<row>_<name>.png, beside predictions.csv, which names it."""
  stem = identity.stem(os.path.basename(item.file))
  part = f'_{item.part}' if item.part else ''
  return os.path.join('heatmaps', f'{number:05d}_{stem}{part}.png')


def save_heatmap(
  model: Classifier,
  image: np.ndarray | None,
  probs: np.ndarray,
  path: str,
  config: ConfigDict,
) -> None:
  """Writes a picture (s, s, c), and what its class hangs on, as one PNG."""
  assert image is not None
  os.makedirs(os.path.dirname(path), exist_ok=True)
  best = int(probs.argmax())
  drop = occlusion.drop_map(model, image, best, config.window, config.stride)
  title = f'{model.classes[best]}, {100 * probs[best]:.0f} %'
  grids.save_png(path, occlusion.overlay(image, drop, config.size_px, title))

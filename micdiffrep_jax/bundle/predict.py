"""Task `predict`: pictures and a bundle to a table of classes.

The decoder and its rules are those of preparation, so that a picture is the
same to a classifier as it was in training.

Letters: n images, s their side, c channels, k classes.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import functools
import os
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.bundle import occlusion
from micdiffrep_jax.bundle.classifier import (
  Classifier,
  bundle_predict,
  load_bundle,
)
from micdiffrep_jax.data import decode, sources, store
from micdiffrep_jax.draw import grids
from micdiffrep_jax.run import log
from micdiffrep_jax.run.files import write_results

FAILED = 3  # exit status where some file could not be read
_CHUNK = 128  # files that are held in memory at once
_DOUBTFUL = ('constant', 'tiny')  # rules that make any class a guess


class Item(NamedTuple):
  """One picture, or the reason why there is none.

  file: as it was given; image (s, s, c) uint8; rules: what was done to get it,
  and what is odd about it.
  """

  file: str
  image: np.ndarray | None
  rules: tuple[str, ...] = ()
  reason: str = ''


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Writes predictions.csv, one row per input in its order.

  SystemExit(3) where some file could not be read; the others are predicted.
  """
  model = load_bundle(config.bundle)
  threshold = config.low_confidence or model.meta.low_confidence
  if not 0 <= threshold <= 1:
    raise ValueError(
      f'low_confidence={threshold} is outside [0, 1]. Set '
      '--config.low_confidence, 0 for that of the bundle.'
    )
  root, files = list_files(config.source)
  os.makedirs(workdir, exist_ok=True)
  rows: list[list[str]] = []
  failed: list[list[str]] = []
  for chunk in read(root, files, model, config.workers, 'predict'):
    for item, p in zip(chunk, predict_items(model, chunk)):
      if item.image is None:
        failed.append([item.file, item.reason])
      elif config.heatmaps:
        save_heatmap(model, item, p, len(rows), workdir, config.occlusion)
      rows.append(table_row(model.classes, item, p, threshold))
  path = os.path.join(workdir, 'predictions.csv')
  partial = path + '.partial'
  store.write_table(partial, columns(model.classes), rows)
  os.replace(partial, path)
  classes = [row[2] for row in rows]
  unsure = sum(row[4] == '1' for row in rows)
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
      'bundle': model.meta.as_dict(),
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


def list_files(
  source: str | Sequence[str], flag: str = '--config.source'
) -> tuple[str, list[str]]:
  """A root and the files below it, in their order.

  source: a folder (all pictures below, in natural order), a file, '@LIST' (a
  text file with one path per line) or a sequence of paths. Raises ValueError
  where that names nothing.
  """
  if not source:
    raise ValueError(
      f'Nothing to read. Set {flag} to a folder, a file or @LIST.'
    )
  if not isinstance(source, str):
    return '', list(source)
  path = os.path.expanduser(source)
  if source.startswith('@'):
    try:
      with open(os.path.expanduser(source[1:]), encoding='utf-8') as f:
        files = [line.strip() for line in f if line.strip()]
    except OSError as e:
      raise ValueError(f'{flag}={source!r}: {e.strerror}.') from e
    if not files:
      raise ValueError(f'{flag}={source!r} lists no file.')
    return '', files
  if os.path.isdir(path):
    return path, sources.open_folder(path).files
  if os.path.exists(path):
    return '', [path]
  raise ValueError(
    f'{flag}={source!r} does not exist. Give a folder, a file, or @LIST '
    'for a text file with one path per line.'
  )


def read(
  root: str,
  files: Sequence[str],
  model: Classifier,
  workers: int = 0,
  desc: str = 'read',
) -> Iterator[list[Item]]:
  """Decodes files in chunks, in order; a file that fails becomes a reason."""
  meta = model.meta
  work = functools.partial(_read_one, root, meta.size_px, meta.channels)
  with (
    ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool,
    log.progress(total=len(files), desc=desc, unit='file') as bar,
  ):
    for start in range(0, len(files), _CHUNK):
      chunk = files[start : start + _CHUNK]
      yield [item for found in pool.map(work, chunk) for item in found]
      bar.update(len(chunk))


def _read_one(root: str, size_px: int, channels: int, file: str) -> list[Item]:
  path = os.path.expanduser(os.path.join(root, file))
  try:
    with open(path, 'rb') as f:
      pictures = [decode.read_image(f.read(), channels)]
  except OSError as e:
    return [Item(file, None, reason=e.strerror or str(e))]
  except (ValueError, MemoryError) as e:
    return [Item(file, None, reason=str(e) or type(e).__name__)]
  return [
    Item(
      file + (f'#{picture.part}' if picture.part else ''),
      decode.to_square(picture.pixels, size_px, channels),
      picture.rules + decode.shape_rules(picture.pixels, size_px),
    )
    for picture in pictures
  ]


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
  model: Classifier,
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

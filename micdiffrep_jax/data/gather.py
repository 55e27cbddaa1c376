"""Decodes all pictures of a source, in threads, and keeps what went wrong.

The decoders release the interpreter's lock, so threads keep all cores busy
without the start-up and the hazards of worker processes.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import os
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from micdiffrep_jax.data import decode, duplicates, store
from micdiffrep_jax.data.sources import Source
from micdiffrep_jax.run import log


class Row(NamedTuple):
  """What is known of one prepared image, besides its pixels."""

  origin: int  # number of the source
  file: int  # number of the file in the source
  part: str  # tells the pictures of one file apart
  group: str  # what the file itself says
  width: int
  height: int
  constant: bool
  sha256: str


class Gathered(NamedTuple):
  """Rows, their head crops (n, 32, 32) uint8, refused files, rule counts."""

  rows: list[Row]
  crops: np.ndarray
  rejected: list[tuple[str, str]]  # file, reason
  rules: dict[str, int]


def gather(
  sources: list[Source],
  size_px: int,
  channels: int,
  pixels: BinaryIO,
  workers: int = 0,
) -> Gathered:
  """Writes each prepared image (s, s, c) uint8 to `pixels`, one by one.

  Order is that of the sources and their files, whatever thread finishes first.
  A file that cannot be read is listed with its reason and skipped.
  """
  rows: list[Row] = []
  crops: list[np.ndarray] = []
  rejected: list[tuple[str, str]] = []
  rules: Counter = Counter()
  total = sum(len(s.files) for s in sources)
  with log.progress(total=total, desc='read', unit='file') as bar:
    for origin, source in enumerate(sources):
      for number, outcome in enumerate(
        _outcomes(source, size_px, channels, workers)
      ):
        if isinstance(outcome, str):
          rejected.append((source.files[number], outcome))
        else:
          for image, crop, picture_rules, fields in outcome:
            pixels.write(image.tobytes())
            crops.append(crop)
            rules.update(picture_rules)
            rows.append(Row(origin, number, **fields))
        bar.update()
  pixels.flush()
  side = duplicates.CROP_PX
  stacked = np.stack(crops) if crops else np.zeros((0, side, side), np.uint8)
  return Gathered(rows, stacked, rejected, dict(sorted(rules.items())))


def _outcomes(
  source: Source, size_px: int, channels: int, workers: int
) -> Iterator[list[tuple] | str]:
  """Per file: its images, or the reason why it was refused."""

  def work(files: list[str]) -> list[list[tuple] | str]:
    return [_prepare(source, f, size_px, channels) for f in files]

  chunk = 16
  n_workers = workers or os.cpu_count() or 1
  chunks = [
    source.files[i : i + chunk] for i in range(0, len(source.files), chunk)
  ]
  with ThreadPoolExecutor(n_workers) as pool:
    # A bounded number in flight: images wait in memory until they are written.
    ahead = [pool.submit(work, c) for c in chunks[: 4 * n_workers]]
    try:
      for i in range(len(chunks)):
        done = ahead.pop(0).result()
        if i + 4 * n_workers < len(chunks):
          ahead.append(pool.submit(work, chunks[i + 4 * n_workers]))
        yield from done
    finally:
      pool.shutdown(cancel_futures=True)


def _prepare(
  source: Source, file: str, size_px: int, channels: int
) -> list[tuple] | str:
  try:
    pictures = source.read(file, channels)
  except (ValueError, OSError, MemoryError) as e:
    return str(e) or type(e).__name__
  return [_finish(p, size_px, channels) for p in pictures]


def _finish(
  picture: decode.Picture, size_px: int, channels: int
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], dict[str, Any]]:
  height, width = picture.pixels.shape[:2]
  image = decode.to_square(picture.pixels, size_px, channels)
  rules = picture.rules + decode.shape_rules(picture.pixels, size_px)
  fields = {
    'part': picture.part,
    'group': picture.group,
    'width': width,
    'height': height,
    'constant': 'constant' in rules,
    'sha256': store.pixel_hash(image),
  }
  return image, duplicates.head_crop(picture.pixels), rules, fields

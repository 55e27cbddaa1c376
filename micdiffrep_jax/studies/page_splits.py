"""What a study of splits tells, and the same as blocks of a page."""

from collections.abc import Mapping
import dataclasses
import math
from typing import NamedTuple

from micdiffrep_jax.draw.page import Block, Text, interval, pivot
from micdiffrep_jax.draw.result import (
  Run,
  floors_left_out,
  patients_in_words,
  pictures,
  record_of,
  title,
)
from micdiffrep_jax.run.records import Record


class Seen(NamedTuple):
  """What an encoder has seen of the test part of a split.

  images: of that part; pretrained_on: its own split; seen: how many it drew,
  None where it was pretrained on other data; relatives: of whose group it drew
  one.
  """

  images: int
  pretrained_on: str | None
  seen: int | None = None
  relatives: int | None = None

  def __str__(self) -> str:
    if self.seen is None:
      return 'unknown: pretrained on other data'
    if not self.relatives:
      return 'none'
    return (
      f'{self.seen} of {self.images} drawn, {self.relatives} with a relative '
      f'drawn (pretrained on {self.pretrained_on!r})'
    )


@dataclasses.dataclass(frozen=True)
class Point(Record):
  """A metric of a row of a probe, under one split, on one set of images.

  encoder: '' is the first; minus_patient: the value less that under the split
  by patients, nan where there is none, and without an interval: the test images
  of two splits differ.
  """

  method: str
  split: str
  images: str
  metric: str
  value: float
  low: float
  high: float
  encoder: str = ''
  minus_patient: float = math.nan

  @property
  def title(self) -> str:
    """Encoder and head."""
    name = title(self.method)
    return f'{self.encoder}: {name}' if self.encoder else name


@dataclasses.dataclass(frozen=True)
class Splits(Record):
  """All points; by split what pretraining has seen; counts of the patients."""

  table: tuple[Point, ...]
  test_images_in_pretraining: Mapping[str, Seen]
  patients: Mapping[str, int] | None = None

  @property
  def shown(self) -> list[Point]:
    """Accuracy on all images."""
    shown = ('all', 'accuracy')
    return [x for x in self.table if (x.images, x.metric) == shown]


def blocks(run: Run) -> list[Block]:
  """Accuracy under each split, and what pretraining has seen of its test."""
  record = record_of(run)
  found = Splits.from_json(record)
  seen = found.test_images_in_pretraining
  scores = pivot(
    ((x.title, x.split, interval(x)) for x in found.shown),
    ['method'],
    {name: name for name in seen},
    'Test accuracy in percent, all images, 95 % interval over groups; '
    f'{patients_in_words(found.patients or {})}.',
  )
  drawn = [
    Text(
      f'Test images of {name!r} in pretraining: {what}.',
      '' if what.relatives == 0 else 'warning',
    )
    for name, what in seen.items()
  ]
  return [scores, *floors_left_out(record), *drawn, *pictures(run)]

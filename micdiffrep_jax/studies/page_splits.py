"""A study of splits as blocks of a page."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from micdiffrep_jax.draw.page import Block, Text, interval, pivot
from micdiffrep_jax.draw.result import (
  Run,
  floors_left_out,
  patients_in_words,
  pictures,
  record_of,
  title,
)


def blocks(run: Run) -> list[Block]:
  """Accuracy under each split, and what pretraining has seen of its test."""
  record = record_of(run)
  seen = {
    name: Seen(**found)
    for name, found in record['test_images_in_pretraining'].items()
  }
  scores = pivot(
    (
      (row_title(r), r['split'], interval(r))
      for r in record['table']
      if (r['images'], r['metric']) == ('all', 'accuracy')
    ),
    ['method'],
    {name: name for name in seen},
    'Test accuracy in percent, all images, 95 % interval over groups; '
    f'{patients_in_words(record.get("patients") or {})}.',
  )
  drawn = [
    Text(
      f'Test images of {name!r} in pretraining: {found}.',
      '' if found.relatives == 0 else 'warning',
    )
    for name, found in seen.items()
  ]
  return [scores, *floors_left_out(record), *drawn, *pictures(run)]


def row_title(line: Mapping[str, Any]) -> str:
  """Encoder and head of a line; '' is the first encoder."""
  name = title(line['method'])
  return f'{line["encoder"]}: {name}' if line.get('encoder') else name


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

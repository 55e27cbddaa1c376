"""A study of splits as blocks of a page."""

from collections.abc import Mapping
from typing import Any

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
  seen = record['test_images_in_pretraining']
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
      f'Test images of {name!r} in pretraining: {drawn_in_words(found)}.',
      '' if found['relatives'] == 0 else 'warning',
    )
    for name, found in seen.items()
  ]
  return [scores, *floors_left_out(record), *drawn, *pictures(run)]


def row_title(line: Mapping[str, Any]) -> str:
  """Encoder and head of a line; '' is the first encoder."""
  name = title(line['method'])
  return f'{line["encoder"]}: {name}' if line.get('encoder') else name


def drawn_in_words(seen: Mapping[str, Any]) -> str:
  """What an encoder has seen of a split's test part."""
  if seen['seen'] is None:
    return 'unknown: pretrained on other data'
  if not seen['relatives']:
    return 'none'
  return (
    f'{seen["seen"]} of {seen["images"]} drawn, {seen["relatives"]} with a '
    f'relative drawn (pretrained on {seen["pretrained_on"]!r})'
  )

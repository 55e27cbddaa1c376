"""What a study of few labels tells, and the same as blocks of a page."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from micdiffrep_jax.draw.page import Block, difference, interval, pivot
from micdiffrep_jax.draw.result import (
  SUBSETS,
  Run,
  floors_left_out,
  pictures,
  record_of,
  title,
)
from micdiffrep_jax.run.records import Record
from micdiffrep_jax.scores.bootstrap import OverDraws, Score


@dataclasses.dataclass(frozen=True)
class Point(Record):
  """A method at one share of the labels, on one set of images.

  scores: the headline metrics; chosen: by validation, of every draw.
  """

  REST = 'scores'
  method: str
  share: float
  images: str
  scores: Mapping[str, OverDraws]
  chosen: tuple[Mapping[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Comparison(Record):
  """A method minus a floor, paired over draws and groups."""

  REST = 'scores'
  method: str
  floor: str
  share: float
  images: str
  scores: Mapping[str, Score]


@dataclasses.dataclass(frozen=True)
class Curves(Record):
  """All points, and what of them is compared."""

  curves: tuple[Point, ...]
  comparisons: tuple[Comparison, ...] = ()

  @property
  def subset(self) -> str:
    """The set of images to show.

    Few labels are few patients, so variants of a picture say little more.
    """
    names = {point.images for point in self.curves}
    return 'sources' if 'sources' in names else 'all'


def blocks(run: Run) -> list[Block]:
  """Balanced accuracy by share of the labels, and heads beside the floors."""
  record = record_of(run)
  found = Curves.from_json(record)
  subset, shares = found.subset, sorted({x.share for x in found.curves})
  columns = {s: f'{100 * s:g} %' for s in shares}
  scores = pivot(
    (
      (title(x.method), x.share, interval(x.scores['balanced_accuracy']))
      for x in found.curves
      if x.images == subset
    ),
    ['method'],
    columns,
    'Balanced accuracy in percent by share of the training groups, '
    f'{SUBSETS[subset]}: mean over draws of labels, 95 % interval over draws '
    'and groups.',
  )
  differences = pivot(
    (
      (
        title(c.method),
        title(c.floor),
        c.share,
        difference(c.scores['balanced_accuracy']),
      )
      for c in found.comparisons
      if c.images == subset and '/' not in c.method
    ),
    ['method', 'minus ...'],
    columns,
    'Points of balanced accuracy, paired over draws and groups.',
    text=True,
  )
  tables = [scores, differences] if differences.rows else [scores]
  return [*tables, *floors_left_out(record), *pictures(run)]

"""What a cross-validation tells, and the same as blocks of a page."""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

from micdiffrep_jax.draw.page import Block, Table, difference, interval
from micdiffrep_jax.draw.result import (
  SUBSETS,
  Run,
  floors_left_out,
  patients_in_words,
  pictures,
  record_of,
  title,
)
from micdiffrep_jax.run.records import Record
from micdiffrep_jax.scores.bootstrap import Score

Scores = Mapping[str, Score]  # by metric


class Key(NamedTuple):
  """A row: encoder '' is of a floor, a head 'random/...' of random weights.

  share: of the labelled groups of each fold.
  """

  encoder: str
  head: str
  share: float = 1.0

  @property
  def title(self) -> str:
    """Encoder and head, and a share below 1."""
    few = f'{100 * self.share:g} % of the labels' if self.share < 1 else ''
    return ', '.join(x for x in (self.encoder, title(self.head), few) if x)


@dataclasses.dataclass(frozen=True)
class Row(Record):
  """What folds say of one row of the table.

  Attributes:
    encoder, head, share: its Key.
    folds: accuracy on each.
    all, sources, patients: headline metrics of these sets of images.
    told: what each fold chose, what its encoder tells, whose mean it is.
  """

  REST = 'told'
  encoder: str
  head: str
  folds: tuple[float, ...]
  all: Scores
  sources: Scores | None = None
  patients: Scores | None = None
  share: float = 1.0
  told: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def key(self) -> Key:
    """Its name."""
    return Key(self.encoder, self.head, self.share)

  @property
  def subsets(self) -> dict[str, Scores]:
    """Scores by set of images, those that there are."""
    found = {'all': self.all, 'sources': self.sources}
    found['patients'] = self.patients
    return {name: x for name, x in found.items() if x is not None}


@dataclasses.dataclass(frozen=True)
class Comparison(Record):
  """Row a minus row b on the same resampled groups of a set of images."""

  REST = 'scores'
  a: Key
  b: Key
  images: str
  scores: Scores


@dataclasses.dataclass(frozen=True)
class CrossValidation(Record):
  """The table, what of it is compared, and which images it is of."""

  rows: tuple[Row, ...]
  comparisons: tuple[Comparison, ...]
  data: Mapping[str, Any]

  @property
  def shown(self) -> list[tuple[Comparison, Score]]:
    """Comparisons on all images, and their accuracy."""
    return [
      (c, c.scores['accuracy']) for c in self.comparisons if c.images == 'all'
    ]


def blocks(run: Run) -> list[Block]:
  """Encoders and heads on held-out folds, and the first against the rest."""
  record = record_of(run)
  found = CrossValidation.from_json(record)
  rows, told = found.rows, found.data
  subsets = list(rows[0].subsets)
  scores = Table(
    ['row', *(SUBSETS[name] for name in subsets), 'unlabelled drawn'],
    [
      [
        row.key.title,
        *(interval(row.subsets[name]['accuracy']) for name in subsets),
        _share(row.told.get('drawn_in_pretraining'), told['predicted']),
      ]
      for row in rows
    ],
    f'Accuracy in percent on {told["predicted"]} images of {told["groups"]} '
    'groups of train and validation, each predicted by a head that saw none of '
    'its group; 95 % interval over groups; '
    f'{patients_in_words(told.get("predicted_patients") or {})}. The test part '
    'was not read.',
  )
  differences = Table(
    ['row', 'minus ...', 'points'],
    [[c.a.title, c.b.title, difference(score)] for c, score in found.shown],
    'Points of accuracy, paired over groups.',
    text=True,
  )
  absent = floors_left_out(record)
  tables = [scores, differences] if differences.rows else [scores]
  return [*tables, *absent, *pictures(run)]


def _share(part: int | None, whole: int) -> str:
  return '-' if part is None else f'{100 * part / whole:.0f} %'

"""Pages made of few kinds of blocks: one HTML file, or Markdown; CSV tables.

The HTML is self-contained: style and pictures are inside, nothing is fetched.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
import importlib.resources
import math
import os
from typing import Any, NamedTuple

import jinja2
import pandas as pd

from micdiffrep_jax.draw.interval import Interval, bounds
from micdiffrep_jax.run import files

TEMPLATE = 'templates/page.html'
DISCLAIMER = 'Research use only. Not for clinical use.'


class Table(NamedTuple):
  """Rows of cells; the first column is text, the rest line up as numbers.

  strong: numbers of the rows to set off; text: all columns are text.
  """

  columns: Sequence[str]
  rows: Sequence[Sequence[Any]]
  caption: str = ''
  strong: Sequence[int] = ()
  text: bool = False


class Picture(NamedTuple):
  """A picture as a data URI.

  width_px: at which it is shown, 0 its own; stem: of the file it was read from.
  """

  uri: str
  caption: str = ''
  width_px: int = 0
  stem: str = ''


class Facts(NamedTuple):
  """Names and values."""

  pairs: Sequence[tuple[str, Any]]


class Text(NamedTuple):
  """A paragraph; tone: '' | good | warning | bad."""

  text: str
  tone: str = ''


class Heading(NamedTuple):
  """A heading inside a section."""

  text: str


class Code(NamedTuple):
  """Preformatted text, folded away under its title."""

  text: str
  title: str = ''


Line = dict[str, Any]  # of a CSV file, by column
Block = Table | Picture | Facts | Text | Heading | Code


class Section(NamedTuple):
  """A heading and what stands under it."""

  title: str
  blocks: Sequence[Block]

  @property
  def anchor(self) -> str:
    """The title as the name of a link target."""
    kept = [c if c.isalnum() else '-' for c in self.title.lower()]
    return '-'.join(filter(None, ''.join(kept).split('-')))


def uri(data: bytes, media: str = 'image/png') -> str:
  """Bytes as a data URI."""
  return f'data:{media};base64,{base64.b64encode(data).decode()}'


def picture(
  path: str | os.PathLike, caption: str = '', width_px: int = 0
) -> Picture:
  """Reads a PNG or SVG file into a block."""
  media = 'image/svg+xml' if str(path).endswith('.svg') else 'image/png'
  stem = os.path.splitext(os.path.basename(path))[0]
  with open(path, 'rb') as f:
    return Picture(uri(f.read(), media), caption, width_px, stem)


def render(
  title: str, subtitle: str, sections: Sequence[Section], footer: str = ''
) -> str:
  """The page as HTML; all text is escaped."""
  package = importlib.resources.files('micdiffrep_jax.draw')
  source = package.joinpath(TEMPLATE).read_text()
  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['halves'] = _halves
  environment.filters['kind'] = lambda block: type(block).__name__.lower()
  return environment.from_string(source).render(
    title=title,
    subtitle=subtitle,
    sections=[s for s in sections if s.blocks],
    footer=footer,
    disclaimer=DISCLAIMER,
  )


def markdown(title: str, subtitle: str, sections: Sequence[Section]) -> str:
  """Headings, text, facts and tables of the page; pictures are left out."""
  lines = [f'# {title}', '', subtitle, '', f'**{DISCLAIMER}**', '']
  for section in sections:
    body: list[str] = []
    for block in section.blocks:
      if isinstance(block, Table):
        body += _table(block)
      elif isinstance(block, Facts):
        body += [f'* {name}: {value}' for name, value in block.pairs] + ['']
      elif isinstance(block, Heading):
        body += [f'### {block.text}', '']
      elif isinstance(block, Text):
        body += [f'> **{block.text}**' if block.tone else block.text, '']
    if body:
      lines += [f'## {section.title}', '', *body]
  return '\n'.join(lines)


def _table(table: Table) -> list[str]:
  def row(cells: Sequence[Any], strong: bool = False) -> str:
    texts = [str(c).replace('|', '\\|').replace('\n', ' ') for c in cells]
    if strong:
      texts = [f'**{t}**' if t else t for t in texts]
    return f'| {" | ".join(texts)} |'

  number = '---' if table.text else '--:'
  align = ['---', *[number] * (len(table.columns) - 1)]
  caption = [f'*{table.caption}*', ''] if table.caption else []
  return [
    *caption,
    row(table.columns),
    row(align),
    *(row(cells, i in table.strong) for i, cells in enumerate(table.rows)),
    '',
  ]


def _halves(cell: Any) -> tuple[str, str]:
  """A number and the interval behind it, which goes under it."""
  value, sign, rest = str(cell).partition(' (')
  return value, sign.strip() + rest


def interval(x: Interval, scale: float = 100, digits: int = 1) -> str:
  """'value (low to high)', or '' where there is no value."""
  value, low, high = bounds(x)
  if value is None:
    return ''
  text = f'{scale * value:.{digits}f}'
  if low is None or high is None:
    return text
  return f'{text} ({scale * low:.{digits}f} to {scale * high:.{digits}f})'


def _percent(x: Interval, sign: str) -> list[str]:
  return [
    f'{100 * (math.nan if one is None else one):{sign}.1f}' for one in bounds(x)
  ]


def brackets(x: Interval, sign: str = '') -> str:
  """'value [low, high]' in percent, as plain text; sign '+' shows it always."""
  value, low, high = _percent(x, sign)
  return f'{value} [{low}, {high}]'


def difference(x: Interval) -> str:
  """'+value (+low to +high)' in points of a paired comparison."""
  value, low, high = _percent(x, '+')
  return f'{value} ({low} to {high})'


def pivot(
  cells: Iterable[Sequence[Any]],
  head: Sequence[str],
  columns: Mapping[Any, str],
  caption: str = '',
  text: bool = False,
) -> Table:
  """A table of one column for each of `columns`, {value: title}.

  A cell is what stands under `head`, the value of its column, and its text.
  Rows stand in the order of their first cells; '-' is where nothing is.
  """
  names = [*head, 'value', 'text']
  frame = pd.DataFrame(cells, columns=names, dtype=object)
  first = frame.drop_duplicates(head).set_index(list(head)).index
  frame = frame.drop_duplicates(names[:-1], keep='last')
  table = frame.pivot(index=list(head), columns='value', values='text')
  table = table.reindex(index=first, columns=list(columns)).astype(object)
  rows = table.where(table.notna(), '-').reset_index().to_numpy().tolist()
  return Table([*head, *columns.values()], rows, caption, text=text)


def write_csv(
  path: str | os.PathLike,
  columns: Sequence[str],
  rows: Sequence[Sequence[Any]] | Sequence[Line],
) -> None:
  """Writes a table that is either whole or absent; None is an empty cell.

  Of rows that name their cells the columns are picked out.
  """
  frame = pd.DataFrame(rows, columns=list(columns), dtype=object)
  text = frame.to_csv(index=False, lineterminator='\n')
  files.write_whole(path, text.encode())

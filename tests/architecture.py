"""The rooms of the package, read from its imports, and their picture.

`python tests/architecture.py` draws docs/architecture.svg again.
"""

import ast
import functools
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'micdiffrep_jax'
PICTURE = ROOT / 'docs' / 'architecture.svg'
FILES = sorted(PACKAGE.rglob('*.py'))
# From the ground up: a room may import those before it. The one way up is
# tasks.MODULES, which names modules and imports them on use.
ORDER = (
  'run scores draw data heads diffusion models methods encoders bundle '
  'api generate pretrain tasks studies sweep main'
).split()

# Of the picture, in pixels.
BOX_W, BOX_H = 92, 26
STEP_X, STEP_Y = 58, 40
MARGIN = 14
ENTRY = 78  # where an arrow enters a box, from its left
HOW_TO_READ = (
  'A line leads from a room to the right.',
  'A dot on it is a room that it imports:',
  'follow the arrow down from the dot.',
)
STYLE = """<style>
text { font: 13px sans-serif; fill: #1b1b1b }
rect { fill: #e8eef7; stroke: #45608c }
.page { fill: white; stroke: none }
path { fill: none; stroke: #8fa3c0 }
circle, polygon { fill: #45608c }
</style>
<defs>
<marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4"
 orient="auto"><polygon points="0 0 8 4 0 8"/></marker>
</defs>"""


def module_name(path):
  """'data.store' of a file of the package, 'data' of a room's __init__."""
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return '.'.join(p for p in parts if p != '__init__')


def room(path):
  """The folder of a file, or the file itself where it lies at the top."""
  return module_name(path).split('.')[0]


@functools.cache
def imports(path):
  """Modules of the package that a file imports, and other top-level names."""
  inside, outside = set(), set()
  modules = {module_name(p) for p in FILES}
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      top, _, rest = node.module.partition('.')
      if top != 'micdiffrep_jax':
        outside.add(top)
        continue
      for alias in node.names:
        inner = f'{rest}.{alias.name}'.strip('.')
        inside.add(inner if inner in modules else rest)
    elif isinstance(node, ast.Import):
      outside |= {alias.name.split('.')[0] for alias in node.names}
  return inside, outside


def imported_rooms():
  """{room: the rooms that its files import}, without itself."""
  graph = {name: set() for name in ORDER}
  for path in FILES:
    if room(path):
      graph[room(path)] |= {m.split('.')[0] for m in imports(path)[0]}
  return {name: found - {name} for name, found in graph.items()}


def draw():
  """The picture as SVG: a staircase of rooms, an arrow per import.

  A room's line runs to the right; at each dot an arrow falls from it to a room
  that it imports.
  """
  graph, rooms = imported_rooms(), ORDER[::-1]
  corners = {
    name: (MARGIN + i * STEP_X, MARGIN + i * STEP_Y)
    for i, name in enumerate(rooms)
  }
  right, bottom = corners[rooms[-1]]
  width, height = right + BOX_W + MARGIN, bottom + BOX_H + MARGIN
  legend = [
    text(MARGIN, height - MARGIN - 18 * i, line, 'start')
    for i, line in enumerate(reversed(HOW_TO_READ))
  ]
  return '\n'.join(
    [
      '<svg xmlns="http://www.w3.org/2000/svg" '
      f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
      STYLE,
      f'<rect class="page" width="{width}" height="{height}"/>',
      *lines(graph, corners),
      *boxes(corners),
      *legend,
      '</svg>\n',
    ]
  )


def lines(graph, corners):
  """Lines to the right with their dots, and arrows down; behind the boxes."""
  found, dots = [], []
  for name, (x, y) in corners.items():
    importers = [other for other in corners if name in graph[other]]
    if importers:
      start = corners[importers[0]][1] + BOX_H // 2
      path = f'M{x + ENTRY} {start}V{y}'
      found.append(f'<path d="{path}" marker-end="url(#head)"/>')
    imported = [corners[other][0] + ENTRY for other in graph[name]]
    if imported:
      middle = y + BOX_H // 2
      found.append(f'<path d="M{x + BOX_W} {middle}H{max(imported)}"/>')
      dots += [
        f'<circle cx="{at}" cy="{middle}" r="3"/>' for at in sorted(imported)
      ]
  return found + dots


def boxes(corners):
  """A box with the name of each room."""
  found = []
  for name, (x, y) in corners.items():
    found.append(
      f'<rect x="{x}" y="{y}" width="{BOX_W}" height="{BOX_H}" rx="4"/>'
    )
    found.append(text(x + BOX_W // 2, y + 17, name, 'middle'))
  return found


def text(x, y, words, anchor):
  """A line of text; anchor: start | middle."""
  return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'


if __name__ == '__main__':
  PICTURE.parent.mkdir(exist_ok=True)
  PICTURE.write_text(draw())

"""Draws method.png, the picture of the method: python docs/method.py.

Pictures and noise are those of phantoms; networks and probabilities are a
sketch, and the features of layers are means of the picture.
"""

import io
import os
import pathlib
import sys

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from micdiffrep_jax.data.sources import phantom  # noqa: E402
from micdiffrep_jax.run import files  # noqa: E402

PICTURE = ROOT / 'docs' / 'method.png'
WIDTH, HEIGHT = 100, 118  # of the canvas; 20 units are an inch
_INK, _NET, _FROZEN, _HEAD = '#1d2733', '#c4601c', '#1f5fa8', '#3f8f5f'
_CELLS = ('Blues', 'Purples', 'Greens')  # a colour map for each layer
_NOISE = 0.3  # its share of what is shown, so that it can be seen
_SHARES = (0.74, 0.12, 0.08, 0.06)


def draw() -> Figure:
  """The whole picture: pretraining above, classification below."""
  figure = Figure(figsize=(WIDTH / 20, HEIGHT / 20), facecolor='white')
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set(aspect='equal')
  axes.axis('off')
  spec = phantom.Spec(patients=20)
  pictures = [phantom.draw(spec, k, 2) / 127.5 - 1 for k in (0, 1, 2, 3)]
  noise = np.random.default_rng(0).normal(size=pictures[0].shape)
  _pretraining(axes, pictures, noise)
  _classification(axes, pictures[0], noise)
  axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
  return figure


def _pretraining(
  axes: Axes, pictures: list[np.ndarray], noise: np.ndarray
) -> None:
  _panel(axes, 75, 41, '1  Pretrain, without labels', _NET)
  for i, picture in enumerate(pictures):
    _image(axes, picture, 5 + 2 * i, 92.5 - 2 * i, 15)
  _say(axes, 15.5, 84, 'unlabelled\nimages')
  _arrow(axes, 28, 95, 34)
  _image(axes, _noised(pictures[-1], noise), 35, 87.5, 15)
  _say(axes, 42.5, 84, 'with noise\nof step t')
  _arrow(axes, 51.5, 95, 56)
  _unet(axes, 57, 95, _NET)
  _say(axes, 67, 84, 'UNet')
  _arrow(axes, 78, 95, 80.5)
  _image(axes, noise, 81, 87.5, 15)
  _say(axes, 88.5, 84, 'predicts\nthe noise')


def _classification(axes: Axes, picture: np.ndarray, noise: np.ndarray) -> None:
  _panel(axes, 2, 71, '2  Freeze, read layers, fit a small head', _FROZEN)
  _image(axes, _noised(picture, noise), 5, 43, 15)
  _say(axes, 12.5, 40, 'image with\nnoise')
  _arrow(axes, 21.5, 50.5, 26.5)
  _unet(axes, 27.5, 50.5, _FROZEN)
  _say(axes, 37.5, 40, 'UNet, frozen')
  _arrow(axes, 49.5, 50.5, 54.5)
  for i, (cells, colours) in enumerate(zip((24, 12, 8), _CELLS, strict=True)):
    x, seen = 56 + 14 * i, _means(picture, cells)
    _image(axes, seen, x, 44.5, 12, colours)
    _image(axes, _means(seen, 4), x + 1.5, 25, 9, colours)
    _arrow(axes, x + 6, 43, x + 6, 35)
  _say(axes, 76, 61.5, 'features of each layer')
  _say(axes, 76, 23, 'means of 4 x 4 cells')
  _arrow(axes, 54.5, 29.5, 49)
  box = FancyBboxPatch(
    (30, 25), 17, 9, 'round,pad=0,rounding_size=2', fc=_HEAD, ec='none'
  )
  axes.add_patch(box)
  middle = {'ha': 'center', 'va': 'center', 'fontsize': 12}
  axes.text(38.5, 29.5, 'head', color='white', **middle)
  _arrow(axes, 38.5, 24, 38.5, 17)
  names = ('glioma', 'meningioma', 'normal', 'pituitary')
  for i, (name, share) in enumerate(zip(names, _SHARES, strict=True)):
    x = 5 + 23.3 * i
    axes.add_patch(Rectangle((x, 12), 20, 3, fc='#dfe5ea'))
    axes.add_patch(Rectangle((x, 12), 20 * share, 3, fc=_HEAD))
    _say(axes, x + 10, 10, name)


def _means(x: np.ndarray, cells: int) -> np.ndarray:
  """Means (cells, cells) of the cells of a square."""
  f = len(x) // cells
  return x.reshape(cells, f, cells, f).mean((1, 3))


def _noised(picture: np.ndarray, noise: np.ndarray) -> np.ndarray:
  return np.sqrt(1 - _NOISE) * picture + np.sqrt(_NOISE) * noise


def _panel(
  axes: Axes, y: float, height: float, title: str, colour: str
) -> None:
  axes.add_patch(
    FancyBboxPatch(
      (2, y),
      96,
      height,
      'round,pad=0,rounding_size=3',
      fc='#f6f8fa',
      ec=colour,
      lw=1.2,
    )
  )
  axes.text(
    5, y + height - 3, title, va='top', color=colour, fontsize=13, weight='bold'
  )


def _image(
  axes: Axes,
  x: np.ndarray,
  left: float,
  bottom: float,
  side: float,
  colours: str = 'gray',
) -> None:
  axes.imshow(
    x,
    cmap=colours,
    extent=(left, left + side, bottom, bottom + side),
    interpolation='nearest',
    zorder=3,
  )
  axes.add_patch(
    Rectangle((left, bottom), side, side, fc='none', ec='white', lw=1, zorder=3)
  )


def _unet(axes: Axes, left: float, middle: float, colour: str) -> None:
  """Seven bars: down to the bottleneck and up again."""
  for i, height in enumerate((18, 13, 9, 6, 9, 13, 18)):
    faint = 1.0 if i < 4 else 0.45
    axes.add_patch(
      Rectangle(
        (left + 3 * i, middle - height / 2),
        2.2,
        height,
        fc=colour,
        alpha=faint,
        ec='none',
      )
    )


def _arrow(
  axes: Axes, x: float, y: float, to_x: float, to_y: float | None = None
) -> None:
  axes.annotate(
    '',
    (to_x, y if to_y is None else to_y),
    (x, y),
    arrowprops={'arrowstyle': '-|>', 'color': _INK, 'lw': 1.4},
  )


def _say(axes: Axes, x: float, y: float, text: str, va: str = 'top') -> None:
  axes.text(
    x, y, text, ha='center', va=va, color=_INK, fontsize=11, linespacing=1.1
  )


def write(path: str | os.PathLike = PICTURE) -> None:
  """Writes the picture, whole or not at all, in 128 colours."""
  raw, packed = io.BytesIO(), io.BytesIO()
  draw().savefig(raw, dpi=200)
  Image.open(raw).convert('RGB').quantize(128).save(packed, 'PNG')
  files.write_whole(path, packed.getvalue())


if __name__ == '__main__':
  write()

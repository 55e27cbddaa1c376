"""A result folder, and the pictures in it."""

from collections.abc import Callable, Sequence
import glob
import os
import tempfile
from typing import Any, NamedTuple

from micdiffrep_jax.draw import page
from micdiffrep_jax.draw.page import Picture

CAPTIONS = {
  'confusion': 'Confusion matrix: counts, shaded by share of the true class.',
  'reliability': 'Accuracy against confidence; on the dotted line a model is '
  'as often right as it says.',
  'figure4': 'Probe accuracy against timestep, one line per layer.',
  'table1': 'Accuracy on the test part, 95 % interval over groups.',
  'samples': 'Generated images above as many real ones.',
  'nearest': 'Generated images above their nearest training images; "<" marks '
  'a distance that few unseen images have.',
  'trajectory': 'The image that the model expects, on the way from noise.',
  'interpolation': 'Between two real images, through their latents.',
  'reconstruction': 'Real images noised to a step and denoised again.',
}
_WIDTHS = {'confusion': 440, 'reliability': 400}
_PLOT_PX = 500  # of plots of no other width


class Run(NamedTuple):
  """A result folder; record is results.json, None with a problem instead."""

  name: str
  folder: str
  record: dict[str, Any] | None
  problem: str = ''

  @property
  def task(self) -> str:
    """The task that made it, '' where nothing tells."""
    if self.record is None:
      return ''
    config = self.record.get('config') or {}
    return self.record.get('task') or config.get('task') or ''


def pictures(run: Run, names: Sequence[str] | None = None) -> list[Picture]:
  """PNG files of a run by name, or all of them, as far as there are any."""
  if names is None:
    paths = sorted(glob.glob(os.path.join(run.folder, '*.png')), key=_rank)
  else:
    paths = [os.path.join(run.folder, f'{name}.png') for name in names]
  found = []
  for path in filter(os.path.exists, paths):
    stem = os.path.splitext(os.path.basename(path))[0]
    caption = CAPTIONS.get(stem, stem.replace('_', ' '))
    found.append(page.picture(path, caption, width_px=_width(stem)))
  return found


def _width(stem: str) -> int:
  if stem.startswith(('figure', 'heatmap', 'curve', 'labels')):
    return _PLOT_PX
  return _WIDTHS.get(stem, 0)


def _rank(path: str) -> tuple[int, str]:
  """Known pictures in the order of CAPTIONS, then the others."""
  stem = os.path.splitext(os.path.basename(path))[0]
  known = list(CAPTIONS)
  return (known.index(stem) if stem in known else len(known)), stem


def drawn(
  draw: Callable[..., None], *args: Any, caption: str, **kwargs: Any
) -> Picture:
  """The picture that draw(path, ...) makes, as SVG."""
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'picture.svg')
    draw(path, *args, **kwargs)
    return page.picture(path, caption)

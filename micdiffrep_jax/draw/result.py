"""A result folder: its record, read with checks; its pictures; its words."""

from collections.abc import Mapping, Sequence
import glob
import os
import re
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.draw.page import Picture, Text

RESULTS = 'results.json'
CAPTIONS = {
  'confusion': 'Confusion matrix: counts, shaded by share of the true class.',
  'reliability': 'Accuracy against confidence; on the dotted line a model is '
  'as often right as it says.',
  'decision': 'Net benefit against the probability from which one acts, one '
  'class against the rest; a false alarm costs the odds of that probability. '
  'Band: 95 % interval over groups of the first; dotted: acting on all; at 0: '
  'on none.',
  'figure4': 'Probe accuracy against timestep, one line per layer.',
  'table1': 'Accuracy on the test part, 95 % interval over groups.',
  'samples': 'Generated images above as many real ones.',
  'nearest': 'Generated images above their nearest training images; "<" marks '
  'a distance that few unseen images have.',
  'trajectory': 'The image that the model expects, on the way from noise.',
  'interpolation': 'Between two real images, through their latents.',
  'reconstruction': 'Real images noised to a step and denoised again.',
}
_WIDTHS = {'confusion': 440, 'reliability': 400, 'decision': 640}
_PLOT_PX = 500  # of plots of no other width
NAMES = {
  'linear_single': 'linear, best single layer',
  'linear_concat': 'linear, all layers',
  'mlp_single': 'MLP, best single layer',
  'mlp_concat': 'MSFA (MLP, all layers)',
  'mlp_layers_single': 'MLP of a committee, best single layer',
  'mlp_layers_concat': 'committee of MLPs, one per layer',
  'attention_single': 'attention pooling, best single layer',
  'attention_concat': 'attention pooling, all layers',
  'logistic': 'logistic regression, all layers',
  'prototypes': 'class prototypes, all layers',
  'knn': 'nearest neighbours, all layers',
  'kernel': 'kernel classifier, all layers',
  'kernel_layers': 'committee of kernels, one per layer',
  'bundle': 'this bundle',
  'frozen': 'the same head on the frozen encoder',
  'finetuned': 'fine-tuned',
  'finetuned_full': 'fine-tuned, all stages',
  'finetuned_last': 'fine-tuned, last stages',
  'finetuned_lora': 'fine-tuned, low-rank additions',
  'majority': 'majority class',
  'nearest_pixels': '1-NN on pixels',
  'nearest_hog': '1-NN on HOG',
  'logistic_hog': 'logistic regression on HOG',
  'kernel_pixels': 'kernel classifier on pixels',
  'kernel_hog': 'kernel classifier on HOG',
  'forest_brightness': 'forest on 10 brightness numbers',
  'imagenet': "EfficientNet-Lite0 with ImageNet's labels, kernel classifier",
}
ORIGINS = {'random': 'random weights', 'floor': 'floor'}
FLOOR, RANDOM = 'floor/', 'random/'  # what rows of these origins start with
SUBSETS = {
  'all': 'all images',
  'sources': 'untouched pictures',
  'patients': 'patients',
  'all_without_normal': 'all images, without {}',
  'sources_without_normal': 'untouched pictures, without {}',
  'patients_without_normal': 'patients, without {}',
}

WORDS = {
  'balanced accuracy': 'mean over the classes of the share that is named '
  'rightly: the rare count as much as the frequent',
  'interval': 'where the value would lie in 95 of 100 repetitions with other '
  'patients or groups; two values whose intervals overlap may be equal',
  'floor': 'a classifier without any pretrained network: what any method must '
  'beat to be worth its cost',
  'random weights': 'the same network untrained: what its form alone gives',
  'layers': 'steps of the network whose output is read; level 1 has the finest '
  'resolution, the middle the coarsest',
  't': 'timestep, the noise added before the network reads a picture: 0 the '
  'least',
  'cells': 'parts of a picture, 4 x 4 or so, over which features are averaged',
  'MSFA': "multi-scale feature aggregation, the article's head: linear, ReLU, "
  'linear on all layers (an MLP)',
  'linear': 'one matrix from features to classes',
  'kernel classifier': 'regression on similarities to training pictures',
  '1-NN, nearest neighbours': 'the class of the most similar training pictures',
  'HOG': 'histograms of oriented gradients: outlines, without learning',
  'untouched pictures': 'those that are no flipped, turned or brightened copy',
  'group': 'pictures that must stay in one part: of one patient, or alike',
  'split': 'patient: patients, near-duplicates and copies stay together; '
  'grouped: near-duplicates and copies; paper: copies; leaky: nothing',
  'validation, test': 'pictures on which choices are made, and those that are '
  'read once at the end',
  'calibration, temperature': 'whether confidence is the share that is right, '
  'and the number by which it was corrected',
  'ECE': 'expected calibration error: the mean distance of the two, 0 at best',
}


class Run(NamedTuple):
  """A result folder; record is results.json, None with a problem instead."""

  name: str
  folder: str
  record: Mapping[str, Any] | None
  problem: str = ''

  @property
  def task(self) -> str:
    """The task that made it, '' where nothing tells."""
    if self.record is None:
      return ''
    config = self.record.get('config') or {}
    return self.record.get('task') or config.get('task') or ''


def title(row: str) -> str:
  """'random/mlp_concat' -> 'random weights: MSFA (MLP, all layers)'."""
  origin, _, name = row.rpartition('/')
  fused = name.startswith('fused_')
  name = name.removeprefix('fused_')
  text = NAMES.get(name, name.replace('_', ' '))
  if fused:
    text += ', timesteps fused'
  return f'{ORIGINS.get(origin, origin)}: {text}' if origin else text


def layer_title(name: str) -> str:
  """'up1_0' -> 'decoder, level 2, block 1'; other names as they are.

  Level 1 is the finest. Layers of a UNet: down and up, and mid between them.
  """
  found = re.fullmatch(r'(down|up)(\d+)_(\d+)', name)
  if not found:
    return {'mid': 'middle'}.get(name, name.replace('_', ' '))
  side = {'down': 'encoder', 'up': 'decoder'}[found[1]]
  return f'{side}, level {int(found[2]) + 1}, block {int(found[3]) + 1}'


def count(number: int, what: str) -> str:
  """'1 run', '2 runs'."""
  return f'{number:,} {what}{"" if number == 1 else "s"}'


def patients_in_words(counts: Mapping[str, int]) -> str:
  """'patients unknown for 4,396 of 17,115 images', or that all are known."""
  if not counts:
    return 'patients were not counted'
  n, unknown = counts['images'], counts['unknown']
  if not unknown:
    return f'{counts["patients"]:,} patients, all known'
  return f'patients unknown for {unknown:,} of {n:,} images'


def record_of(run: Run) -> Mapping[str, Any]:
  """The results of a run that has some."""
  assert run.record is not None
  return run.record


def main_row(record: Mapping[str, Any]) -> str:
  """The row that is shown in detail: the bundled head, or the first."""
  name = str(record.get('bundle'))
  return name if name in record['rows'] else next(iter(record['rows']))


def floors_left_out(record: Mapping[str, Any]) -> list[Text]:
  """Which floors could not be computed, and how they could."""
  absent = record.get('floors_left_out') or {}
  return [
    Text(f'Not computed: {title(FLOOR + name)}; {why}.', 'warning')
    for name, why in absent.items()
  ]


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
    plot = stem.startswith(('figure', 'heatmap', 'curve', 'labels'))
    width = _PLOT_PX if plot else _WIDTHS.get(stem, 0)
    found.append(page.picture(path, caption, width))
  return found


def _rank(path: str) -> tuple[int, str]:
  """Known pictures in the order of CAPTIONS, then the others."""
  stem = os.path.splitext(os.path.basename(path))[0]
  known = list(CAPTIONS)
  return (known.index(stem) if stem in known else len(known)), stem


def drawn(figure: Figure, caption: str) -> Picture:
  """A figure as a picture of the page."""
  return Picture(
    page.uri(plots.encode(figure, 'svg'), 'image/svg+xml'), caption
  )

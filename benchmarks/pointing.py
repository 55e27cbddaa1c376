"""The pointing game: is a heat map hottest in the lesion? On phantoms.

python -m benchmarks.pointing --bundle=RUN/bundle/bundle.npz [--patients=80]

The lesions of phantoms are known. Counted are pictures of patients that the
bundle has not seen (another seed of the drawing) whose class it names rightly.
Chance is the share of the head that the lesion, with the margin, takes up.
"""

import argparse

import numpy as np
from scipy import stats

from benchmarks import common
from micdiffrep_jax.bundle import occlusion
from micdiffrep_jax.bundle.classifier import bundle_predict, load_bundle
from micdiffrep_jax.data import decode
from micdiffrep_jax.data.sources import phantom
from micdiffrep_jax.draw import grids

SEED = 1000  # of the drawing; bundles are trained on that of 0
MARGIN = 1 / 32  # of the side: how far beside the lesion still counts
SHOWN = 12


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--bundle', required=True)
  parser.add_argument('--patients', type=int, default=80)
  parser.add_argument('--out', default='', help='JSON file to add to')
  parser.add_argument('--figure', default='', help='PNG file')
  return parser.parse_args()


def picture(
  image: np.ndarray, drop: np.ndarray, lesion: np.ndarray, size_px: int = 192
) -> np.ndarray:
  """An overlay with the lesion's outline in blue."""
  shown = occlusion.overlay(image, drop, size_px)[-size_px:, : 2 * size_px]
  factor = size_px // len(lesion)
  large = lesion.repeat(factor, 0).repeat(factor, 1)
  outline = occlusion.widened(large, 1) & ~large
  found = shown.copy()
  found[:, size_px:][: len(outline), : len(outline)][outline] = (60, 130, 255)
  return found


def main() -> None:
  args = arguments()
  model = load_bundle(args.bundle)
  side = model.meta.size_px
  margin = max(1, round(MARGIN * side))
  spec = phantom.Spec(side, args.patients, 3, SEED)
  hits, chances, shown = [], [], []
  for patient in range(args.patients):
    label = phantom.CLASSES[patient % len(phantom.CLASSES)]
    if label == 'normal':
      continue
    image = decode.to_square(phantom.draw(spec, patient, 1), side, 1)
    drawn = 255 * phantom.lesion(spec, patient, 1).astype(np.uint8)
    lesion = decode.to_square(drawn, side, 1)[..., 0] > 127
    best = int(bundle_predict(model, image[None])[0].argmax())
    if model.classes[best] != label:
      continue
    drop = occlusion.drop_map(model, image, best)
    hits.append(occlusion.points_at(drop, lesion, margin))
    head = occlusion.is_object(image)
    chances.append(occlusion.widened(lesion, margin)[head].mean())
    if len(shown) < SHOWN:
      shown.append(picture(image, drop, lesion))
  test = stats.binomtest(sum(hits), len(hits))
  low, high = test.proportion_ci(method='wilson')
  found = {
    'pictures': len(hits),
    'hit_rate': sum(hits) / len(hits),
    'interval': [low, high],
    'chance': float(np.mean(chances)),
  }

  if args.figure:
    grids.save_png(args.figure, grids.make_grid(np.stack(shown), 3))
  common.emit('pointing', found, args.out)


if __name__ == '__main__':
  main()

"""Task `evaluate`: a labelled folder, a bundle, and what the bundle is worth.

Images that the bundle was trained on, or nearly, are looked for first.
Letters: n images, k classes.
"""

from collections.abc import Sequence
import os
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.bundle import fingerprints, predict
from micdiffrep_jax.bundle.classifier import Classifier, load_bundle
from micdiffrep_jax.data import classes as folders
from micdiffrep_jax.data import duplicates, groups, identity, store
from micdiffrep_jax.draw import plots
from micdiffrep_jax.run import log
from micdiffrep_jax.run.checks import one_of
from micdiffrep_jax.run.files import write_results
from micdiffrep_jax.scores import bootstrap

POLICIES = ('error', 'drop', 'keep')


class External(NamedTuple):
  """What was read: items that failed have probs None in `rows` of the table."""

  items: list[predict.Item]  # without their pixels
  probs: list[np.ndarray | None]
  equal: np.ndarray  # (n,) bool: pixels of a training image
  near: np.ndarray  # (n,) bool: nearly a training image
  crops: np.ndarray  # (n, 32, 32) uint8

  @property
  def leaked(self) -> np.ndarray:
    """(n,) bool: equal or near."""
    return self.equal | self.near

  def overlap(self, model: Classifier, policy: str) -> dict[str, Any]:
    """How many images were recognised, by how many fingerprints."""
    return {
      'policy': policy,
      'hashes': len(model.fingerprints.hashes),
      'pictures': len(model.fingerprints.small)
      or len(model.fingerprints.crops),
      'recognises': model.fingerprints.recognises,
      'equal': int(self.equal.sum()),
      'near': int((self.near & ~self.equal).sum()),
    }


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Scores config.bundle on config.data.source; writes results, predictions.

  Raises ValueError for classes that the bundle does not have, and for images
  it was trained on unless config.overlap says what to do with them. SystemExit
  (3) where some file could not be read; the others are scored.
  """
  one_of(POLICIES, config.overlap, 'policy', '--config.overlap')
  model = load_bundle(config.bundle)
  where = config.data
  root, files = predict.list_files(where.source, '--config.data.source')
  renames = folders.parse_class_map(where.class_map)
  labels = match_classes(files, model.classes, renames)
  who = identity.assign(files, [''] * len(files), identity.Rules.of(where))
  os.makedirs(workdir, exist_ok=True)
  found = read(model, root, files, config.workers)
  write_leaks(workdir, files, found)
  write_predictions(workdir, model, found, labels)
  at = choose(found, files, model, config.overlap)
  test, normal = score(model, found, labels, who, at, config)
  draw(workdir, test)
  failed = [[i.file, i.reason] for i in found.items if i.reason]
  record = write_results(
    workdir,
    {
      'task': 'evaluate',
      'rows': {'bundle': {'chosen': model.head.info, 'test': test}},
      'bundle': 'bundle',
      'normal_class': normal,
      'data': {
        'path': os.path.abspath(root or '.'),
        'patients': {
          'images': len(at),
          'patients': len({who.patient[i] for i in at} - {''}),
          'unknown': sum(not who.patient[i] for i in at),
        },
      },
      'overlap': found.overlap(model, config.overlap) | {'scored': len(at)},
      'failed': failed,
      'bundle_meta': model.meta.as_dict(),
    },
    config,
  )
  for part, scored in test.items():
    log.get_logger().info(
      '%s: %d images, accuracy %.1f %%, balanced %.1f %% (%.1f to %.1f).',
      part,
      scored['n'],
      100 * scored['accuracy']['value'],
      *(100 * scored['balanced_accuracy'][k] for k in ('value', 'low', 'high')),
    )
  if failed:
    log.get_logger().error(
      '%d of %d files cannot be read: %s.', len(failed), len(files), failed[:5]
    )
    raise SystemExit(predict.FAILED)
  return record


def choose(
  found: External, files: Sequence[str], model: Classifier, policy: str
) -> np.ndarray:
  """Numbers of the images to score; ValueError where the policy forbids it."""
  if not len(model.fingerprints.hashes):
    log.get_logger().warning(
      'The bundle has no fingerprints: whether it was trained on these images '
      'cannot be told.'
    )
  elif model.fingerprints.recognises == 'equal pixels only':
    log.get_logger().warning(
      'The bundle recognises equal pixels only: a training image that was '
      'saved again, resized or made brighter is not found.'
    )
  leaked = found.leaked
  if leaked.any() and policy == 'error':
    raise ValueError(
      f'The bundle was trained on {leaked.sum()} of {len(files)} images or on '
      f'nearly the same ones ({found.equal.sum()} have equal pixels), e.g. '
      f'{[files[i] for i in np.flatnonzero(leaked)[:5]]}; overlap.csv lists '
      'them. Report without them with --config.overlap=drop.'
    )
  good = np.array([p is not None for p in found.probs], bool)
  at = np.flatnonzero(good & ~leaked if policy == 'drop' else good)
  if not len(at):
    raise ValueError(
      f'No image is left to score: {(~good).sum()} of {len(files)} cannot be '
      f'read, {leaked.sum()} were trained on.'
    )
  return at


def score(
  model: Classifier,
  found: External,
  labels: Sequence[str],
  who: identity.Identity,
  at: np.ndarray,
  config: ConfigDict,
) -> tuple[dict[str, Any], str]:
  """The summary of the images `at`, and the class reported with and without."""
  normal = config.normal_class
  if normal == 'bundle':
    normal = model.meta.normal_class
  people = np.unique(who.people(), return_inverse=True)[1]
  test = bootstrap.summarise(
    np.array([model.classes.index(labels[i]) for i in at]),
    np.stack([found.probs[i] for i in at]),  # type: ignore[misc]
    bootstrap.Slices(
      joined_groups(who.people(), found.crops, at),
      np.array([who.variant[i] for i in at]),
      people[at],
    ),
    model.classes,
    normal,
    config.resamples,
    config.seed,
    config.pooling,
  )
  return test, normal


def draw(workdir: str, test: dict[str, Any]) -> None:
  """confusion.png and reliability.png."""
  scored = test['all']
  plots.save(
    os.path.join(workdir, 'confusion.png'),
    plots.confusion(scored['confusion'], scored['classes'], 'external images'),
  )
  plots.save(
    os.path.join(workdir, 'reliability.png'),
    plots.reliability({'bundle': scored['reliability']}),
  )


def match_classes(
  files: Sequence[str], classes: Sequence[str], renames: dict[str, str]
) -> list[str]:
  """The class of each file: the deepest folder that is one of `classes`.

  A class may be absent. Raises ValueError for a file in no such folder, with
  the class that it may have meant.
  """
  labels = []
  for file in files:
    parts = [renames.get(p, p) for p in file.split('/')[:-1]]
    known = [p for p in parts if p in classes]
    if not known:
      # The error speaks of the bundle's classes under the flag for renaming.
      raise folders.unknown_class(parts[-1] if parts else '', classes)
    labels.append(known[-1])
  return labels


def read(
  model: Classifier, root: str, files: Sequence[str], workers: int
) -> External:
  """Decodes, predicts and compares with training images, chunk by chunk."""
  items: list[predict.Item] = []
  probs: list[np.ndarray | None] = []
  equal = np.zeros(len(files), bool)
  crops = np.zeros(
    (len(files), *fingerprints.empty().crops.shape[1:]), np.uint8
  )
  small = np.zeros(
    (len(files), *fingerprints.empty().small.shape[1:]), np.uint8
  )
  for chunk in predict.read(root, files, model, workers, 'evaluate'):
    first = len(items)
    good = [i for i, item in enumerate(chunk) if item.image is not None]
    if good:
      images = np.stack([chunk[i].image for i in good])  # type: ignore[misc]
      at = first + np.array(good)
      equal[at] = fingerprints.equal(model.fingerprints, images)
      crops[at] = duplicates.crops(images, np.arange(len(images)))
      small[at] = fingerprints.shrink(images)
    probs += predict.predict_items(model, chunk)
    items += [item._replace(image=None) for item in chunk]
  near = fingerprints.near(model.fingerprints, crops, small)
  return External(items, probs, equal, near, crops)


def joined_groups(
  units: Sequence[str], crops: np.ndarray, at: np.ndarray
) -> np.ndarray:
  """Groups (len(at),) of the rows `at`: units, joined where pictures repeat."""
  pairs = duplicates.pairs_within(
    duplicates.describe(crops[at]), duplicates.Thresholds()
  )
  return groups.join([units[i] for i in at], pairs)


def write_leaks(workdir: str, names: Sequence[str], found: External) -> None:
  """overlap.csv: which images the bundle was trained on, and how that shows."""
  rows = [
    [name, 'equal' if equal else 'near']
    for name, equal, near in zip(names, found.equal, found.near)
    if equal or near
  ]
  path = os.path.join(workdir, 'overlap.csv')
  store.write_table(path, ('file', 'how'), rows)


def write_predictions(
  workdir: str,
  model: Classifier,
  found: External,
  labels: Sequence[str],
) -> None:
  """predictions.csv, with the true class and whether training saw the image."""
  threshold = model.meta.low_confidence
  rows = [
    [
      *predict.table_row(model.classes, item, probs, threshold),
      label,
      '1' if seen else '0',
    ]
    for item, probs, label, seen in zip(
      found.items, found.probs, labels, found.leaked
    )
  ]
  header = [*predict.columns(model.classes), 'true_class', 'in_training']
  store.write_table(os.path.join(workdir, 'predictions.csv'), header, rows)

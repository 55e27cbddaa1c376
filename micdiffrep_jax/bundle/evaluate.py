"""Task `evaluate`: a labelled folder, a bundle, and what the bundle is worth.

Images that the bundle was trained on, or nearly, are looked for first.
Letters: n images, k classes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import os
from typing import NamedTuple

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.bundle import fingerprints, held_out, inputs, predict
from micdiffrep_jax.bundle.classifier import Classifier, load_bundle
from micdiffrep_jax.data import classes as folders
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import duplicates, groups, identity, store
from micdiffrep_jax.data.sources import Source
from micdiffrep_jax.draw import decision as draw_decision
from micdiffrep_jax.draw import plots
from micdiffrep_jax.run import files, log
from micdiffrep_jax.run.checks import lookup, one_of
from micdiffrep_jax.run.records import Record
from micdiffrep_jax.scores import bootstrap, decision, pooling, summary
from micdiffrep_jax.scores.bootstrap import Score
from micdiffrep_jax.scores.summary import Summary

_SOURCE = '--config.data.source'
POLICIES = ('error', 'drop', 'keep')


class External(NamedTuple):
  """What was read, a row per picture: items that failed have probs None."""

  items: list[inputs.Item]  # without their pixels
  probs: list[np.ndarray | None]
  equal: np.ndarray  # (n,) bool: pixels of a training image
  near: np.ndarray  # (n,) bool: nearly a training image
  crops: np.ndarray  # (n, 32, 32) uint8

  @property
  def leaked(self) -> np.ndarray:
    """(n,) bool: equal or near."""
    return self.equal | self.near

  @property
  def good(self) -> np.ndarray:
    """(n,) bool: could be read."""
    return np.array([p is not None for p in self.probs], bool)

  @property
  def names(self) -> list[str]:
    """Of the pictures, (n,)."""
    return [item.name for item in self.items]

  def overlap(self, model: Classifier, policy: str) -> files.Results:
    """How many images were recognised, by how many fingerprints."""
    known = model.fingerprints
    return {
      'policy': policy,
      'hashes': len(known.hashes),
      'pictures': len(known.small) or len(known.crops),
      'recognises': known.recognises,
      'equal': int(self.equal.sum()),
      'near': int((self.near & ~self.equal).sum()),
    }


class Case(NamedTuple):
  """What is to be scored.

  chunks: of pictures; labels and who: of each file or image; groups (n,) that
  intervals resample, None where the pictures are to tell; measured: test scores
  of the bundle where this is what they are of; junk: files that were ignored.
  """

  chunks: Iterable[list[inputs.Item]]
  labels: Sequence[str]
  who: identity.Identity
  groups: np.ndarray | None
  measured: Mapping[str, Mapping[str, Score]] | None
  junk: Mapping[str, int]


class Labelled(NamedTuple):
  """Images to score: labels (n,) int, probs (n, k), slices of (n,) each."""

  labels: np.ndarray
  probs: np.ndarray
  slices: bootstrap.Slices


@dataclasses.dataclass(frozen=True)
class Presence(Record):
  """Classes that pictures have, those that they lack, and what follows."""

  present: tuple[str, ...]
  absent: tuple[str, ...]
  note: str | None = None


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Scores config.bundle on labelled pictures; writes results, predictions.

  Those of config.data.source, or the test part of a data set, config.data.path.
  Where patients are known, patients.csv has a row for each. Raises ValueError
  for classes that the bundle does not have, and for images it was trained on
  unless config.overlap says what to do with them. SystemExit(3) where some file
  could not be read; the others are scored.
  """
  one_of(POLICIES, config.overlap, 'policy', '--config.overlap')
  lookup(pooling.POOLS, config.pooling, 'pooling', '--config.pooling')
  model = load_bundle(config.bundle, config.head)
  with open_case(config, model) as case:
    os.makedirs(workdir, exist_ok=True)
    found = read(model, case.chunks)
    ignored = sum(i.reason == inputs.NO_PICTURE for i in found.items)
    junk = inputs.tell_ignored(case.junk, ignored)
  labels, who = [case.labels[i.number] for i in found.items], case.who
  write_leaks(workdir, found)
  write_predictions(workdir, model, found, labels)
  # What its split keeps apart was measured so, whatever resembles what.
  measured = case.measured is not None and config.overlap == 'error'
  at = choose(found, model, 'keep' if measured else config.overlap)
  patients = write_patients(
    workdir, model, found, labels, who, at, config.pooling
  )
  images = labelled(model, found, labels, case, at)
  test, normal = score(model, images, config)
  draw(workdir, test['all'], images, config)
  there = presence(model.classes, [labels[i] for i in at])
  failed = [[i.name, i.reason] for i in found.items if i.failed]
  record = files.write_results(
    workdir,
    {
      'task': 'evaluate',
      'rows': {'bundle': {'chosen': model.chosen, 'test': test}},
      'bundle': 'bundle',
      'normal_class': normal,
      'classes': there,
      'data': {
        'path': where(config.data.path or config.data.source),
        'patients': identity.count_patients(
          [who.patient[found.items[i].number] for i in at.tolist()]
        ),
      },
      'patients': patients,
      'overlap': found.overlap(model, config.overlap) | {'scored': len(at)},
      'ignored': junk,
      'failed': failed,
      'head': config.head,
      'measured': case.measured,
      'bundle_meta': model.meta.to_json(),
    },
    config,
  )
  tell(test, there, case.measured, failed)
  return record


def tell(
  test: Mapping[str, Summary],
  there: Presence,
  measured: Mapping[str, Mapping[str, Score]] | None,
  failed: Sequence[Sequence[str]],
) -> None:
  """Logs the scores and what they are of; SystemExit(3) where files failed."""
  say = log.get_logger()
  for part, scored in test.items():
    say.info(
      '%s: %d images, accuracy %.1f %%, balanced %.1f %% (%.1f to %.1f).',
      part,
      scored.n,
      100 * scored.scores['accuracy'].value,
      *(100 * x for x in scored.scores['balanced_accuracy']),
    )
  if measured:
    say.info('%s', as_measured(measured, test))
  for name in there.present:
    one = test['all'].per_class[name]
    recall = [100 * x for x in one.scores['sensitivity']]
    say.info(
      'Recall of %s: %.1f %% (%.1f to %.1f), %d images.',
      name,
      *recall,
      one.n,
    )
  if there.absent:
    say.warning('%s', there.note)
  if failed:
    say.error(
      '%d of %d files cannot be read: %s.',
      len(failed),
      test['all'].n + len(failed),
      failed[:5],
    )
    raise SystemExit(predict.FAILED)


def as_measured(
  measured: Mapping[str, Mapping[str, Score]], test: Mapping[str, Summary]
) -> str:
  """How the accuracy on the part that was measured compares with that."""
  told = measured['all']['accuracy'].value
  found = test['all'].scores['accuracy'].value
  if told == found:
    return f'As measured: {100 * told:.1f} %.'
  return (
    f'Measured when the bundle was made: {100 * told:.1f} %, now '
    f'{100 * found:.1f} %, on the same part of the same data. Older files tell '
    'the score before weights were rounded; other machines round otherwise.'
  )


@contextlib.contextmanager
def open_case(config: ConfigDict, model: Classifier) -> Iterator[Case]:
  """Opens what is to be scored; raises as `run` says."""
  given = config.data
  if given.path and given.source:
    raise ValueError(
      f'Both data.path={given.path!r} and data.source={given.source!r}: give '
      'one of --config.data.path and --config.data.source.'
    )
  if given.path:
    ds, rows = held_out.open_part(given.path, model.meta)
    measured = (
      model.meta.test
      if held_out.is_measured_on(ds, model.meta)
      and not model.meta.fitted_on_test_images
      else None
    )
    yield Case(
      held_out.chunks(ds, rows),
      ds.manifest['class'][rows].tolist(),
      held_out.identity_of(ds, rows),
      data.groups(ds)[rows],
      measured,
      {},
    )
    return
  with inputs.open_inputs(given.source, model.meta, _SOURCE) as source:
    yield Case(
      inputs.read(source, model.meta, config.workers, 'evaluate'),
      label(source, model.classes, given),
      identify(source, given),
      None,
      None,
      source.junk,
    )


def where(given: str) -> str:
  """The whole path of a folder or a file; other sources as they are given."""
  return os.path.abspath(given) if os.path.exists(given) else given


def presence(classes: Sequence[str], labels: Sequence[str]) -> Presence:
  """Which classes of the bundle the scored pictures have, and what follows."""
  present = tuple(name for name in classes if name in labels)
  absent = tuple(name for name in classes if name not in labels)
  note = (
    f'No picture is of {", ".join(absent)}: accuracy and balanced accuracy '
    f'are over {", ".join(present)} alone. A picture that is taken for an '
    'absent class counts as wrong.'
  )
  return Presence(present, absent, note if absent else None)


def label(
  source: Source, classes: Sequence[str], data: ConfigDict
) -> list[str]:
  """The class of each file of a source, as the bundle calls it."""
  renames = folders.parse_class_map(data.class_map)
  if source.labels is None:
    return match_classes(source.files, classes, renames)
  found = [renames.get(name, name) for name in source.labels]
  for name in sorted(set(found) - set(classes)):
    raise folders.unknown_class(name, classes)
  return found


def identify(source: Source, data: ConfigDict) -> identity.Identity:
  """Whose each file of a source is; raises as identity.assign does.

  A file that its header refuses is nobody's.
  """
  refused = dict(source.refused)
  at = [i for i, file in enumerate(source.files) if file not in refused]
  found = identity.assign(
    [source.files[i] for i in at],
    [source.groups[i] for i in at],
    identity.Rules.of(data),
  )
  n = len(source.files)
  whole = identity.Identity(list(source.files), *([''] * n for _ in range(3)))
  for column, part in zip(whole, found, strict=True):
    for i, value in zip(at, part, strict=True):
      column[i] = value
  return whole


def choose(found: External, model: Classifier, policy: str) -> np.ndarray:
  """Numbers of the images to score; ValueError where the policy forbids it."""
  say, known = log.get_logger(), model.fingerprints
  other = (
    ' The head that has not seen test images is --config.head=measured.'
    if model.meta.fitted_on_test_images and model.measured is not None
    else ''
  )
  leaked, good = found.leaked, found.good
  n = int(good.sum())
  if not len(known.hashes):
    say.warning(
      'The bundle has no fingerprints: whether it was trained on these images '
      'cannot be told.'
    )
  elif known.recognises == fingerprints.HASHES_ONLY:
    say.warning(
      'The bundle recognises %s: a training image that was saved again, '
      'resized or made brighter is not found.',
      fingerprints.HASHES_ONLY,
    )
  if leaked.any() and policy == 'error':
    raise ValueError(
      f'The bundle was trained on {leaked.sum()} of {n} images or on nearly '
      f'the same ones ({found.equal.sum()} have equal pixels), e.g. '
      f'{[found.names[i] for i in np.flatnonzero(leaked)[:5]]}; overlap.csv '
      f'lists them. Report without them with --config.overlap=drop.{other}'
    )
  if leaked.any() and policy == 'keep':
    say.warning(
      'NOT A TEST: the bundle was trained on %d of the %d images that are '
      'scored, or on nearly the same ones. These scores are too good. Leave '
      'them out with --config.overlap=drop.',
      leaked.sum(),
      n,
    )
  at = np.flatnonzero(good & ~leaked if policy == 'drop' else good)
  if not len(at):
    raise ValueError(
      f'No image is left to score: {(~good).sum()} of {len(good)} cannot be '
      f'read, {leaked.sum()} were trained on.'
    )
  return at


def labelled(
  model: Classifier,
  found: External,
  labels: Sequence[str],
  case: Case,
  at: np.ndarray,
) -> Labelled:
  """The images `at`, as they are scored."""
  number = np.array([item.number for item in found.items])
  people = np.array(case.who.people())[number]
  groups = (
    joined_groups(people.tolist(), found.crops, at)
    if case.groups is None
    else case.groups[number[at]]
  )
  variants = np.array(case.who.variant)[number[at]]
  return Labelled(
    np.array([model.classes.index(labels[i]) for i in at]),
    np.stack([found.probs[i] for i in at]),  # type: ignore[misc]
    bootstrap.Slices(groups, variants, people[at]),
  )


def score(
  model: Classifier, images: Labelled, config: ConfigDict
) -> tuple[dict[str, Summary], str]:
  """The summaries, and the class reported with and without."""
  normal = config.normal_class
  if normal == 'bundle':
    normal = model.meta.normal_class
  test = summary.summarise(
    images.labels,
    images.probs,
    images.slices,
    model.classes,
    normal,
    config.resamples,
    config.seed,
    config.pooling,
  )
  return test, normal


def write_patients(
  workdir: str,
  model: Classifier,
  found: External,
  labels: Sequence[str],
  who: identity.Identity,
  at: np.ndarray,
  how: str,
) -> int:
  """Writes patients.csv of the pictures `at`; how many patients are known."""
  people = predict.Patients()
  for i in at.tolist():
    patient, probs = who.patient[found.items[i].number], found.probs[i]
    if patient and probs is not None:
      people.add(patient, probs, labels[i])
  threshold = model.meta.low_confidence
  return people.write(workdir, model.classes, threshold, how)


def draw(
  workdir: str, scored: Summary, images: Labelled, config: ConfigDict
) -> None:
  """confusion.png, reliability.png, decision.png and decision.csv."""
  plots.save(
    os.path.join(workdir, 'confusion.png'),
    plots.confusion(scored.confusion, scored.classes, 'external images'),
  )
  plots.save(
    os.path.join(workdir, 'reliability.png'),
    plots.reliability({'this bundle': scored.reliability._asdict()}),
  )
  curves = decision.curves(
    images.labels,
    {'bundle': images.probs},
    images.slices.groups,
    scored.classes,
    config.resamples,
    config.seed,
  )
  draw_decision.write(workdir, curves)


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


def read(model: Classifier, chunks: Iterable[list[inputs.Item]]) -> External:
  """Predicts and compares with training images, chunk by chunk."""
  items: list[inputs.Item] = []
  probs: list[np.ndarray | None] = []
  equal: list[np.ndarray] = [np.zeros(0, bool)]
  crops: list[np.ndarray] = [fingerprints.empty().crops]
  small: list[np.ndarray] = [fingerprints.empty().small]
  for chunk in chunks:
    good = [i for i, item in enumerate(chunk) if item.image is not None]
    hit = np.zeros(len(chunk), bool)
    heads = np.zeros((len(chunk), *crops[0].shape[1:]), np.uint8)
    shrunk = np.zeros((len(chunk), *small[0].shape[1:]), np.uint8)
    if good:
      images = np.stack([chunk[i].image for i in good])  # type: ignore[misc]
      hit[good] = fingerprints.equal(model.fingerprints, images)
      heads[good] = duplicates.crops(images, np.arange(len(images)))
      shrunk[good] = fingerprints.shrink(images)
    equal.append(hit)
    crops.append(heads)
    small.append(shrunk)
    probs += predict.predict_items(model, chunk)
    items += [item._replace(image=None) for item in chunk]
  stacked = np.concatenate(crops)
  near = fingerprints.near(model.fingerprints, stacked, np.concatenate(small))
  return External(items, probs, np.concatenate(equal), near, stacked)


def joined_groups(
  units: Sequence[str], crops: np.ndarray, at: np.ndarray
) -> np.ndarray:
  """Groups (len(at),) of the rows `at`: units, joined where pictures repeat."""
  pairs = duplicates.pairs_within(
    duplicates.describe(crops[at]), duplicates.Thresholds()
  )
  return groups.join([units[i] for i in at], pairs)


def write_leaks(workdir: str, found: External) -> None:
  """overlap.csv: which images the bundle was trained on, and how that shows."""
  rows = [
    [name, 'equal' if equal else 'near']
    for name, equal, near in zip(found.names, found.equal, found.near)
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

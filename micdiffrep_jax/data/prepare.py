"""Task "prepare": folders of pictures to one dataset with splits.

The steps, in order: list the sources and their classes, decode every picture
into a new folder, find near-duplicates, draw the splits, write the tables, and
give the folder its name.
"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import hashlib
import json
import os
import shutil
import tempfile
from typing import Any, BinaryIO, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import (
  bids,
  classes,
  dataset,
  decode,
  duplicates,
  identity,
  layout,
  listing,
  manifest,
  places,
  relatives,
  sources,
  splits,
  store,
  summary,
  volumes,
)
from micdiffrep_jax.data.sources import phantom
from micdiffrep_jax.run import files, log, paths
from micdiffrep_jax.run.checks import in_range, one_of

VERSION = 2  # of the rules: raise it when the same files give other pixels
# Fields that say where things are or how to work, not what comes out.
_NOT_SETTINGS = (
  'source unlabelled data_dir out overwrite workers group_csv'
).split()
# Of a description, what results.json repeats.
_REPORTED = (
  'fingerprint images classes counts rejected junk left_out rules '
  'near_duplicates patients'
).split()
_CHUNK = 16  # files that a thread reads at once


class Gathered(NamedTuple):
  """Rows, their head crops (n, 32, 32) uint8, refused files, rule counts.

  rules counts images, used counts files.
  """

  rows: list[manifest.Row]
  crops: np.ndarray
  rejected: list[tuple[str, str]]  # file, reason
  rules: dict[str, int]
  used: dict[str, int]


class _Image(NamedTuple):
  pixels: np.ndarray  # (s, s, c) uint8
  crop: np.ndarray  # (32, 32) uint8
  rules: tuple[str, ...]
  row: manifest.Row


def run(config: ConfigDict, workdir: str) -> files.Results:
  """Prepares config.data.source into config.data.out, reports in workdir."""
  info = prepare(config.data, config.seed, workdir)
  record, out = info.to_json(), dataset.locate(config.data.out)
  results = {
    'path': out,
    **{name: record[name] for name in _REPORTED},
    'next': summary.next_commands(out),
  }
  written = files.write_results(workdir, results, config)
  print(summary.text(info, out), flush=True)
  return written


def prepare(data: ConfigDict, seed: int = 0, report: str = '') -> store.Info:
  """Turns sources into a dataset folder and returns its description.

  `data` has the fields of configs/prepare.py. The folder appears under its
  name only when it is whole. `report` is a folder that gets rejected.csv in
  any case. Raises ValueError for settings that cannot work, too many bad
  files, one picture under two labels, classes that a split cannot serve and a
  full disk; nothing but the report is left behind then.
  """
  check(data)
  out = os.path.abspath(data.out)
  places.check_writable(out)
  listed = _open_sources(data)
  places.check(listed, out)
  listed = places.tell_apart(listed)
  # Fails now, not after an hour.
  known = [item for source in listed for item in source.refused]
  _check_share(known, listed, data.max_bad_share)
  labels = _labels(listed, data)
  settings = {
    **{k: v for k, v in data.to_dict().items() if k not in _NOT_SETTINGS},
    'seed': seed,
    'version': VERSION,
  }
  stamp = _stamp(settings, listed, data)
  done = _already_there(out, stamp, data.overwrite)
  if done is not None:
    return done
  parent = os.path.dirname(out)
  os.makedirs(parent, exist_ok=True)
  # Twice: as raw pixels and as records. A volume gives one slice at least.
  n_bytes = 2 * sum(len(s.files) for s in listed) * _image_bytes(data)
  places.check_room(parent, n_bytes)
  part = tempfile.mkdtemp(prefix=f'.{os.path.basename(out)}.', dir=parent)
  try:
    with places.disk_full_told(out, n_bytes):
      info = assemble(part, listed, labels, data, settings, stamp, report)
      _publish(part, out, data.overwrite, stamp)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  log.get_logger().info(
    'Prepared %d images of %d classes in %s.',
    info.images,
    len(info.classes),
    out,
  )
  return info


def _image_bytes(data: ConfigDict) -> int:
  return data.size_px * data.size_px * data.channels


def resolve(path: str) -> str:
  """The folder that a config.data.path names; a phantom is prepared first."""
  arguments = phantom.arguments_of(path)
  if arguments is None:
    return dataset.locate(path)
  return prepared_phantom(arguments)


def prepared_phantom(arguments: str) -> str:
  """Prepares a phantom, unless it is there; returns its folder."""
  folder = phantom.folder(arguments)
  if not os.path.exists(os.path.join(folder, store.INFO)):
    paths.check_user_cache('the phantom')
    size_px = phantom.parse(arguments).size_px
    prepare(phantom_config(arguments, size_px, folder))
  return folder


def phantom_config(arguments: str, size_px: int, out: str) -> ConfigDict:
  """config.data of a phantom: configs/prepare.py may not be installed."""
  return ConfigDict(
    {
      'source': f'phantom:{arguments}',
      'unlabelled': (),
      'data_dir': '',
      'out': out,
      'overwrite': False,
      'size_px': size_px,
      'channels': 1,
      'classes': (),
      'class_map': (),
      'layout': '',
      'class_field': '',
      'given_split': '',
      'skip_masks': True,
      'max_bad_share': 0.01,
      'workers': 0,
      'variant_regex': '',
      'group_csv': '',
      'group_regex': '',
      'group_by': '',
      'group_field': '',
      'slices': 'foreground',
      'ct_window': (40.0, 80.0),
      'intensity': 'auto',
      'near_duplicates': {
        'enabled': True,
        'full': 0.98,
        'detail': 0.85,
        'detail_alone': 0.95,
      },
      'conflicts': 'error',
      'test_share': 0.2,
      'val_share': 0.15,
    }
  )


def check(data: ConfigDict) -> None:
  """Raises ValueError for settings that cannot work, before a file is read."""
  for field in ('classes', 'class_map', 'unlabelled'):
    if len(data[field]) == 1 and ',' in data[field][0]:
      quoted = tuple(data[field][0].split(','))
      raise ValueError(
        f'config.data.{field}={tuple(data[field])} is one name with a comma; '
        f'write several as --config.data.{field}="{quoted}".'
      )
  if not data.source and not data.unlabelled:
    raise ValueError(
      'Nothing to prepare: set --config.data.source=DIR (labelled) or '
      '--config.data.unlabelled="(\'DIR\',)".'
    )
  if not data.out:
    raise ValueError('Say where to: --config.data.out=DIR.')
  if data.group_field and not any(
    spec.startswith('tfds:') for spec in (data.source, *data.unlabelled)
  ):
    raise ValueError(
      f'config.data.group_field={data.group_field!r} is a feature of a tfds: '
      'source, and none is given. Patients of a folder are named by '
      'config.data.group_csv, group_regex, group_by or layout.'
    )
  if data.channels not in (1, 3):
    raise ValueError(
      f'config.data.channels={data.channels}; 1 (grey) or 3 (colour).'
    )
  in_range(data.size_px, 8, 1024, '--config.data.size_px')
  if data.layout:
    layout.parse(data.layout)
  one_of(layout.GIVEN, data.given_split, 'choice', '--config.data.given_split')
  if data.conflicts not in relatives.POLICIES:
    raise ValueError(
      f'config.data.conflicts={data.conflicts!r}; one of {relatives.POLICIES}.'
    )


def _options(data: ConfigDict) -> volumes.Options:
  return volumes.Options(data.slices, tuple(data.ct_window), data.intensity)


def _open_sources(data: ConfigDict) -> list[sources.Source]:
  options = _options(data)
  volumes.check_options(options)
  request = sources.Request(
    data.data_dir, data.group_field, options, data.skip_masks
  )
  specs = [s for s in (data.source, *data.unlabelled) if s]
  return [sources.open_source(spec, request) for spec in specs]


def _labels(listed: list[sources.Source], data: ConfigDict) -> list[list[str]]:
  """Class of each file of each source; '' in the unlabelled ones."""
  labels = [[''] * len(s.files) for s in listed]
  if not data.source:
    return labels
  first = listed[0]
  mapping = classes.parse_class_map(data.class_map)
  found: Sequence[str]
  if first.labels is not None:
    found = first.labels
    labels[0] = [mapping.get(x, x) for x in found]
  elif data.class_field:
    found = bids.classes(first.place, first.files, data.class_field)
    labels[0] = [mapping.get(x, x) for x in found]
  elif any('/' in f for f in first.files) or data.classes:
    labels[0] = _labels_of_folders(first, mapping, data)
    folders = {f.rpartition('/')[0] for f in first.files}
    found = [name for folder in folders for name in folder.split('/')]
  else:
    found = ()
    log.get_logger().warning(
      '%s has no class folders: its pictures count as unlabelled.',
      first.origin,
    )
  classes.warn_of_unused_map(mapping, found)
  for name in sorted(set(labels[0]) - {'', *data.classes}):
    if data.classes:
      raise classes.unknown_class(name, data.classes)
  layout.check_two_classes(first.files, labels[0])
  if any(labels[0]):
    _check_given(first, labels[0], data)
    _check_patients(first, labels[0], data)
  return labels


def _labels_of_folders(
  source: sources.Source, mapping: Mapping[str, str], data: ConfigDict
) -> list[str]:
  """Class of each file by its folders, which are checked for slips."""
  labels = classes.label_files(
    source.files,
    data.classes,
    mapping,
    data.group_by == 'parent',
    data.layout,
  )
  if not data.classes:
    classes.check_none_lost(source.files, labels, source.left_out, mapping)
  return labels


def _check_given(
  source: sources.Source, labels: Sequence[str], data: ConfigDict
) -> None:
  """Says what becomes of the source's own split.

  Raises ValueError where it is to be kept and cannot be.
  """
  parts = layout.given_parts(source.files, data.layout)
  if data.given_split == 'keep':
    if not any(parts):
      raise ValueError(
        f'No folders of {source.origin!r} are called train, val or test, so '
        'there is no split to keep; set --config.data.given_split=ignore.'
      )
    labelled = np.array(labels) != ''
    splits.check_given(np.array(labels)[labelled], np.array(parts)[labelled])
  elif any(parts) and not data.given_split:
    counted = Counter(part or 'neither' for part in parts)
    log.get_logger().warning(
      '%s has a split of its own (%s). It is DISSOLVED: new splits are drawn '
      'from all of its pictures, so what it holds out may train. Keep it '
      'beside them with --config.data.given_split=keep; =ignore silences this.',
      source.origin,
      ', '.join(f'{part} {n}' for part, n in counted.items()),
    )


def _check_patients(
  source: sources.Source, labels: Sequence[str], data: ConfigDict
) -> None:
  """Raises ValueError now, not after an hour, for what groups lack.

  Files that their headers refuse are nobody's.
  """
  refused = {file for file, _ in source.refused}
  at = [
    i
    for i, file in enumerate(source.files)
    if labels[i] and file not in refused
  ]
  left = [labels[i] for i in at]
  label_of = dict(zip(source.files, labels))
  classes.check_none_refused(label_of, left, source.refused)
  who = identity.assign(
    [source.files[i] for i in at],
    [source.groups[i] for i in at],
    identity.Rules.of(data),
    source.files,
  )
  splits.check_enough_units(np.array(left), np.array(who.people()))


def _stamp(
  settings: Mapping[str, Any], listed: list[sources.Source], data: ConfigDict
) -> str:
  """Names a preparation: the same sources under the same settings."""
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
  for source in listed:
    digest.update(f'{source.origin}\0{source.stamp}\0'.encode())
  if data.group_csv:
    with open(data.group_csv, 'rb') as f:
      digest.update(f.read())
  if data.class_field and listed[0].place:
    with open(os.path.join(listed[0].place, bids.TABLE), 'rb') as f:
      digest.update(f.read())
  return digest.hexdigest()


def assemble(
  folder: str,
  listed: list[sources.Source],
  labels: list[list[str]],
  data: ConfigDict,
  settings: Mapping[str, Any],
  stamp: str,
  report: str = '',
) -> store.Info:
  """Fills an empty folder and returns the description written there.

  report: a folder for rejected.csv, '' for none. labels names the class of each
  file of each source, '' for none. Raises ValueError for too many bad files,
  one picture under two labels and classes that a split cannot serve.
  """
  raw = os.path.join(folder, 'pixels.raw')
  with open(raw, 'wb') as f:
    gathered = gather(listed, labels, data, f)
  rows, rejected = gathered.rows, _unreadable(listed) + gathered.rejected
  for where in filter(None, (folder, report)):
    _write_rejected(where, rejected)
  _check_share(rejected, listed, data.max_bad_share)
  _check_classes_left(listed, labels, rows, rejected)
  volumes.report(_options(data), gathered.used)
  if rejected:
    log.get_logger().warning(
      '%d files cannot be read; rejected.csv says why.', len(rejected)
    )
  places.check_room(folder, len(rows) * _image_bytes(data))
  table, named_by = manifest.build(rows, data)
  constant = np.array([row.constant for row in rows], bool)
  near = relatives.find(table, gathered.crops, constant, data.near_duplicates)
  table['near'] = near.group.astype(str)
  table['group'] = manifest.join_patients(table).astype(str)
  usable, summary = relatives.usable(table, near, data.conflicts)
  seed = settings['seed']
  given = _given_column(table, listed, data)
  table.update(manifest.split_rows(table, usable, near.seen, data, seed, given))
  manifest.exclude_patients(table, rows, data)
  shape = (len(rows), data.size_px, data.size_px, data.channels)
  images = np.memmap(raw, np.uint8, 'r', shape=shape)
  store.write_images(
    folder, images, table['id'].tolist(), table['class'].tolist()
  )
  del images
  os.remove(raw)
  store.write_manifest(folder, table)
  junk = sum((Counter(s.junk) for s in listed), Counter())
  names = tuple(data.classes) or tuple(sorted({r.label for r in rows} - {''}))
  info = store.Info(
    size_px=data.size_px,
    channels=data.channels,
    images=len(rows),
    classes=names,
    counts=manifest.counts(table, names),
    origins=[s.origin for s in listed],
    rejected=len(rejected),
    junk=dict(junk),
    left_out={
      kind: paths[0] for s in listed[::-1] for kind, paths in s.left_out.items()
    },
    rules=gathered.rules,
    near_duplicates=summary._asdict(),
    patients=manifest.count_patients(table, named_by),
    settings=settings,
    stamp=stamp,
    fingerprint=manifest.fingerprint(table, settings),
  )
  store.write_info(folder, info)
  return info


def _given_column(
  table: Mapping[str, np.ndarray],
  listed: list[sources.Source],
  data: ConfigDict,
) -> np.ndarray | None:
  """Part (n,) that the folders of each labelled row name; None if not kept."""
  if data.given_split != 'keep' or not data.source:
    return None
  known = listed[0].files
  part = dict(zip(known, layout.given_parts(known, data.layout), strict=True))
  return np.array(
    [
      part[file] if label else ''
      for file, label in zip(table['file'], table['class'], strict=True)
    ]
  )


def _unreadable(listed: list[sources.Source]) -> list[tuple[str, str]]:
  """Folders that could not be listed, and why."""
  return [
    (path, f'folder cannot be read{kind.removeprefix(listing.UNREADABLE)}')
    for source in listed
    for kind, paths in source.left_out.items()
    if kind.startswith(listing.UNREADABLE)
    for path in paths
  ]


def _write_rejected(folder: str, rejected: list[tuple[str, str]]) -> None:
  """Writes rejected.csv."""
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, store.REJECTED)
  store.write_table(path, ('file', 'reason'), rejected)


def _check_share(
  rejected: list[tuple[str, str]], listed: list[sources.Source], allowed: float
) -> None:
  """Raises ValueError where too many files cannot be read."""
  total = sum(len(s.files) for s in listed)
  n_bad = len(rejected)
  if n_bad > allowed * total or n_bad == total > 0:
    reasons = ''.join(f'\n  {file}: {why}' for file, why in rejected[:20])
    more = f'\n  and {n_bad - 20} more' if n_bad > 20 else ''
    raise ValueError(
      f'{n_bad} of {total} files cannot be read, more than '
      f'config.data.max_bad_share={allowed} allows:{reasons}{more}'
    )


def _check_classes_left(
  listed: list[sources.Source],
  labels: list[list[str]],
  rows: list[manifest.Row],
  rejected: list[tuple[str, str]],
) -> None:
  """Raises ValueError where no file of a class could be read."""
  if listed:  # the first is the labelled one, or none is
    label_of = dict(zip(listed[0].files, labels[0]))
    left = {row.label for row in rows}
    classes.check_none_refused(label_of, left, rejected)


def gather(
  listed: list[sources.Source],
  labels: list[list[str]],
  data: ConfigDict,
  pixels: BinaryIO,
) -> Gathered:
  """Writes each prepared image (s, s, c) uint8 to `pixels`, one by one.

  Order is that of the sources and their files, whatever thread finishes first.
  A file that cannot be read is listed with its reason and skipped.
  """
  rows: list[manifest.Row] = []
  crops = bytearray()  # an array each would take as much again
  rejected: list[tuple[str, str]] = []
  rules: Counter = Counter()
  used: Counter = Counter()
  total = sum(len(s.files) for s in listed)
  with log.progress(total=total, desc='read', unit='file') as bar:
    for source, known in zip(listed, labels, strict=True):
      outcomes = _outcomes(
        source, known, data.size_px, data.channels, data.workers
      )
      for file, outcome in zip(source.files, outcomes, strict=True):
        if isinstance(outcome, str):
          rejected.append((file, outcome))
        else:
          for image in outcome:
            pixels.write(image.pixels.tobytes())
            crops += image.crop.tobytes()
            rules.update(image.rules)
            rows.append(image.row)
          used.update({rule for image in outcome for rule in image.rules})
        bar.update()
  pixels.flush()
  side = duplicates.CROP_PX
  stacked = np.frombuffer(crops, np.uint8).reshape(-1, side, side)
  return Gathered(
    rows, stacked, rejected, dict(sorted(rules.items())), dict(used)
  )


def _outcomes(
  source: sources.Source,
  labels: Sequence[str],
  size_px: int,
  channels: int,
  workers: int,
) -> Iterator[list[_Image] | str]:
  """Per file: its images, or the reason why it was refused.

  The decoders release the interpreter's lock, so threads keep all cores busy
  without the start-up and the hazards of worker processes.
  """

  def work(numbers: range) -> list[list[_Image] | str]:
    return [_read(source, i, labels[i], size_px, channels) for i in numbers]

  n = len(source.files)
  n_workers = workers or os.cpu_count() or 1
  ahead: deque[Future] = deque()
  with ThreadPoolExecutor(n_workers) as pool:
    try:
      for start in range(0, n, _CHUNK):
        chunk = range(start, min(start + _CHUNK, n))
        ahead.append(pool.submit(work, chunk))
        # Images wait in memory until they are written, so few are in flight.
        if len(ahead) == 4 * n_workers:
          yield from ahead.popleft().result()
      while ahead:
        yield from ahead.popleft().result()
    finally:
      pool.shutdown(cancel_futures=True)


def _read(
  source: sources.Source, number: int, label: str, size_px: int, channels: int
) -> list[_Image] | str:
  file = source.files[number]
  try:
    pictures = source.read(file, channels)
  except (ValueError, OSError, MemoryError) as e:
    return str(e) or type(e).__name__
  images = []
  for picture in pictures:
    height, width = picture.pixels.shape[:2]
    pixels = decode.to_square(picture.pixels, size_px, channels)
    rules = picture.rules + decode.shape_rules(picture.pixels, size_px)
    row = manifest.Row(
      file=file,
      origin=source.origin,
      label=label,
      group=picture.group or source.groups[number],
      part=picture.part,
      width=width,
      height=height,
      constant='constant' in rules,
      sha256=store.pixel_hash(pixels),
    )
    crop = duplicates.head_crop(picture.pixels)
    images.append(_Image(pixels, crop, rules, row))
  return images


def _already_there(out: str, stamp: str, overwrite: bool) -> store.Info | None:
  """The description of a finished equal preparation, None to write anew.

  Raises ValueError where something else is in the way: without `overwrite`
  anything, with it whatever is not a prepared dataset.
  """
  if not os.path.exists(out):
    return None
  try:
    info = store.read_info(out)
    store.check_unchanged(out, info)
    same = info.stamp == stamp
  except (ValueError, NotADirectoryError):
    same = False
  if same:
    log.get_logger().info('%s already holds this preparation.', out)
    return info
  if not overwrite:
    raise ValueError(
      f'{out!r} exists and holds something else. Choose another '
      'config.data.out, or replace it with --config.data.overwrite=True.'
    )
  if not os.path.isfile(os.path.join(out, store.INFO)):
    raise ValueError(
      f'{out!r} is no prepared dataset, and config.data.overwrite replaces '
      'nothing else. Choose another config.data.out.'
    )
  return None


def _publish(folder: str, out: str, overwrite: bool, stamp: str) -> None:
  """Renames `folder` to `out`, in place of an older one where it may.

  Where another process was faster, its folder stands if it is the same
  preparation; raises ValueError if not.
  """
  os.chmod(folder, 0o777 & ~_umask())
  old = f'{folder}.old'
  if overwrite and os.path.exists(out):
    os.rename(out, old)
  try:
    os.rename(folder, out)
  except OSError:
    if os.path.exists(old) and not os.path.exists(out):
      os.rename(old, out)
    if _already_there(out, stamp, False) is None:
      raise
  shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask

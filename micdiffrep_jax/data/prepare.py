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
  classes,
  dataset,
  decode,
  duplicates,
  identity,
  manifest,
  relatives,
  sources,
  store,
  volumes,
)
from micdiffrep_jax.data.sources import phantom
from micdiffrep_jax.run import files, log
from micdiffrep_jax.run.checks import in_range

VERSION = 2  # of the rules: raise it when the same files give other pixels
# Fields that say where things are or how to work, not what comes out.
_NOT_SETTINGS = (
  'source unlabelled data_dir out overwrite workers group_csv'
).split()
# Of a description, what results.json repeats.
_REPORTED = (
  'fingerprint images classes counts rejected junk rules near_duplicates '
  'patients'
).split()
_CHUNK = 16  # files that a thread reads at once


class Gathered(NamedTuple):
  """Rows, their head crops (n, 32, 32) uint8, refused files, rule counts."""

  rows: list[manifest.Row]
  crops: np.ndarray
  rejected: list[tuple[str, str]]  # file, reason
  rules: dict[str, int]


class _Image(NamedTuple):
  pixels: np.ndarray  # (s, s, c) uint8
  crop: np.ndarray  # (32, 32) uint8
  rules: tuple[str, ...]
  row: manifest.Row


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Prepares config.data.source into config.data.out, reports in workdir."""
  info = prepare(config.data, config.seed).to_json()
  results = {
    'path': dataset.locate(config.data.out),
    **{name: info[name] for name in _REPORTED},
  }
  return files.write_results(workdir, results, config)


def prepare(data: ConfigDict, seed: int = 0) -> store.Info:
  """Turns sources into a dataset folder and returns its description.

  `data` has the fields of configs/prepare.py. The folder appears under its
  name only when it is whole. Raises ValueError for settings that cannot work,
  too many bad files, one picture under two labels and classes that a split
  cannot serve; nothing is left behind then.
  """
  check(data)
  out = os.path.abspath(os.path.expanduser(data.out))
  listed = _open_sources(data)
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
  part = tempfile.mkdtemp(prefix=f'.{os.path.basename(out)}.', dir=parent)
  try:
    info = assemble(part, listed, labels, data, settings, stamp)
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
      'max_bad_share': 0.01,
      'workers': 0,
      'variant_regex': '',
      'group_csv': '',
      'group_regex': '',
      'group_by': '',
      'group_field': '',
      'slices': 'foreground',
      'ct_window': (40.0, 80.0),
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
  if data.channels not in (1, 3):
    raise ValueError(
      f'config.data.channels={data.channels}; 1 (grey) or 3 (colour).'
    )
  in_range(data.size_px, 8, 1024, '--config.data.size_px')
  if data.conflicts not in relatives.POLICIES:
    raise ValueError(
      f'config.data.conflicts={data.conflicts!r}; one of {relatives.POLICIES}.'
    )


def _open_sources(data: ConfigDict) -> list[sources.Source]:
  options = volumes.Options(data.slices, tuple(data.ct_window))
  volumes.check_options(options)
  request = sources.Request(data.data_dir, data.group_field, options)
  specs = [s for s in (data.source, *data.unlabelled) if s]
  return [sources.open_source(spec, request) for spec in specs]


def _labels(listed: list[sources.Source], data: ConfigDict) -> list[list[str]]:
  """Class of each file of each source; '' in the unlabelled ones."""
  labels = [[''] * len(s.files) for s in listed]
  if not data.source:
    return labels
  first = listed[0]
  mapping = classes.parse_class_map(data.class_map)
  if first.labels is not None:
    labels[0] = [mapping.get(x, x) for x in first.labels]
    if data.classes:
      for name in sorted(set(labels[0]) - {'', *data.classes}):
        raise classes.unknown_class(name, data.classes)
  elif any('/' in f for f in first.files) or data.classes:
    labels[0] = classes.label_files(
      first.files, data.classes, mapping, data.group_by == 'parent'
    )
  else:
    log.get_logger().warning(
      '%s has no class folders: its pictures count as unlabelled.',
      first.origin,
    )
  if any(labels[0]) and not all(first.groups) and not first.groups_on_read:
    # Fails now, not after an hour.
    identity.assign(first.files, first.groups, identity.Rules.of(data))
  return labels


def _stamp(
  settings: Mapping[str, Any], listed: list[sources.Source], data: ConfigDict
) -> str:
  """Names a preparation: the same sources under the same settings."""
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
  for source in listed:
    digest.update(f'{source.origin}\0{source.stamp}\0'.encode())
  if data.group_csv:
    with open(os.path.expanduser(data.group_csv), 'rb') as f:
      digest.update(f.read())
  return digest.hexdigest()


def assemble(
  folder: str,
  listed: list[sources.Source],
  labels: list[list[str]],
  data: ConfigDict,
  settings: Mapping[str, Any],
  stamp: str,
) -> store.Info:
  """Fills an empty folder and returns the description written there.

  labels names the class of each file of each source, '' for none. Raises
  ValueError for too many bad files, one picture under two labels and classes
  that a split cannot serve.
  """
  raw = os.path.join(folder, 'pixels.raw')
  with open(raw, 'wb') as f:
    gathered = gather(listed, labels, data, f)
  rows = gathered.rows
  _check_share(gathered.rejected, listed, data.max_bad_share)
  table, named_by = manifest.build(rows, data)
  constant = np.array([row.constant for row in rows], bool)
  near = relatives.find(table, gathered.crops, constant, data.near_duplicates)
  table['near'] = near.group.astype(str)
  table['group'] = manifest.join_patients(table).astype(str)
  usable, summary = relatives.usable(table, near, data.conflicts)
  seed = settings['seed']
  table.update(manifest.split_rows(table, usable, near.seen, data, seed))
  shape = (len(rows), data.size_px, data.size_px, data.channels)
  images = np.memmap(raw, np.uint8, 'r', shape=shape)
  store.write_images(
    folder, images, table['id'].tolist(), table['class'].tolist()
  )
  del images
  os.remove(raw)
  store.write_manifest(folder, table)
  store.write_table(
    os.path.join(folder, store.REJECTED), ('file', 'reason'), gathered.rejected
  )
  junk = sum((Counter(s.junk) for s in listed), Counter())
  names = tuple(data.classes) or tuple(sorted(set(table['class']) - {''}))
  info = store.Info(
    size_px=data.size_px,
    channels=data.channels,
    images=len(rows),
    classes=names,
    counts=manifest.counts(table, names),
    origins=[s.origin for s in listed],
    rejected=len(gathered.rejected),
    junk=dict(junk),
    rules=gathered.rules,
    near_duplicates=summary._asdict(),
    patients=manifest.count_patients(table, named_by),
    settings=settings,
    stamp=stamp,
    fingerprint=manifest.fingerprint(table, settings),
  )
  store.write_info(folder, info)
  return info


def _check_share(
  rejected: list[tuple[str, str]], listed: list[sources.Source], allowed: float
) -> None:
  total = sum(len(s.files) for s in listed)
  n_bad = len(rejected)
  if n_bad:
    log.get_logger().warning(
      '%d of %d files cannot be read; rejected.csv says why.', n_bad, total
    )
  if n_bad > allowed * total or n_bad == total:
    reasons = ''.join(f'\n  {file}: {why}' for file, why in rejected[:20])
    more = f'\n  and {n_bad - 20} more' if n_bad > 20 else ''
    raise ValueError(
      f'{n_bad} of {total} files cannot be read, more than '
      f'config.data.max_bad_share={allowed} allows:{reasons}{more}'
    )


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
        bar.update()
  pixels.flush()
  side = duplicates.CROP_PX
  stacked = np.frombuffer(crops, np.uint8).reshape(-1, side, side)
  return Gathered(rows, stacked, rejected, dict(sorted(rules.items())))


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

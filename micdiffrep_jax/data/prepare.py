"""Task "prepare": folders of pictures to one dataset with splits."""

import hashlib
import json
import os
import shutil
import tempfile
from typing import Any

from ml_collections import ConfigDict

from micdiffrep_jax.data import (
  assemble,
  groups,
  publish,
  relatives,
  sources,
  volumes,
)
from micdiffrep_jax.data import classes as class_names
from micdiffrep_jax.run import log

VERSION = 1  # of the rules: raise it when the same files give other pixels
# Fields that say where things are or how to work, not what comes out.
_NOT_SETTINGS = (
  'source',
  'unlabelled',
  'data_dir',
  'out',
  'overwrite',
  'workers',
  'group_csv',
)


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Prepares config.data.source into config.data.out, reports in workdir."""
  info = prepare(config.data, config.seed)
  results = {
    name: info[name]
    for name in (
      'path',
      'fingerprint',
      'images',
      'classes',
      'counts',
      'rejected',
      'junk',
      'rules',
      'near_duplicates',
    )
  }
  return log.write_results(workdir, results, config)


def prepare(data: ConfigDict, seed: int = 0) -> dict[str, Any]:
  """Turns sources into a dataset folder and returns its description.

  `data` has the fields of configs/prepare.py. The folder appears under its
  name only when it is whole. Raises ValueError for settings that cannot work,
  too many bad files, one picture under two labels and classes that a split
  cannot serve; nothing is left behind then.
  """
  check(data)
  out = os.path.abspath(os.path.expanduser(data.out))
  options = volumes.Options(data.slices, tuple(data.ct_window))
  volumes.check_options(options)
  specs = [s for s in (data.source, *data.unlabelled) if s]
  listed = [
    sources.open_source(s, data.data_dir, data.group_field, options)
    for s in specs
  ]
  labels = _labels(listed, data)
  settings = {
    **{k: v for k, v in data.to_dict().items() if k not in _NOT_SETTINGS},
    'seed': seed,
    'version': VERSION,
  }
  stamp = _stamp(settings, listed, data)
  done = publish.already_there(out, stamp, data.overwrite)
  if done is not None:
    return done
  parent = os.path.dirname(out)
  os.makedirs(parent, exist_ok=True)
  part = tempfile.mkdtemp(prefix=f'.{os.path.basename(out)}.', dir=parent)
  try:
    info = assemble.assemble(part, listed, labels, data, seed, settings, stamp)
    publish.publish(part, out, data.overwrite, stamp)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  log.get_logger().info(
    'Prepared %d images of %d classes in %s.',
    info['images'],
    len(info['classes']),
    out,
  )
  return {**info, 'path': out}


def prepare_phantom(arguments: str, size_px: int, out: str) -> None:
  """Prepares 'phantom:arguments' with the defaults of configs/prepare.py."""
  prepare(phantom_config(arguments, size_px, out))


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
  if not 8 <= data.size_px <= 1024:
    raise ValueError(f'config.data.size_px={data.size_px}; 8 to 1024.')
  if data.conflicts not in relatives.POLICIES:
    raise ValueError(
      f'config.data.conflicts={data.conflicts!r}; one of {relatives.POLICIES}.'
    )


def _labels(listed: list[sources.Source], data: ConfigDict) -> list[list[str]]:
  """Class of each file of each source; '' in the unlabelled ones."""
  labels = [[''] * len(s.files) for s in listed]
  if not data.source:
    return labels
  first = listed[0]
  mapping = class_names.parse_class_map(data.class_map)
  if first.labels is not None:
    labels[0] = [mapping.get(x, x) for x in first.labels]
    if data.classes:
      for name in sorted(set(labels[0]) - {'', *data.classes}):
        raise class_names.unknown(name, data.classes)
  elif any('/' in f for f in first.files) or data.classes:
    labels[0] = class_names.label_files(
      first.files, data.classes, mapping, data.group_by == 'parent'
    )
  else:
    log.get_logger().warning(
      '%s has no class folders: its pictures count as unlabelled.',
      first.origin,
    )
  if any(labels[0]) and not all(first.groups) and not first.groups_on_read:
    _units(first.files, first.groups, data)  # fails now, not after an hour
  return labels


def _units(
  names: list[str], known: list[str], data: ConfigDict
) -> groups.Units:
  return groups.assign(
    names, known, data.group_csv, data.group_regex, data.group_by
  )


def _stamp(
  settings: dict[str, Any], listed: list[sources.Source], data: ConfigDict
) -> str:
  """Names a preparation: the same sources under the same settings."""
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
  for source in listed:
    digest.update(f'{source.origin}\0{source.stamp}\0'.encode())
  if data.group_csv:
    with open(os.path.expanduser(data.group_csv), 'rb') as f:
      digest.update(f.read())
  return digest.hexdigest()

"""Any TFDS image dataset that is already on disk, as a source."""

from collections.abc import Mapping
import functools
import hashlib
import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from micdiffrep_jax.data import decode
from micdiffrep_jax.data.sources.base import DEFAULT, Request, Source


def open_source(spec: str, request: Request = DEFAULT) -> Source:
  """Lists 'NAME[:SPLIT]' or 'FOLDER[:SPLIT]'; without SPLIT, all splits.

  The picture is the first image of a record (uint8, 16-bit or float), the
  class its `label` or first class label; request.group_field names the feature
  that holds a patient. Only ArrayRecord files can be read, which needs no
  TensorFlow. Raises ValueError where nothing of that kind is there.
  """
  name, _, split = spec.partition(':')
  group = request.group_field
  builder = _builder(name, request.data_dir)
  splits = [split] if split else sorted(builder.info.splits)
  try:
    records = {s: builder.as_data_source(s) for s in splits}
  except (NotImplementedError, ValueError, KeyError) as e:
    raise ValueError(
      f'tfds:{name} cannot be read at random ({e}). Its splits: '
      f'{sorted(builder.info.splits)}; it must be stored as array_record.'
    ) from None
  features = builder.info.features
  image, label = _image_feature(features), _label_feature(features)
  if group and group not in features:
    raise ValueError(
      f'config.data.group_field={group!r}; tfds:{name} has {sorted(features)}.'
    )
  files = [f'{s}/{i:08d}' for s in splits for i in range(len(records[s]))]
  labels, groups = [''] * len(files), [''] * len(files)
  if label or group:
    skip = {image: tfds.decode.SkipDecoding()}
    bare = {s: builder.as_data_source(s, decoders=skip) for s in splits}
    for k, file in enumerate(files):
      s, _, i = file.rpartition('/')
      record = bare[s][int(i)]
      labels[k] = _text(features, label, record) if label else ''
      groups[k] = _text(features, group, record) if group else ''
  return Source(
    origin=builder.info.name,
    files=files,
    labels=labels,
    groups=groups,
    junk={},
    stamp=_stamp(os.fspath(builder.data_dir), f'{splits}\0{group}'),
    read=functools.partial(_read, records, image),
  )


def _stamp(folder: str, asked: str) -> str:
  digest = hashlib.sha256()
  for entry in sorted(os.listdir(folder)):
    stat = os.stat(os.path.join(folder, entry))
    digest.update(f'{entry}\0{stat.st_size}\0{stat.st_mtime_ns}\0'.encode())
  digest.update(asked.encode())
  return digest.hexdigest()


def _builder(name: str, data_dir: str) -> Any:
  if os.path.isfile(os.path.join(name, 'dataset_info.json')):
    return tfds.builder_from_directory(name)
  root = data_dir or os.path.expanduser('~/tensorflow_datasets')
  try:
    return tfds.core.read_only_builder.builder_from_files(name, data_dir=root)
  except tfds.core.registered.DatasetNotFoundError:
    raise ValueError(
      f'No dataset {name!r} in {root!r}. Set --config.data.data_dir, or give '
      'the folder with its dataset_info.json: tfds:FOLDER[:SPLIT].'
    ) from None


def _image_feature(features: Any) -> str:
  for name, feature in features.items():
    if isinstance(feature, tfds.features.Image):
      return name
  for name, feature in features.items():
    if isinstance(feature, tfds.features.Tensor):
      shape: tuple[int | None, ...] = feature.shape
      if len(shape) == 3 and shape[-1] in (1, 3):
        return name
  raise ValueError(f'No image among the features {sorted(features)}.')


def _label_feature(features: Any) -> str:
  if 'label' in features:
    return 'label'
  for name, feature in features.items():
    if isinstance(feature, tfds.features.ClassLabel):
      return name
  return ''


def _text(features: Any, name: str, record: Mapping[str, Any]) -> str:
  """A class or group as text; '' for the label -1, which means none."""
  value = record[name]
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(features[name], tfds.features.ClassLabel):
    return features[name].int2str(int(value)) if value >= 0 else ''
  return str(value)


def _read(
  records: Mapping[str, Any], image: str, file: str, channels: int
) -> list[decode.Picture]:
  del channels
  split, _, i = file.rpartition('/')
  pixels = np.asarray(records[split][int(i)][image])
  rules: tuple[str, ...] = ()
  if pixels.dtype != np.uint8:
    pixels, rules = decode.scale_range(pixels), ('range_scaled',)
  if pixels.ndim == 3 and pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  return [decode.Picture(pixels, rules)]

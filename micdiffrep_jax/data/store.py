"""The prepared dataset on disk: ArrayRecord shards, manifest, description.

A folder holds `dataset-images.array_record-*` (readable with
tensorflow_datasets.builder_from_directory), `manifest.csv` with one line per
image in the order of the records, `rejected.csv` and `dataset.json`.
"""

from collections.abc import Iterable, Mapping, Sequence
import csv
from dataclasses import dataclass, field
import hashlib
import json
import os
from typing import Any
import zipfile

import numpy as np

from micdiffrep_jax.run import paths
from micdiffrep_jax.run.records import Record

MANIFEST = 'manifest.csv'
REJECTED = 'rejected.csv'
INFO = 'dataset.json'
SPLIT = 'images'
COLUMNS = tuple(
  'index id file origin class source variant unit patient_id near group width '
  'height sha256 patient grouped paper leaky'.split()
)
OPTIONAL = ('given',)  # the split of the source's folders, where it was kept
_INTEGERS = ('index', 'width', 'height')
_NAME = 'dataset'
_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
_SHARD_BYTES = 1 << 29


@dataclass(frozen=True, kw_only=True)
class Info(Record):
  """What dataset.json says of a prepared dataset.

  counts: images per split, part and class. origins: names of the sources.
  rejected: files that could not be read. junk: files that were ignored, by
  kind; left_out: an example of each. rules: how often each rule of decoding
  applied. near_duplicates: see relatives.Summary. patients: see
  manifest.count_patients. settings: what config.data and the seed set. stamp:
  the same for the same sources and settings. fingerprint: sha256 over ids,
  labels, pixels and settings. files: what check_unchanged compares.
  """

  size_px: int
  channels: int
  images: int
  classes: tuple[str, ...]
  counts: Mapping[str, Any] = field(default_factory=dict)
  origins: Sequence[str] = ()
  rejected: int = 0
  junk: Mapping[str, int] = field(default_factory=dict)
  left_out: Mapping[str, str] = field(default_factory=dict)
  rules: Mapping[str, int] = field(default_factory=dict)
  near_duplicates: Mapping[str, Any] = field(default_factory=dict)
  patients: Mapping[str, Any] = field(default_factory=dict)
  settings: Mapping[str, Any] = field(default_factory=dict)
  stamp: str = ''
  fingerprint: str
  files: Mapping[str, str] = field(default_factory=dict)


def user_cache() -> str:
  """This user's folder for what can be made again: $MICDIFFREP_CACHE."""
  return paths.user_cache()


def check_salt() -> None:
  """Raises ValueError where the secret that hides patients' ids has no place.

  Else each DICOM file would seem to be damaged.
  """
  if not os.path.exists(os.path.join(user_cache(), 'salt')):
    paths.check_user_cache("the secret that hides patients' ids")


def pixel_hash(image: np.ndarray) -> str:
  """sha256 of one prepared image (s, s, c) uint8."""
  return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def write_images(
  folder: str, images: np.ndarray, ids: Sequence[str], labels: Sequence[str]
) -> None:
  """Writes (n, s, s, c) uint8 as ArrayRecord shards that TFDS reads.

  The records keep the order of the rows, which a TFDS builder would shuffle.
  """
  # Imported on use, as tfds below: most readers of this file open the cached
  # images, and these two take a second and more.
  from array_record.python.array_record_module import ArrayRecordWriter
  import tensorflow_datasets as tfds

  features = tfds.features.FeaturesDict(
    {
      # Images as bytes: the smallest and by far the fastest to decode.
      'image': tfds.features.Tensor(
        shape=images.shape[1:], dtype=np.uint8, encoding='bytes'
      ),
      'id': tfds.features.Text(),
      'label': tfds.features.Text(),
    }
  )
  n_shards = max(1, -(-images.nbytes // _SHARD_BYTES))
  bounds = np.linspace(0, len(images), n_shards + 1).astype(int)
  n_bytes = 0
  for k in range(n_shards):
    name = f'{_NAME}-{SPLIT}.array_record-{k:05d}-of-{n_shards:05d}'
    writer = ArrayRecordWriter(os.path.join(folder, name), 'group_size:1')
    for i in range(bounds[k], bounds[k + 1]):
      record = features.serialize_example(
        {'image': images[i], 'id': ids[i], 'label': labels[i]}
      )
      n_bytes += len(record)
      writer.write(record)
    writer.close()
  _write_metadata(folder, features, np.diff(bounds).tolist(), n_bytes)


def _write_metadata(
  folder: str, features: Any, shard_lengths: list[int], n_bytes: int
) -> None:
  """Writes what tensorflow_datasets.builder_from_directory needs."""
  import tensorflow_datasets as tfds

  template = tfds.core.ShardedFileTemplate(
    dataset_name=_NAME,
    data_dir=folder,
    split=SPLIT,
    filetype_suffix='array_record',
    template=_TEMPLATE,
  )
  split = tfds.core.SplitInfo(
    name=SPLIT,
    shard_lengths=shard_lengths,
    num_bytes=n_bytes,
    filename_template=template,
  )
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features,
    split_infos=[split],
    filename_template=_TEMPLATE,
    check_data=False,
  )


def open_records(folder: str) -> Any:
  """A random-access source of the records of a prepared folder."""
  import tensorflow_datasets as tfds

  return tfds.builder_from_directory(folder).as_data_source(SPLIT)


def write_table(
  path: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
  """Writes a CSV file with a header; it is whole or absent."""
  partial = path + '.partial'
  try:
    with open(partial, 'w', newline='', encoding='utf-8') as f:
      writer = csv.writer(f, lineterminator='\n')
      writer.writerow(columns)
      writer.writerows(rows)
    os.replace(partial, path)
  finally:
    if os.path.exists(partial):
      os.remove(partial)


def write_manifest(folder: str, manifest: Mapping[str, np.ndarray]) -> None:
  """Writes manifest.csv with its columns in their fixed order."""
  columns = [*COLUMNS, *(c for c in OPTIONAL if c in manifest)]
  rows = zip(*(manifest[c] for c in columns), strict=True)
  write_table(os.path.join(folder, MANIFEST), columns, rows)


def read_manifest(folder: str) -> dict[str, np.ndarray]:
  """Reads manifest.csv as {column: (n,)}, text but for index and sizes.

  One that was written before patients were known has no split `patient`.
  """
  with open(os.path.join(folder, MANIFEST), newline='', encoding='utf-8') as f:
    reader = csv.reader(f)
    header = next(reader)
    columns = list(zip(*reader, strict=True)) or [()] * len(header)
  manifest = {
    name: np.array(column, int if name in _INTEGERS else str)
    for name, column in zip(header, columns, strict=True)
  }
  if 'patient_id' not in manifest:  # of a version that knew no patients
    manifest['near'] = manifest['group']
    manifest['patient_id'] = np.full(len(manifest['id']), '')
  return manifest


def write_info(folder: str, info: Info) -> None:
  """Writes dataset.json, with what check_unchanged compares later."""
  record = {**info.to_json(), 'files': _file_marks(folder)}
  with open(os.path.join(folder, INFO), 'w') as f:
    json.dump(record, f, indent=2)
    f.write('\n')


def read_info(folder: str) -> Info:
  """Reads dataset.json; raises ValueError where there is none."""
  path = os.path.join(folder, INFO)
  if not os.path.isfile(path):
    there = os.path.isdir(folder)
    what = 'holds no prepared dataset' if there else 'does not exist'
    if os.path.isfile(folder):
      what = f'is {_kind_of(folder)}, no folder of a prepared dataset'
    raise ValueError(
      f'{folder!r} {what}. Prepare one with `python -m micdiffrep_jax.main '
      '--config=configs/prepare.py --config.data.source=DIR '
      '--config.data.out=OUT` and give OUT as config.data.path.'
    )
  with open(path) as f:
    record = json.load(f)
  try:
    return Info.from_json(record)
  except (AttributeError, TypeError, ValueError) as e:
    raise ValueError(f'{path!r} describes no prepared dataset: {e}.') from None


def _kind_of(path: str) -> str:
  """'a bundle' of encoder and head, by its parts, or 'a file'."""
  try:
    with zipfile.ZipFile(path) as archive:
      return 'a bundle' if 'json.npy' in archive.namelist() else 'a file'
  except (OSError, zipfile.BadZipFile):
    return 'a file'


def check_unchanged(folder: str, info: Info) -> None:
  """Raises ValueError where a file of the dataset is not as it was written.

  Cheap: sizes of the shards and a hash of the manifest. The pixels are
  compared with the manifest when the images are cached.
  """
  now = _file_marks(folder)
  changed = sorted(
    name
    for name in info.files.keys() | now.keys()
    if info.files.get(name) != now.get(name)
  )
  if changed:
    raise ValueError(
      f'The prepared dataset {folder!r} changed since it was written: '
      f'{changed[:5]}. Prepare it again, with --config.data.overwrite=True.'
    )


def _file_marks(folder: str) -> dict[str, str]:
  marks = {}
  for name in sorted(os.listdir(folder)):
    path = os.path.join(folder, name)
    if '.array_record-' in name:
      marks[name] = f'{os.path.getsize(path)} bytes'
    elif name in (MANIFEST, 'features.json', 'dataset_info.json'):
      with open(path, 'rb') as f:
        marks[name] = hashlib.sha256(f.read()).hexdigest()
  return marks

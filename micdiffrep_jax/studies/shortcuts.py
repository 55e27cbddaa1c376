"""How well classes are told apart by what has nothing to do with them.

A forest is cross-validated by group on numbers that hold no anatomy: the file
header, brightness, the border of the picture. What it scores above chance, a
network may score by the same shortcut.

Letters: n rows, d numbers, k classes.
"""

from collections.abc import Sequence
import contextlib
import os
import warnings

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import StratifiedGroupKFold

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import dicom
from micdiffrep_jax.heads import floors
from micdiffrep_jax.scores import summary
from micdiffrep_jax.studies.page_audit import Shortcut

_BORDER_PX = 32  # side of the picture whose outermost ring is looked at
_TREES = 100
# Header fields that tell a scanner or a site, not an anatomy.
SCANNER = (
  'Manufacturer',
  'ManufacturerModelName',
  'Modality',
  'InstitutionName',
  'StationName',
  'MagneticFieldStrength',
  'KVP',
  'SliceThickness',
  'SeriesDescription',
)


def border(image: np.ndarray) -> np.ndarray:
  """The outermost ring of an image (s, s, c) uint8 at 32 px: (124,)."""
  grey = image.astype(np.float32).mean(-1) / 255
  size = (_BORDER_PX, _BORDER_PX)
  small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
  inner = np.zeros(size, bool)
  inner[1:-1, 1:-1] = True
  return small[~inner]


def header(path: str) -> np.ndarray:
  """Numbers from a file's header and size, without decoding it: (7,).

  Bytes, bits per pixel, channels, sum of the first JPEG table, number of JPEG
  tables, whether it has EXIF, whether its resolution is given.
  """
  n_bytes = os.path.getsize(path)
  with Image.open(path) as image:
    tables = getattr(image, 'quantization', None) or {}
    first = sum(tables[min(tables)]) if tables else 0
    w, h = image.size
    return np.array(
      [
        n_bytes,
        8 * n_bytes / (w * h),
        len(image.getbands()),
        first,
        len(tables),
        len(image.getexif()) > 0,
        'dpi' in image.info,
      ],
      np.float32,
    )


def scanner(path: str) -> list[str]:
  """What a DICOM header says of where and how a picture was taken, as text.

  In the order of SCANNER, '' for what it does not say.
  """
  import pydicom  # optional

  record = pydicom.dcmread(
    path, stop_before_pixels=True, specific_tags=list(SCANNER)
  )
  return [str(record.get(tag, '')) for tag in SCANNER]


def numbers_of(values: Sequence[str]) -> np.ndarray | str:
  """A column of text as numbers (n, d): as they are, or one per category.

  Or the reason why it is no shortcut: all are equal, or all differ.
  """
  kinds = sorted(set(values))
  if len(kinds) < 2:
    return 'all images have the same'
  with contextlib.suppress(ValueError):
    return np.array([[float(v)] for v in values], np.float32)
  if len(kinds) > len(values) / 2:
    return 'nearly all images differ'
  return (np.array(values)[:, None] == kinds).astype(np.float32)


def columns(path: str, files: Sequence[str]) -> dict[str, np.ndarray | str]:
  """The columns of a table (file, ...) at `files`, by numbers_of.

  Raises ValueError for a table without `file` or without one of the files.
  """
  table = pd.read_csv(
    path, sep=None, engine='python', dtype=str, encoding='utf-8-sig'
  ).fillna('')
  if 'file' not in table:
    raise ValueError(
      f'config.columns={path!r} needs the column file; it has '
      f'{list(table.columns)}.'
    )
  table = table.drop_duplicates('file').set_index('file')
  missing = [file for file in files if file not in table.index]
  if missing:
    raise ValueError(
      f'config.columns={path!r} has no line for {len(missing)} of '
      f'{len(files)} files: {missing[:5]}.'
    )
  found = table.loc[list(files)]
  return {f'column {c}': numbers_of(found[c].tolist()) for c in found}


def descriptors(
  dataset: data.Dataset, rows: np.ndarray, source: str = '', table: str = ''
) -> dict[str, np.ndarray | str]:
  """Numbers (n, d) of each kind, or the reason why there are none.

  source: the folder that the dataset was prepared from; '' leaves out what
  only the files tell. table: a CSV file of more columns, '' for none.
  """
  manifest = dataset.manifest
  w, h = manifest['width'][rows], manifest['height'][rows]
  found: dict[str, np.ndarray | str] = {
    'size of the original': np.stack([w, h, w / h], 1).astype(np.float32),
    'file header': 'needs the original files: set --config.source=DIR',
    'ten brightness numbers': floors.describe(
      dataset.images, rows, floors.brightness
    ),
    'border pixels': floors.describe(dataset.images, rows, border),
  }
  files = manifest['file'][rows].tolist()
  found['file format'] = numbers_of(
    [os.path.splitext(f)[1].lower() for f in files]
  )
  if source:
    found |= _of_files([os.path.join(source, f) for f in files])
  if table:
    found |= columns(table, files)
  return found


def _of_files(paths: Sequence[str]) -> dict[str, np.ndarray | str]:
  """What headers tell: of DICOM files by field, of pictures in one."""
  try:
    if all(dicom.is_marked(path) for path in paths):
      told = zip(*(scanner(path) for path in paths), strict=True)
      return {
        'file header': 'DICOM files: their fields stand alone',
        **{
          f'DICOM {tag}': numbers_of(values)
          for tag, values in zip(SCANNER, told, strict=True)
        },
      }
    return {'file header': np.stack([header(path) for path in paths])}
  except OSError as e:
    return {'file header': f'files of config.source: {e}'}


def cross_validate(
  x: np.ndarray,
  labels: np.ndarray,
  groups: np.ndarray,
  k: int,
  folds: int,
  seed: int,
) -> np.ndarray:
  """Probabilities (n, k) of each row by a forest that saw none of its group."""
  probs = np.full((len(x), k), 1 / k)
  cutter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # few members of a class: scored as is
    cuts = list(cutter.split(x, labels, groups))
  for train, test in cuts:
    forest = ExtraTreesClassifier(
      _TREES,
      min_samples_leaf=2,
      class_weight='balanced',
      random_state=seed,
      n_jobs=-1,
    ).fit(x[train], labels[train])
    probs[test] = 0
    probs[np.ix_(test, forest.classes_)] = forest.predict_proba(x[test])
  return probs


def probe(
  x: np.ndarray | str,
  labels: np.ndarray,
  groups: np.ndarray,
  classes: Sequence[str],
  folds: int = 5,
  seed: int = 0,
  resamples: int = 200,
) -> Shortcut:
  """Scores of one kind of numbers, with intervals; or why it was skipped.

  balanced_accuracy over all classes (chance is 1 / k), and per class the
  area under the curve of that class against the rest (chance is 0.5).
  """
  if isinstance(x, str):
    return Shortcut(skipped=x)
  fewest = min(len(np.unique(groups[labels == j])) for j in np.unique(labels))
  folds = min(folds, fewest)
  if folds < 2 or len(np.unique(labels)) < 2:
    return Shortcut(skipped='needs two classes with two groups each')
  probs = cross_validate(x, labels, groups, len(classes), folds, seed)
  scored = summary.summarise_rows(
    labels, probs, groups, classes, resamples, seed
  )
  return Shortcut(
    balanced_accuracy=scored.scores['balanced_accuracy'],
    chance=1 / len(np.unique(labels)),
    auroc={k: one.scores['auroc'] for k, one in scored.per_class.items()},
    images=len(labels),
    folds=folds,
    numbers=x.shape[1],
  )

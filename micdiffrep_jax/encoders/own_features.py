"""Features that others computed: a table, which stands where an encoder does.

Any foundation model can so be compared under the same splits, heads, floors and
intervals as the encoders here; it need not run here. docs/own_features.md says
how a table is made.

Letters: n rows of a table, h cells a side of a map, g fewer ones, d features.
"""

from collections.abc import Sequence
import hashlib
from typing import NamedTuple
import zipfile

import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.heads import matrix
from micdiffrep_jax.run import log, paths

LAYER = 'features'  # the one layer that a table has
_ALIASES = {'patient': 'group'}
_NAMES = ('id', 'group', 'label', 'features')


class Table(NamedTuple):
  """What a file of features holds.

  ids (n,) str, each once; features (n, h, h, d) floats, vectors as h = 1;
  groups (n,) and labels (n,) str, '' unknown; sha256 of the file.
  """

  path: str
  ids: np.ndarray
  features: np.ndarray
  groups: np.ndarray
  labels: np.ndarray
  sha256: str

  def find(self, names: Sequence[str]) -> np.ndarray:
    """Rows (m,) int of the table for m ids, -1 where it has none."""
    number = {name: i for i, name in enumerate(self.ids.tolist())}
    return np.array([number.get(str(name), -1) for name in names], np.int64)

  def rows_of(self, names: Sequence[str], flag: str) -> np.ndarray:
    """As `find`; ValueError that counts the images which the table lacks."""
    at = self.find(names)
    if (at < 0).any():
      absent = [name for name, i in zip(names, at.tolist()) if i < 0]
      raise ValueError(
        f'{self.path!r} lacks {len(absent)} of {len(names)} images that are '
        f'read, e.g. {absent[0]!r}. Its id are those of manifest.csv, e.g. '
        f'{names[0]!r}; here one is {str(self.ids[0])!r}. Set {flag}.'
      )
    return at

  def compare(self, ds: data.Dataset) -> dict[str, int]:
    """How many images and ids match, and rows whose label or group does not.

    Logs it. Raises ValueError where labels differ: ids would be mixed up.
    """
    names = ds.manifest['id'].tolist()
    at = self.find(names)
    known = at >= 0
    strange = np.setdiff1d(self.ids, ds.manifest['id'])
    mine, theirs = self.labels[at[known]], ds.manifest['class'][known]
    wrong = np.flatnonzero((mine != '') & (theirs != '') & (mine != theirs))
    if len(wrong):
      first = wrong[0]
      name = str(ds.manifest['id'][known][first])
      raise ValueError(
        f'{len(wrong)} of {known.sum()} labels of {self.path!r} are not those '
        f'of the data set, e.g. {name!r} is {str(mine[first])!r} here and '
        f'{str(theirs[first])!r} there. Mend its id or label, or leave out its '
        'labels: those of the data set are taken.'
      )
    groups, found = self.groups[at[known]], data.groups(ds)[known]
    pairs = {(g, f) for g, f in zip(groups.tolist(), found.tolist()) if g}
    split = len(pairs) - len({g for g, _ in pairs})
    say = log.get_logger()
    say.info(
      '%s: features of %d of %d images of the data set; %d of its %d id are '
      'not in it%s.',
      self.path,
      known.sum(),
      len(names),
      len(strange),
      len(self.ids),
      f', e.g. {str(strange[0])!r}' if len(strange) else '',
    )
    if split:
      say.warning(
        '%s keeps pictures together that the data set takes for strangers, %d '
        'times: splits may share a patient. Prepare the data again with its '
        'groups, --config.data.group_csv.',
        self.path,
        split,
      )
    return {
      'table_rows': len(self.ids),
      'table_id_not_in_data': len(strange),
      'images_not_in_table': int((~known).sum()),
      'table_groups_split': split,
    }


def is_table(path: str) -> bool:
  """Whether a file holds features of images, and not weights."""
  name = paths.expand(path)
  if name.endswith(('.csv', '.parquet')):
    return True
  try:
    with zipfile.ZipFile(name) as archive:
      return {'id.npy', 'features.npy'} <= set(archive.namelist())
  except (OSError, zipfile.BadZipFile):
    return False


def read(path: str, flag: str) -> Table:
  """Reads an .npz, .parquet or .csv of features; flag: that gave the path.

  npz: arrays id (n,), features (n, d) or (n, h, h, d), and where known group or
  patient (n,) and label (n,). The others: columns of these names, `features`
  with a list in each cell, or any other columns, all of them numbers. Raises
  ValueError for what is none of it, an id that stands twice, nan and inf.
  """
  name = paths.expand(path)
  try:
    columns = _columns(name)
    columns = {_ALIASES.get(k, k): v for k, v in columns.items()}
    ids = np.array([str(x) for x in columns['id'].tolist()])
    features = columns['features']
    with open(name, 'rb') as f:
      digest = hashlib.file_digest(f, 'sha256').hexdigest()
  except ImportError as e:
    raise ValueError(f'{path!r} needs a package: pip install pyarrow.') from e
  except (OSError, LookupError, ValueError, zipfile.BadZipFile) as e:
    raise ValueError(
      f'{path!r} is no .npz with the arrays id (n,) and features (n, d) or '
      f'(n, h, h, d), and no .csv or .parquet with such columns: {e}. Set '
      f'{flag}.'
    ) from None
  once, count = np.unique(ids, return_counts=True)
  if (count > 1).any():
    raise ValueError(
      f'{path!r}: {(count > 1).sum()} id stand more than once, e.g. '
      f'{str(once[count > 1][0])!r}. Set {flag}.'
    )
  return Table(
    path,
    ids,
    _as_maps(features, len(ids), flag),
    _text(columns, 'group', len(ids)),
    _text(columns, 'label', len(ids)),
    digest,
  )


def _columns(path: str) -> dict[str, np.ndarray]:
  """The arrays of a file by name."""
  if not path.endswith(('.csv', '.parquet')):
    with np.load(path, allow_pickle=False) as z:
      known = {*_NAMES, *_ALIASES} & set(z.files)
      return {name: z[name] for name in known}
  import pandas as pd  # takes seconds, and few read tables

  text = {name: str for name in (*_NAMES[:-1], *_ALIASES)}
  if path.endswith('.csv'):
    frame = pd.read_csv(path, dtype=text, keep_default_na=False)
  else:
    frame = pd.read_parquet(path)
  given = [x for x in frame.columns if x in text]
  found = {name: frame[name].to_numpy() for name in given}
  rest = frame.drop(columns=given)
  if list(rest.columns) == ['features']:
    lists = [np.asarray(x, np.float32) for x in rest['features']]
    return {**found, 'features': np.stack(lists)}
  if not len(rest.columns):
    raise KeyError('features')
  return {**found, 'features': rest.to_numpy(np.float32)}


def _text(columns: dict[str, np.ndarray], name: str, n: int) -> np.ndarray:
  found = columns.get(name)
  if found is None:
    return np.full(n, '')
  return np.array(['' if x is None else str(x) for x in found.tolist()])


def _as_maps(features: np.ndarray, n: int, flag: str) -> np.ndarray:
  """(n, d) or (n, h, h, d) floats as (n, h, h, d)."""
  shape = features.shape
  maps = features[:, None, None] if features.ndim == 2 else features
  if (
    maps.ndim != 4
    or len(maps) != n
    or maps.shape[1] != maps.shape[2]
    or not np.issubdtype(maps.dtype, np.floating)
  ):
    raise ValueError(
      f'{n} id have features of shape {shape} and type {features.dtype}; give '
      f'floats (n, d) or (n, h, h, d). Set {flag}.'
    )
  largest = float(np.finfo(np.float16).max)
  if not (np.abs(maps) <= largest).all():
    raise ValueError(
      'Some features are not finite or beyond what float16 can hold. Scale '
      f'them, or set {flag}.'
    )
  return maps


def pool(maps: np.ndarray, grid: int, flag: str) -> np.ndarray:
  """Maps (n, h, h, d) -> (n, g, g, d) float16, g at most `grid`.

  Raises ValueError where h x h do not make g x g cells.
  """
  n, h = maps.shape[:2]
  g = min(grid, h)
  if h % g:
    raise ValueError(
      f'Maps of {h} x {h} do not make {g} x {g} cells. Set {flag} to a '
      f'divisor of {h}.'
    )
  return matrix.pool(maps, g).reshape(n, g, g, -1).astype(np.float16)


def shown(table: Table, ds: data.Dataset, rows: np.ndarray) -> np.ndarray:
  """What stands for images: features (m, h, h, d) float16 of rows (m,)."""
  names = ds.manifest['id'][rows].tolist()
  at = table.rows_of(names, '--config.checkpoint or --config.checkpoints')
  return table.features[at].astype(np.float16)

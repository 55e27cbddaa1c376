import csv
import pathlib
import tarfile

import numpy as np
import pytest
import trees

from micdiffrep_jax.data import dataset, prepare

SHARED = pathlib.Path(__file__).parent.parent.parent / 'shared' / 'data'
TAR = SHARED / 'crystal_clean.tar'
REFERENCE = SHARED / 'crystal_clean_near_duplicates.csv'

pytestmark = pytest.mark.skipif(
  not TAR.exists(), reason='../shared/data/crystal_clean.tar is not here'
)


@pytest.fixture(scope='module')
def reference():
  with open(REFERENCE) as f:
    return {r['source']: r['near_duplicate_group'] for r in csv.DictReader(f)}


@pytest.fixture(scope='module')
def ds(tmp_path_factory, reference):
  """40 sources per class: half from groups of several, with one variant."""
  root = tmp_path_factory.mktemp('real')
  sizes = {g: 0 for g in reference.values()}
  for g in reference.values():
    sizes[g] += 1
  wanted = set()
  for letter in 'NGMP':
    own = [s for s in reference if s.startswith(letter)]
    several = sorted(
      (s for s in own if sizes[reference[s]] > 1),
      key=lambda s: int(reference[s]),
    )[:20]
    wanted.update(several)
    wanted.update([s for s in own if sizes[reference[s]] == 1][:20])
  names = {f'{s}{v}.jpg' for s in wanted for v in ('', '_SP_')}
  with tarfile.open(TAR) as tar:
    members = [m for m in tar if m.name.rpartition('/')[2] in names]
    tar.extractall(root, members, filter='data')
  config = trees.config(
    'crystal_clean',
    source=str(root / 'crystal_clean'),
    out=str(root / 'out'),
    conflicts='drop',
    size_px=32,
  )
  prepare.prepare(config.data)
  return dataset.open_dataset(str(root / 'out'))


def test_files_become_rows_with_source_and_variant(ds):
  assert len(ds.images) == 2 * 160
  assert ds.info.rejected == 0
  assert set(ds.manifest['variant']) == {'', 'SP'}
  letters = np.array([s[0] for s in ds.manifest['source']])
  for letter, name in zip('NGMP', ds.classes, strict=True):
    assert set(ds.manifest['class'][letters == letter]) == {name}


def test_near_duplicates_agree_with_the_reference(ds, reference):
  rows = ds.manifest['variant'] == ''
  ours = ds.manifest['group'][rows]
  theirs = np.array([reference[s] for s in ds.manifest['source'][rows]])
  pair = np.triu(np.ones((len(ours),) * 2, bool), 1)
  a = (ours[:, None] == ours)[pair]
  b = (theirs[:, None] == theirs)[pair]
  assert b.sum() > 40
  assert (a & b).sum() / a.sum() > 0.9  # precision; .99 on all sources
  # Recall is .92 on all sources; these were chosen for their near-duplicates.
  assert (a & b).sum() / b.sum() > 0.75


def test_no_near_duplicate_lies_on_both_sides(ds):
  for group in set(ds.manifest['group']):
    rows = ds.manifest['group'] == group
    assert len(set(ds.manifest['grouped'][rows])) == 1

"""A head fitted again on all labelled images, of a fake encoder."""

import os

from fakes import classify, fake_encoder, quadrants, use_fake
import numpy as np
import pytest
from test_probe import get_config

from micdiffrep_jax.bundle import export
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.heads import head_file
from micdiffrep_jax.studies import probe


@pytest.fixture(scope='module')
def ds():
  return quadrants()


@pytest.mark.parametrize(
  'row',
  ['mlp_concat', pytest.param('kernel', marks=pytest.mark.slow), 'logistic'],
)
def test_it_learns_from_validation_and_test_rows(tmp_path, ds, row):
  config = get_config(
    bundle=row,
    random_encoder=False,
    floors=(),
    classic=('logistic', 'kernel'),
    grids=(4,),
    seeds=(0,),
    **{'heads.kinds': ('mlp',)},
  )
  with pytest.MonkeyPatch.context() as patch:
    use_fake(patch, ds)
    probe.run(config, str(tmp_path))
  head = head_file.load(str(tmp_path))
  assert os.path.exists(tmp_path / 'head.npz')
  rows = export.labelled_rows(ds, 'patient')
  # What training did not see gets the name of the next class.
  labels = data.labels(ds).copy()
  new = np.setdiff1d(rows, data.rows(ds, 'patient', 'train'))
  swapped = labels.copy()
  swapped[new] = (labels[new] + 1) % len(ds.classes)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data, 'labels', lambda _: swapped)
    again, kept = export.refit(
      head, fake_encoder(ds), ds, config, str(tmp_path / 'refit')
    )
  assert again.info == head.info
  before, after, still = (
    classify(h, fake_encoder(ds), ds, new)
    for h in (head, again, head._replace(params=kept))
  )
  np.testing.assert_allclose(still, before, atol=1e-3)
  assert (before.argmax(1) == labels[new]).mean() > 0.6
  moved = after[np.arange(len(new)), swapped[new]]
  kept = before[np.arange(len(new)), swapped[new]]
  assert moved.mean() > kept.mean() + 0.02

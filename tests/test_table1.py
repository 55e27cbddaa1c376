"""Two methods pretrained and probed for seconds, then the table of both."""

import csv
import json

import numpy as np
import pytest
import tiny_bundle

from configs import table1 as table1_config
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.pretrain import train
from micdiffrep_jax.run import log
from micdiffrep_jax.scores import bootstrap
from micdiffrep_jax.studies import report, table1


def get_config(**changes):
  config = table1_config.get_config('test')
  config.images_drawn = 64
  config.splits = ('grouped',)
  config.probe.classic = ('knn',)
  config.headline = 'knn'
  config.probe.heads.kinds = ('linear',)
  config.probe.bundle = 'linear_concat'
  config.random_splits = ()
  for name in config.pretrain:
    config.pretrain[name].log_every = 1
    config.pretrain[name].monitor.samples = 0
    config.pretrain[name].monitor.probe_images = 0
  config.pretrain.ddpm.model.multipliers = (1,)
  config.pretrain.ddpm.model.attention = ()
  config.update_from_flattened_dict(changes)
  return config.lock()


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('table1')
  return workdir, table1.run(get_config(), str(workdir))


@pytest.mark.slow
def test_every_method_draws_the_same_images_and_has_its_rows(finished):
  workdir, results = finished
  assert {c['images_drawn'] for c in results['costs'].values()} == {64}
  assert {(r['method'], r['row']) for r in results['table']} == {
    *((m, r) for m in ('ddpm', 'mae') for r in ('linear_single', 'knn')),
    *((m, 'linear_concat') for m in ('ddpm', 'mae')),
    ('floor', 'majority'),
    ('floor', 'nearest_pixels'),
  }
  with open(workdir / 'table1.csv') as f:
    lines = list(csv.DictReader(f))
  assert len(lines) == len(results['table'])
  (mae,) = [x for x in lines if (x['method'], x['row']) == ('mae', 'knn')]
  assert float(mae['paper']) == 69
  assert float(mae['images_drawn']) == 64
  speeds = [
    x.get('images_per_s')
    for x in log.read_metrics(workdir / 'mae' / 'pretrain')
  ]
  speeds = [x for x in speeds if x]
  assert 64 / max(speeds) <= float(mae['training_s']) <= 64 / min(speeds)
  assert mae['flags'] == ''
  text = (workdir / 'table1.md').read_text()
  assert '| mae | 69 | ' in text
  assert '| majority class | ' in text
  html = (workdir / 'table1.html').read_text()
  assert 'data:image/png' in html
  assert 'GFLOP per image drawn' in html
  assert (workdir / 'table1.png').stat().st_size > 5000


@pytest.mark.slow
def test_a_report_shows_it(finished):
  workdir, _ = finished
  sections = report.compose([report.read(str(workdir), 'all methods')], False)
  blocks = {s.title: s.blocks for s in sections}['Table 1']
  table, floors, plot, *_ = blocks
  assert [row[0] for row in table.rows] == ['ddpm', 'mae']
  assert [row[0] for row in floors.rows] == ['majority class', '1-NN on pixels']
  assert plot.stem == 'table1'


@pytest.mark.slow
def test_methods_are_compared_on_the_same_groups(finished):
  workdir, results = finished
  (found,) = [c for c in results['comparisons'] if c['row'] == 'knn']
  right = {}
  for name in ('ddpm', 'mae'):
    with np.load(workdir / name / 'probe_grouped/predictions.npz') as z:
      said, labels = z['test.probs.knn'].argmax(1), z['test.label']
      right[name] = (said == labels).mean()
      groups = z['test.group']
  assert found['other'] == 'mae'
  assert np.isclose(found['difference'], right['ddpm'] - right['mae'])
  assert len(bootstrap.group_weights(groups, 2, 0)[0][0]) > 3


@pytest.mark.slow
def test_another_row_may_be_ours(finished):
  workdir, results = finished
  cells = {
    name: {'grouped': table1.Cell(_record(workdir, name), folder)}
    for name in ('ddpm', 'mae')
    for folder in [str(workdir / name / 'probe_grouped')]
  }
  found = table1.comparisons(cells, 'mae', 'knn', 1000, 0)
  assert {c['other'] for c in found} == {'ddpm'}
  (turned,) = [c for c in found if c['row'] == 'knn']
  (before,) = [c for c in results['comparisons'] if c['row'] == 'knn']
  assert np.isclose(turned['difference'], -before['difference'])


def _record(workdir, name):
  path = workdir / name / 'probe_grouped' / 'results.json'
  return json.loads(path.read_text())


@pytest.mark.slow
def test_finished_cells_are_not_run_again(finished, monkeypatch):
  workdir, results = finished
  for module, name in ((train, 'run'), (table1.probe, 'run')):
    monkeypatch.setattr(
      module, name, lambda *_: pytest.fail('a finished cell was run again')
    )
  again = table1.run(get_config(), str(workdir))
  assert again['table'] == results['table']


def test_one_encoder_spares_the_test_images_of_every_split():
  config = get_config(splits=('grouped', 'paper'))
  unit = table1.pretrain_config(config, 'mae')
  assert (unit.data.split, unit.data.spare) == ('grouped', ('paper',))
  assert unit.steps * unit.batch_size == 64


def test_pretraining_may_spare_what_no_column_shows():
  config = get_config(splits=('grouped',), spare=('paper',))
  unit = table1.pretrain_config(config, 'mae')
  assert (unit.data.split, unit.data.spare) == ('grouped', ('paper',))


def test_random_weights_are_probed_where_asked_for():
  config = get_config(splits=('grouped', 'paper'), random_splits=('grouped',))
  asked = {
    split: table1.probe_config(config, 'mae', 'run', split).random_encoder
    for split in config.splits
  }
  assert asked == {'grouped': True, 'paper': False}
  with config.unlocked():
    config.random_methods = ('ddpm',)
  asked = {
    name: table1.probe_config(config, name, 'run', 'grouped').random_encoder
    for name in ('mae', 'ddpm')
  }
  assert asked == {'mae': False, 'ddpm': True}


def test_each_method_may_have_layers_of_its_own():
  config = get_config(**{'layers.mae': ('block0',)})
  found = {
    name: table1.probe_config(config, name, 'run', 'grouped').layers
    for name in ('ddpm', 'mae', 'supervised_vit')
  }
  assert found == {'ddpm': (), 'mae': ('block0',), 'supervised_vit': ()}


def test_a_row_beyond_the_defaults_is_known():
  config = get_config(methods=('ddpm', 'supervised_vit'))
  table1.check(config)
  unit = table1.pretrain_config(config, 'supervised_vit')
  assert (unit.method, 'patch' in unit.model) == ('supervised', True)


def test_the_transformer_has_a_row_and_a_number_of_images_of_its_own():
  config = get_config(methods=('ddpm', 'ddpm_vit'), **{'drawn.ddpm_vit': 16})
  table1.check(config)
  units = {n: table1.pretrain_config(config, n) for n in config.methods}
  assert [u.method for u in units.values()] == ['ddpm', 'ddpm']
  assert [u.model.name for u in units.values()] == ['unet', 'vit']
  assert [u.steps * u.batch_size for u in units.values()] == [64, 16]


@pytest.mark.parametrize('preset', ['paper', 'tiny', 'test'])
def test_every_preset_is_accepted(preset):
  table1.check(table1_config.get_config(preset))


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('methods', ('ddpm', 'mea'), 'mea'),
    ('methods', (), '--config.methods'),
    ('splits', ('groups',), '--config.splits'),
    ('random_splits', ('groups',), '--config.random_splits'),
    ('spare', ('groups',), '--config.spare'),
    ('random_methods', ('mea',), '--config.random_methods'),
    ('images_drawn', 0, '--config.images_drawn'),
    ('drawn.mae', -1, '--config.drawn.mae'),
    ('headline', 'msfa', '--config.headline'),
    ('ours', 'dpm', '--config.ours'),
  ],
)
def test_a_bad_config_is_refused_with_its_flag(field, value, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    table1.run(get_config(**{field: value}), str(tmp_path))


def test_an_encoder_that_saw_test_images_is_refused_before_any_work(
  tmp_path, monkeypatch
):
  ds = data.open_dataset('phantom:size_px=16,patients=60')
  info = encoders.EncoderInfo(
    16,
    1,
    fingerprint=ds.fingerprint,
    split='patient',
    split_hash=data.split_hash(ds, 'patient'),
  )
  given = tiny_bundle.encoder()._replace(info=info)
  monkeypatch.setattr(encoders, 'load_encoder', lambda *_: given)
  for module in (train, table1.probe):
    monkeypatch.setattr(module, 'run', lambda *_: pytest.fail('work was done'))
  config = get_config(
    splits=('patient', 'paper'),
    committees=('ddpm+mae',),
    **{'checkpoints.mae': 'given'},
  )
  message = r"split 'paper'.*--config\.splits.*--config\.checkpoints\.mae"
  with pytest.raises(ValueError, match=message):
    table1.run(config, str(tmp_path))

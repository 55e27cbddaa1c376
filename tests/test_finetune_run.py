"""Fine-tuning runs: resumed, stopped, bundled, compared."""

import csv
import json
import os
import signal

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest
import tunable

from configs import cross_validate, label_efficiency
from micdiffrep_jax.bundle import classifier
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.heads.head_file import SavedHead
from micdiffrep_jax.methods import METHODS
from micdiffrep_jax.pretrain import finetune as tuning
from micdiffrep_jax.pretrain.finetune import Labelled
from micdiffrep_jax.studies import (
  base,
  finetune,
  folds,
  grid,
  labels,
  report,
  tuned,
)

REAL_LOAD = encoders.load_encoder


@pytest.fixture(autouse=True, scope='module')
def toy():
  """Whoever loads the encoder 'toy' gets the small one."""

  def load(path, step=None):
    return tunable.encoder() if path == 'toy' else REAL_LOAD(path, step)

  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(METHODS, 'toy', tunable.reader)
    patch.setattr(encoders, 'load_encoder', load)
    yield


@pytest.fixture(scope='module')
def ds():
  return data.open_dataset(tunable.PHANTOM)


def known(ds):
  parts = base.labelled_parts(ds, 'patient')
  y = np.full(len(ds.images), -1, np.int64)
  seen = np.concatenate([parts.train, parts.val])
  y[parts.rows[seen]] = parts.labels[seen]
  train, val = parts.rows[parts.train], parts.rows[parts.val]
  return Labelled(ds, train, val, y, 'patient')


def first_head(ds, classes=None):
  rng = np.random.default_rng(0)
  params = {
    'M': rng.normal(size=(1, 4, tunable.WIDTH)).astype(np.float32),
    'M_bias': np.zeros((1, 4), np.float32),
  }
  info = base.head_info(
    grid.new_info('linear', grid.Spot(('three',), 0, 1)),
    ds,
    'patient',
    1,
    tunable.get_config(),
  )
  ones = np.ones(tunable.WIDTH, np.float32)
  return SavedHead(params, 0 * ones, ones, info)


def run(ds, workdir, **changes):
  config = tunable.get_config(**changes)
  return tuning.tune(
    config, tunable.encoder(), first_head(ds), known(ds), str(workdir)
  )


def variables(found):
  return jax.tree.map(np.asarray, found.encoder.variables)


@pytest.fixture(scope='module')
def whole(ds, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, run(ds, workdir, patience=0)


def test_a_killed_run_that_goes_on_equals_the_run_that_was_not(
  ds, whole, tmp_path, monkeypatch
):
  _, want = whole
  watch = tuning._watch

  def killed(*arguments):
    inner = watch(*arguments)

    def look(state, step):
      if step == 8:
        os.kill(os.getpid(), signal.SIGTERM)
      return inner(state, step)

    return look

  monkeypatch.setattr(tuning, '_watch', killed)
  with pytest.raises(SystemExit):
    run(ds, tmp_path, patience=0)
  monkeypatch.setattr(tuning, '_watch', watch)
  found = run(ds, tmp_path, patience=0)
  assert found.evaluated == want.evaluated
  assert list(found.evaluated) == [0, 4, 8, 12]
  assert found.step == want.step
  jax.tree.map(np.testing.assert_array_equal, variables(found), variables(want))


@pytest.mark.parametrize(
  ('changes', 'images', 'steps'),
  [
    ({}, 1_000, 180),  # 187 passes
    ({}, 980, 180),  # a fold of about the same size
    ({}, 90, 30),  # few labels
    ({'min_steps': 0}, 90, 16),
    ({'steps': 7}, 1_000, 7),
  ],
)
def test_updates_of_epochs_are_a_multiple_of_those_between_evaluations(
  changes, images, steps
):
  count = {'batch_size': 16, 'epochs': 3, 'eval_every': 20, 'steps': 0}
  config = tunable.get_config(**{**count, 'min_steps': 30, **changes})
  assert tuning.steps_of(config, images) == steps


def test_the_step_of_the_lowest_validation_loss_is_kept(whole):
  _, found = whole
  assert found.step == min(found.evaluated, key=found.evaluated.get)
  assert found.evaluated[found.step] < found.evaluated[0]
  assert found.encoder.info.facts['supervised'] is True


def test_a_run_ends_when_nothing_gets_better(ds, tmp_path):
  # Without a rate, step 0 is never beaten.
  found = run(ds, tmp_path, patience=1, optim__lr=0.0)
  assert found.step == 0
  assert list(found.evaluated) == [0, 4]


def test_a_rank_of_0_leaves_the_encoder_as_it_was(ds, tmp_path):
  found = run(ds, tmp_path, tune='lora', lora__rank=0, patience=0)
  assert found.step > 0  # the head was trained
  before = jax.tree.leaves(tunable.encoder().variables)
  now = jax.tree.leaves(found.encoder.variables['net'])
  for a, b in zip(before, now, strict=True):
    np.testing.assert_array_equal(a, b)
  assert (found.head.params['M'] != first_head(ds).params['M']).any()


class Watched:
  """Images that note which of them are read."""

  def __init__(self, images):
    self._images, self.shape, self.dtype = images, images.shape, images.dtype
    self.read = set()

  def __len__(self):
    return len(self._images)

  def __getitem__(self, rows):
    self.read |= set(np.atleast_1d(np.arange(len(self))[rows]).tolist())
    return self._images[rows]


def test_test_images_are_never_read_for_training_or_stopping(ds, tmp_path):
  watched = ds._replace(images=Watched(ds.images))
  seen = known(watched)
  test = data.rows(ds, 'patient', 'test')
  assert (seen.labels[test] == -1).all()
  tuning.tune(
    tunable.get_config(),
    tunable.encoder(),
    first_head(ds),
    seen,
    str(tmp_path),
  )
  assert watched.images.read & set(seen.val.tolist())
  assert not watched.images.read & set(test.tolist())


@pytest.fixture(scope='module')
def study(ds, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('study')
  config = tunable.get_config(share=0.5, views='')
  return workdir, finetune.run(config, str(workdir))


def test_a_study_stands_beside_its_frozen_head_and_a_floor(study):
  _, results = study
  assert list(results['rows']) == ['finetuned', 'frozen', 'floor/majority']
  pairs = {(c['row_a'], c['row_b']) for c in results['comparisons']}
  assert ('finetuned', 'frozen') in pairs
  assert results['pretraining_saw_test_images'].startswith('unknown')
  assert results['encoder']['finetuned'] == 'full'
  assert results['train_images'] < results['data']['images']['train']


def test_a_bundle_gives_the_probabilities_of_the_trained_network(study, ds):
  workdir, results = study
  path = str(workdir / 'bundle' / 'bundle.npz')
  model = classifier.load_bundle(path)
  with np.load(workdir / 'predictions.npz') as z:
    rows, want = z['test.index'], z['test.probs.finetuned']
  found = classifier.bundle_predict(model, ds.images[rows])
  np.testing.assert_allclose(found, want, atol=5e-3)  # of float16
  # And of the network itself, without pooling in float16 or a file.
  place = workdir / 'checkpoints' / str(results['best_step'])
  trained = REAL_LOAD(str(place))
  t = tunable.method.tuning(METHODS, trained.config, tunable.SIZE, 1)
  logits = tunable.method.logits(t, trained.variables, ds.images[rows], None, 0)
  temperature = model.head.info.temperature
  direct = jax.nn.softmax(logits / temperature)
  np.testing.assert_allclose(found, direct, atol=5e-3)
  assert model.meta.training_images == (
    results['train_images'] + results['val_images']
  )
  # The head travels once, not inside the encoder too.
  with np.load(path) as z:
    assert not [n for n in z.files if n.startswith('encoder.head')]


def test_a_report_tells_of_it(study, tmp_path):
  workdir, _ = study
  config = ConfigDict(
    {'runs': (str(workdir),), 'title': 'T', 'look_up_data': False}
  )
  report.run(config, str(tmp_path))
  text = (tmp_path / 'report.md').read_text()
  assert 'fine-tuned' in text.lower()
  assert 'the same head on the frozen encoder' in text
  assert 'lack something' not in text


def test_a_share_is_a_draw_of_label_efficiency(ds):
  parts = base.labelled_parts(ds, 'patient')
  study = label_efficiency.get_config('test')
  study.fractions, study.draws_of_labels = (0.3, 1.0), 2
  for draw in labels.make_draws(ds, parts, study.lock()):
    config = tunable.get_config(share=draw.share, draw=draw.number)
    cut = finetune.cut(ds, parts, config)
    for part, at in (('train', draw.train), ('val', draw.val)):
      rows = cut.rows[getattr(cut, part)]
      np.testing.assert_array_equal(rows, parts.rows[at])
      assert (cut.labels[getattr(cut, part)] == data.labels(ds)[rows]).all()
    assert (cut.rows[cut.test] == parts.rows[parts.test]).all()
    assert (cut.labels[cut.test] == -1).all()


def test_a_share_that_leaves_a_class_empty_is_refused(ds):
  parts = base.labelled_parts(ds, 'patient')
  # One class whose images are the fewer in each of their groups.
  groups = data.groups(ds)[parts.rows]
  y = np.zeros_like(parts.labels)
  y[np.unique(groups, return_index=True)[1]] = 1
  y[parts.test] = -1
  rare = parts._replace(labels=y, classes=2)
  with pytest.raises(ValueError, match=r'--config\.share'):
    tuned.check_classes(
      rare._replace(train=np.flatnonzero(y == 0)), ('a', 'b'), '--config.share'
    )


def test_the_classes_of_a_checkpoint_must_be_those_of_the_data(study, ds):
  workdir, _ = study
  path = str(workdir / 'bundle' / 'bundle.npz')
  config = tunable.get_config(start='checkpoint', checkpoint=path)
  encoder = REAL_LOAD(path)
  found, head = finetune.given_head(config, encoder, ds)
  assert found.layers == ('three',)
  other = ds._replace(classes=ds.classes[::-1])
  with pytest.raises(ValueError, match=r'--config\.start=fit'):
    finetune.given_head(config, encoder, other)
  none = tunable.get_config(start='checkpoint')
  with pytest.raises(ValueError, match='holds no head'):
    finetune.given_head(none, tunable.encoder(), ds)
  # From the run's own folder it is the same head.
  run_of = str(workdir)
  config = tunable.get_config(start='checkpoint', checkpoint=run_of)
  _, own = finetune.given_head(config, REAL_LOAD(run_of), ds)
  assert own.params['M'].shape == head.params['M'].shape


@pytest.mark.parametrize(
  ('changes', 'flag'),
  [
    ({'share': 0.0}, 'share'),
    ({'checkpoint': ''}, 'checkpoint'),
    ({'head': 'kernel'}, 'head'),
    ({'eval_every': 5}, 'eval_every'),
    ({'start': 'somewhere'}, 'start'),
    ({'views': 'wild'}, 'views'),
    ({'optim__warmup_steps': 99}, 'optim.warmup_steps'),
    ({'tune': 'last', 'from_stage': 'four'}, 'from_stage'),
    ({'eval_every': 0}, 'eval_every'),
    ({'save_every': 0}, 'save_every'),
  ],
)
def test_wrong_settings_are_told_before_any_feature_is_read(
  changes, flag, tmp_path, monkeypatch
):
  monkeypatch.setattr(tuned, 'subject', None)
  with pytest.raises(ValueError, match=flag) as e:
    finetune.run(tunable.get_config(**changes), str(tmp_path))
  assert f'--config.{flag}' in str(e.value)
  assert '\n' not in str(e.value)


def test_random_weights_start_from_a_head_that_says_nothing(ds, tmp_path):
  parts = base.labelled_parts(ds, 'patient')
  s = tuned.subject(
    tunable.encoder(seed=1),
    ds,
    parts.rows,
    'patient',
    tunable.get_config(head='mlp', grid=2),
    str(tmp_path),
    'random/',
  )
  head = tuned.zero_head(s)
  assert (head.params['W'] != 0).all()
  row = tuned.row_of(head, s, parts)
  np.testing.assert_allclose(row.test[0], 0.25)
  # As wide as the features, so that it can be trained on.
  assert head.params['W'].shape[-1] == len(head.scale) == 4 * tunable.WIDTH


def small(config):
  config.data.path = tunable.PHANTOM
  config.finetuned = ('full', 'lora')
  config.finetune.update(
    {
      k: v
      for k, v in tunable.get_config(steps=4).items()
      if k in ('steps', 'eval_every', 'save_every', 'lora', 'optim')
    }
  )
  config.random_encoder = False
  config.floors = ('majority',)
  return config


@pytest.mark.slow
def test_shares_of_labels_compare_fine_tuned_with_frozen(tmp_path):
  config = small(label_efficiency.get_config('test'))
  config.checkpoint, config.fractions = 'toy', (0.3, 1.0)
  config.draws_of_labels, config.heads.kinds = 1, ('mlp',)
  config.classic, config.timesteps, config.grids = ('logistic',), (0,), (1,)
  results = labels.run(config.lock(), str(tmp_path))
  pairs = {
    (c['method'], c['floor'], c['share']) for c in results['comparisons']
  }
  for share in (0.3, 1.0):
    assert ('finetuned_full', 'frozen', share) in pairs
    assert ('finetuned_lora', 'floor/majority', share) in pairs
  with open(tmp_path / 'label_efficiency.csv') as f:
    assert {'frozen', 'finetuned_lora'} <= {
      r['method'] for r in csv.DictReader(f)
    }
  assert (tmp_path / 'label_efficiency_accuracy_all.png').exists()
  # What was said is kept, checkpoints are not; a second run trains nothing.
  own = tmp_path / 'finetuned' / 'encoder' / '0.3_0' / 'full'
  assert not (own / 'checkpoints').exists()
  before = (own / 'said.json').stat().st_mtime_ns
  again = labels.run(config, str(tmp_path))
  assert (own / 'said.json').stat().st_mtime_ns == before
  assert again['curves'] == results['curves']


@pytest.mark.slow
def test_folds_compare_fine_tuned_with_frozen_on_the_same_images(tmp_path):
  config = small(cross_validate.get_config('test'))
  config.checkpoints, config.heads = ('toy',), ('knn',)
  results = folds.run(config.lock(), str(tmp_path))
  heads = [r['head'] for r in results['rows']]
  assert heads[:4] == ['knn', 'frozen', 'finetuned_full', 'finetuned_lora']
  pairs = {(c['a']['head'], c['b']['head']) for c in results['comparisons']}
  assert ('finetuned_full', 'frozen') in pairs
  with np.load(tmp_path / 'predictions.npz') as z:
    for i in range(4):
      np.testing.assert_allclose(z[f'probs.{i}'].sum(1), 1, rtol=1e-5)
  with open(tmp_path / 'results.json') as f:
    record = json.load(f)
  assert len(record['rows'][2]['chosen']) == 3

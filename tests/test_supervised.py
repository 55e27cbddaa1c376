import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import baselines
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import encoder
from micdiffrep_jax.heads.nets import HEADS
from micdiffrep_jax.methods import METHODS, supervised
from micdiffrep_jax.pretrain import train
from micdiffrep_jax.pretrain.optim import make_optimizer
from micdiffrep_jax.pretrain.state import make_state, make_step

PHANTOM = 'phantom:size_px=16,patients=60'


def test_rows_without_a_label_weigh_nothing():
  logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [5.0, -5.0]])
  labels = jnp.array([0, 0, -1])
  each = [np.log1p(np.exp(-2.0)), np.log1p(np.exp(1.0))]
  found = supervised.cross_entropy(logits, labels)
  np.testing.assert_allclose(found, np.mean(each), rtol=1e-5)
  assert supervised.cross_entropy(logits, jnp.full(3, -1)) == 0


def test_labels_of_the_train_part_alone_are_handed_over():
  ds = data.open_dataset(PHANTOM)
  config = baselines.get_config('supervised,test').lock()
  side = supervised.make(config, 16, 1).side(ds)['label']
  train = data.rows(ds, 'patient', 'train')
  np.testing.assert_array_equal(side[train], data.labels(ds)[train])
  assert (np.delete(side, train) == -1).all()
  config.unlock()
  config.classes = 7
  with pytest.raises(ValueError, match='--config.classes=4'):
    supervised.make(config, 16, 1).side(ds)


@pytest.mark.slow
@pytest.mark.parametrize('preset', ['supervised', 'supervised_vit'])
def test_a_batch_is_learnt_by_heart(preset):
  ds = data.open_dataset(PHANTOM)
  config = baselines.get_config(f'{preset},test')
  config.augment.update(dict.fromkeys(config.augment, 0.0))
  config.optim.lr, config.optim.warmup_steps = 1e-2, 0
  method = supervised.make(config.lock(), 16, 1)
  tx = make_optimizer(config.optim, 40)
  rows = data.rows(ds, 'patient', 'train')[:16]
  batch = {'image': ds.images[rows], 'label': data.labels(ds)[rows]}
  state = jax.jit(lambda k: make_state(method, tx, k))(jax.random.key(0))
  step = jax.jit(make_step(method, tx))
  losses = []
  for _ in range(40):
    state, metrics = step(state, batch, jax.random.key(1))
    losses.append(float(metrics['loss']))
  assert losses[0] > 1.0 > 0.3 > losses[-1]


@pytest.mark.slow
def test_a_vit_is_that_of_mae_and_its_class_token_is_what_is_trained():
  vit, mae = (
    baselines.get_config(f'{name},test').lock()
    for name in ('supervised_vit', 'mae')
  )
  assert vit.model.to_dict() == mae.model.to_dict()
  method, other = supervised.make(vit, 16, 1), METHODS['mae'](mae, 16, 1)
  assert method.layers == other.layers
  params, extra = jax.jit(method.init)(jax.random.key(0))
  image = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), np.uint8)
  # One encoder gives the same features under both.
  variables = method.frozen(params, extra)
  taps = jax.jit(method.features)(variables, image, None, 0)
  same = {'encoder': params['encoder']}
  same = jax.jit(other.features)(same, image, None, 0)
  for name in method.layers:
    np.testing.assert_array_equal(taps[name], same[name])
  # The loss reads the tap cls, here without augmentation.
  still = vit.copy_and_resolve_references()
  still.augment.update(dict.fromkeys(still.augment, 0.0))
  labels = jnp.arange(4)
  found, _ = jax.jit(supervised.make(still, 16, 1).loss)(
    params, extra, {'image': image, 'label': labels}, jax.random.key(0)
  )
  logits = HEADS['linear'].apply(params['head'], taps['cls'][:, 0, 0])
  want = supervised.cross_entropy(logits, labels)
  np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.parametrize(
  ('field', 'value'), [('patch', 5), ('width', 18), ('heads', 3)]
)
def test_a_vit_that_does_not_fit_is_refused(field, value):
  config = baselines.get_config('supervised_vit,test')
  config.model[field] = value
  with pytest.raises(ValueError, match='--config.model'):
    supervised.make(config, 16, 1)


@pytest.mark.slow
def test_a_vit_is_pretrained_resumed_and_read_back(tmp_path):
  config = baselines.get_config('supervised_vit,test')
  config.steps, config.save_every, config.monitor.probe_images = 2, 1, 0
  config.keep_every = 1
  results = train.run(config.lock(), str(tmp_path))
  assert results['dataset']['supervised'] is True
  want = encoder.load_encoder(str(tmp_path)).variables
  shutil.rmtree(tmp_path / 'checkpoints' / '2')
  train.run(config, str(tmp_path))
  found = encoder.load_encoder(str(tmp_path))
  assert found.info.images_seen == 2 * config.batch_size
  jax.tree.map(np.testing.assert_array_equal, found.variables, want)

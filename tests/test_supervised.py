import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import baselines
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.methods import supervised
from micdiffrep_jax.training.optim import make_optimizer
from micdiffrep_jax.training.state import make_state, make_step

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
  train = data.rows(ds, 'grouped', 'train')
  np.testing.assert_array_equal(side[train], data.labels(ds)[train])
  assert (np.delete(side, train) == -1).all()
  config.unlock()
  config.classes = 7
  with pytest.raises(ValueError, match='--config.classes=4'):
    supervised.make(config, 16, 1).side(ds)


def test_a_batch_is_learnt_by_heart():
  ds = data.open_dataset(PHANTOM)
  config = baselines.get_config('supervised,test')
  config.augment.update(dict.fromkeys(config.augment, 0.0))
  config.optim.lr, config.optim.warmup_steps = 1e-2, 0
  method = supervised.make(config.lock(), 16, 1)
  tx = make_optimizer(config.optim, 40)
  rows = data.rows(ds, 'grouped', 'train')[:16]
  batch = {'image': ds.images[rows], 'label': data.labels(ds)[rows]}
  state = jax.jit(lambda k: make_state(method, tx, k))(jax.random.key(0))
  step = jax.jit(make_step(method, tx))
  losses = []
  for _ in range(40):
    state, metrics = step(state, batch, jax.random.key(1))
    losses.append(float(metrics['loss']))
  assert losses[0] > 1.0 > 0.3 > losses[-1]

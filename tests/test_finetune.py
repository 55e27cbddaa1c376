"""What moves when an encoder is fine-tuned, how fast, and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tunable

from configs import baselines, pretrain
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders.encoder import make_method
from micdiffrep_jax.methods import METHODS, finetune
from micdiffrep_jax.pretrain import optim
from micdiffrep_jax.pretrain.state import make_state, make_step
from micdiffrep_jax.pretrain.train import stale


@pytest.fixture(scope='module')
def ds():
  return data.open_dataset(tunable.PHANTOM)


def start(t, seed=0):
  """Params and extra of the toy with a head drawn at random."""
  rng = np.random.default_rng(seed)
  head = {
    'M': jnp.asarray(rng.normal(size=(t.classes, t.width)), jnp.float32),
    'M_bias': jnp.zeros(t.classes),
  }
  shift = jnp.asarray(rng.normal(size=t.width), jnp.float32)
  encoder = tunable.encoder()
  return finetune.initial(
    t, encoder.variables, head, shift, jnp.full(t.width, 2.0), jax.random.key(5)
  )


def after(t, config, ds, steps=3):
  """The encoder's leaves before and after some steps, and the params."""
  method = finetune.method_of(t, config)
  params, extra = start(t)
  before = t.leaves(tunable.encoder().variables)
  tx = optim.make_optimizer(config.optim, 10, method.rates)
  state = make_state(method, tx, jax.random.key(0))
  state = type(state)(
    state.step, params, extra, tx.init(params), state.averages
  )
  step = jax.jit(make_step(method, tx))
  for _ in range(steps):
    state, _ = step(state, tunable.batch(ds), jax.random.key(1))
  now = t.leaves(finetune.frozen(t, state.params, state.extra)['net'])
  return before, now, state


def moved(before, now):
  return {n for n in before if (np.asarray(before[n]) != now[n]).any()}


CASES = {
  'full': ({}, {'one', 'two', 'three'}, ('kernel', 'bias')),
  'last': ({'tune': 'last'}, {'three'}, ('kernel', 'bias')),
  'from': (
    {'tune': 'last', 'from_stage': 'two'},
    {'two', 'three'},
    ('kernel', 'bias'),
  ),
  'head': ({'tune': 'last', 'from_stage': 'head'}, set(), ()),
  'lora': ({'tune': 'lora'}, {'one', 'two', 'three'}, ('kernel',)),
  'lora from': (
    {'tune': 'lora', 'from_stage': 'three'},
    {'three'},
    ('kernel',),
  ),
  'rank 0': ({'tune': 'lora', 'lora__rank': 0}, set(), ()),
}


@pytest.mark.parametrize('case', CASES)
def test_only_chosen_stages_move_and_the_others_are_bit_equal(case, ds):
  changes, stages, parts = CASES[case]
  t = tunable.tuning(**changes)
  before, now, state = after(t, tunable.resolved(**changes), ds)
  want = {f'params/{s}/{part}' for s in stages for part in parts}
  assert moved(before, now) == want
  head, _ = start(t)
  assert (state.params['head']['M'] != head['head']['M']).any()
  # Nothing is spent on what stays: neither gradients nor moments.
  assert set(state.params['net']) == want


def test_low_rank_additions_have_their_rank(ds):
  config = {'tune': 'lora', 'lora__rank': 1}
  before, now, _ = after(
    tunable.tuning(**config), tunable.resolved(**config), ds
  )
  for stage in tunable.STAGES:
    name = f'params/{stage}/kernel'
    added = np.linalg.svd(now[name] - before[name], compute_uv=False)
    assert added[0] > 1e-4 > 1e-3 * added[0] > added[1]


@pytest.mark.parametrize('tune', finetune.TUNE)
def test_without_a_step_logits_are_those_of_the_head_on_frozen_features(
  tune, ds
):
  t = tunable.tuning(tune=tune, grid=2, layers=('one', 'three'))
  params, extra = start(t)
  images = ds.images[:5]
  found = finetune.logits(t, finetune.frozen(t, params, extra), images, None, 0)
  encoder = tunable.encoder()
  taps = encoder.method.features(encoder.variables, images, None, 0)
  features = np.concatenate(
    [
      np.asarray(taps[n]).reshape(5, 2, 2, 2, 2, -1).mean((2, 4)).reshape(5, -1)
      for n in ('one', 'three')
    ],
    axis=1,
  )
  x = (features - np.asarray(extra['shift'])) * np.asarray(extra['scale'])
  want = x @ np.asarray(params['head']['M']).T
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


def test_layerwise_rates_are_those_of_a_loop():
  t = tunable.tuning(layer_decay=0.5)
  params, _ = start(t)
  rates = finetune.rates(t, params)
  assert rates['head'] == {'M': 1.0, 'M_bias': 1.0}
  want = {'one': 0.125, 'two': 0.25, 'three': 0.5}
  for name, rate in rates['net'].items():
    assert rate == want[name.split('/')[1]]

  fields = tunable.get_config(optim__clip_norm=0.0).optim
  tx = optim.make_optimizer(fields, 10, lambda p: finetune.rates(t, p))
  rng = np.random.default_rng(0)
  state, by_hand = tx.init(params), {}
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    zero = np.zeros(x.shape)
    by_hand[jax.tree_util.keystr(path)] = [
      np.asarray(x, np.float64),
      zero,
      zero,
    ]
  flat_rates = {
    jax.tree_util.keystr(path): rate
    for path, rate in jax.tree_util.tree_leaves_with_path(rates)
  }
  schedule = optim.make_schedule(fields, 10)
  for i in range(4):
    grads = jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32), params
    )
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
      name = jax.tree_util.keystr(path)
      w, m, v = by_hand[name]
      m = fields.b1 * m + (1 - fields.b1) * g
      v = fields.b2 * v + (1 - fields.b2) * g**2
      adam = m / (1 - fields.b1 ** (i + 1))
      adam = adam / (np.sqrt(v / (1 - fields.b2 ** (i + 1))) + 1e-8)
      decay = fields.weight_decay * (g.ndim > 1)
      lr = float(schedule(i)) * flat_rates[name]
      by_hand[name] = [w - lr * (adam + decay * w), m, v]
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    want = by_hand[jax.tree_util.keystr(path)][0]
    np.testing.assert_allclose(x, want, rtol=2e-4, atol=1e-6)


# A leaf of each stage, and one that no stage has.
ENCODERS = {
  'ddpm': (
    {'time1/kernel': 'down0_0', 'down1_0/res/conv1/kernel': 'down1_0'},
    'up0_0/res/conv1/kernel',
  ),
  'vit': ({'patches/kernel': 'block0'}, 'pixels/kernel'),
  'mae': (
    {'encoder/block1/up/kernel': 'block1', 'encoder/norm/scale': 'cls'},
    'decoder/embed/kernel',
  ),
  'moco': (
    {'online/encoder/stem/kernel': 'stage1'},
    'stats/encoder/stem_norm/mean',
  ),
  'byol': (
    {'online/encoder/stage2_0/conv1/kernel': 'stage2'},
    'predictor/hidden/kernel',
  ),
  'clip': ({'positions': 'block0', 'post_norm/scale': 'pooled'}, ''),
  'supervised': (
    {'params/stage3_0/conv2/kernel': 'stage3'},
    'stats/stem_norm/var',
  ),
}


def config_of(name, **changes):
  """The config of a run on the smallest encoder of a method."""
  if name in ('ddpm', 'vit'):
    base = pretrain.get_config({'ddpm': 'test', 'vit': 'vit_test'}[name])
  else:
    base = baselines.get_config(f'{name},test')
  config = tunable.resolved(**changes).copy_and_resolve_references().unlock()
  config.base = base
  return config.lock()


@pytest.mark.slow
@pytest.mark.parametrize('name', ENCODERS)
def test_encoders_of_all_methods_are_trained_on(name, ds):
  config = config_of(name, tune='last', views='mri', optim__warmup_steps=0)
  method = METHODS['finetune'](config, 16, 1)
  t = finetune.tuning(METHODS, config, 16, 1)
  tx = optim.make_optimizer(config.optim, 10, method.rates)
  state = jax.jit(lambda k: make_state(method, tx, k))(jax.random.key(0))
  before = t.leaves(method.frozen(state.params, state.extra)['net'])
  state, metrics = jax.jit(make_step(method, tx))(
    state, tunable.batch(ds), jax.random.key(1)
  )
  assert np.isfinite(metrics['loss'])
  now = t.leaves(method.frozen(state.params, state.extra)['net'])
  found = moved(before, now)
  assert found
  assert {t.stages[t.stage[leaf]] for leaf in found} == {t.stages[-1]}


@pytest.mark.parametrize('name', ENCODERS)
def test_a_weight_is_of_the_first_layer_that_depends_on_it(name):
  config = config_of(name)
  t = finetune.tuning(METHODS, config, 16, 1)
  want, none = ENCODERS[name]
  for leaf, stage in want.items():
    assert t.stages[t.stage[leaf]] == stage
  assert none not in t.stage
  assert none in t.shapes or not none
  reader = make_method(config.base, 16, 1)
  order = [reader.layers.index(stage) for stage in t.stages]
  assert order == sorted(order)
  assert t.stages[-1] == t.layers[0] == (reader.output or reader.layers[-1])


WRONG = {
  'stage': ({'tune': 'last', 'from_stage': 'four'}, 'from_stage'),
  'stage of full': ({'from_stage': 'two'}, 'tune=last'),
  'no matrix': ({'tune': 'lora', 'from_stage': 'head'}, 'from_stage'),
  'rank': ({'tune': 'lora', 'lora__rank': -1}, 'lora.rank'),
  'way': ({'tune': 'half'}, 'tune'),
  'layer': ({'layers': ('four',)}, 'layers'),
  'decay': ({'layer_decay': 0.0}, 'layer_decay'),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_settings_are_told_in_one_line_with_their_flag(case):
  changes, flag = WRONG[case]
  with pytest.raises(ValueError, match=re.escape(f'--config.{flag}')) as e:
    tunable.tuning(**changes)
  assert '\n' not in str(e.value)


def test_it_stops_when_so_many_evaluations_brought_nothing_better():
  losses = {0: 1.0, 4: 0.7, 8: 0.8, 12: 0.7, 16: 0.9}
  assert stale(losses, 3)
  assert not stale(losses, 4)
  assert not stale(losses, 0)
  assert not stale({}, 1)

"""The queue of keys, and contrast in the network that denoises."""

import shutil
from typing import NamedTuple

from fakes import gradient_flops
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest
from spawn import phantom
from spawn import state as state_of

from configs import baselines
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.generate import sample
from micdiffrep_jax.methods import ddpm, ddpm_contrast, moco
from micdiffrep_jax.methods import queue as queues
from micdiffrep_jax.methods.recipe import Recipe
from micdiffrep_jax.pretrain import train


def unit_rows(n, d, seed):
  x = np.random.default_rng(seed).normal(size=(n, d))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def config(name='ddpm_contrast', **changes):
  c = baselines.get_config(f'{name},test')
  c.update_from_flattened_dict(changes)
  return c


def batch(b=16, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (b, 16, 16, 1)).astype(np.uint8)
  return {'image': images, 'group': np.arange(b, dtype=np.int32)}


@pytest.fixture(scope='module')
def method():
  return ddpm_contrast.make(config(), 16, 1)


@pytest.fixture(scope='module')
def state(method):
  return jax.jit(method.init)(jax.random.key(0))


@pytest.fixture(scope='module')
def loss(method):
  return jax.jit(method.loss)


# The queue.


def test_info_nce_is_the_cross_entropy_of_the_own_key():
  q, k, queue = unit_rows(3, 4, 0), unit_rows(3, 4, 1), unit_rows(6, 4, 2)
  left_out = np.random.default_rng(3).random((3, 6)) < 0.5
  for mask in (None, left_out):
    found = queues.info_nce(q, k, queue, 0.2, mask)
    for i in range(3):
      own = np.exp(float(q[i] @ k[i]) / 0.2)
      others = sum(
        np.exp(float(q[i] @ row) / 0.2)
        for j, row in enumerate(queue)
        if mask is None or not mask[i, j]
      )
      np.testing.assert_allclose(
        found[i], -np.log(own / (own + others)), rtol=1e-5
      )


def masked(rows, groups, mask=True):
  queue = queues.Queue('moco', len(rows), 4, 0.2, mask)
  held = {'queue': rows, 'queue_group': np.array(groups)}
  own = {'group': np.array([7, 8, 9])}
  return queue.compare(held, unit_rows(3, 4, 0), unit_rows(3, 4, 1), own)


def test_groups_that_all_differ_change_nothing():
  rows = unit_rows(5, 4, 2)
  np.testing.assert_array_equal(
    masked(rows, [1, 2, 3, 4, -1]), masked(rows, [1, 2, 3, 4, -1], False)
  )


def test_a_key_of_the_own_group_changes_nothing_whatever_it_is():
  rows = unit_rows(5, 4, 2)
  with_twin = masked(rows, [1, 8, 3, 4, 5])
  other = rows.copy()
  other[1] = unit_rows(1, 4, 9)
  without = masked(other, [1, 8, 3, 4, 5])
  np.testing.assert_array_equal(with_twin[1], without[1])
  # To the others it is a negative like any.
  assert (np.abs(with_twin - without) > 1e-4).tolist() == [True, False, True]


def test_a_query_whose_keys_are_all_its_own_has_no_loss_and_a_gradient():
  rows, own = unit_rows(2, 4, 2), {'group': np.array([7])}
  queue = queues.Queue('moco', 2, 4, 0.2, True)
  held = {'queue': rows, 'queue_group': np.array([7, 7])}
  value, gradient = jax.value_and_grad(
    lambda q: queue.compare(held, q, unit_rows(1, 4, 1), own)[0]
  )(unit_rows(1, 4, 0))
  assert float(value) == pytest.approx(0, abs=1e-6)
  assert np.isfinite(gradient).all()


def test_the_queue_drops_its_oldest_keys_and_wraps():
  queue = queues.Queue('moco', 6, 1, 0.2, True)
  held = queue.init(jax.random.key(0))
  assert held['queue_group'].tolist() == [-1] * 6
  held['queue'], kept = jnp.zeros((6, 1)), [0.0] * 6
  for i in range(1, 8):
    keys = np.array([[2.0 * i], [2.0 * i + 1]], np.float32)
    own = {'group': 10 * keys[:, 0].astype(np.int32)}
    held = held | queue.push(held, keys, own)
    kept = (kept + keys[:, 0].tolist())[-6:]
    # Oldest first from the head on; groups lie where their keys do.
    rolled = np.roll(np.asarray(held['queue'])[:, 0], -int(held['head']))
    assert rolled.tolist() == kept
    if i >= 3:
      groups = np.asarray(held['queue_group'])
      np.testing.assert_array_equal(groups, 10 * held['queue'][:, 0])


def test_gather_undoes_scatter_and_keys_meet_strangers():
  rows = np.arange(32)
  dealt = np.asarray(queues.scatter(jnp.asarray(rows), 4))
  np.testing.assert_array_equal(queues.gather(jnp.asarray(dealt), 4), rows)
  for part in dealt.reshape(4, 8):
    # As many of each group of the queries: 8 rows, 4 groups.
    assert np.bincount(part // 8, minlength=4).tolist() == [2, 2, 2, 2]


def test_groups_are_those_of_the_manifest_and_moco_may_ignore_them(method):
  ds = data.open_dataset('phantom:size_px=16,patients=60')
  groups = method.side(ds)['group']
  assert (groups.dtype, groups.shape) == (np.int32, (len(ds.images),))
  told = ds.manifest['group']
  assert len(set(zip(groups.tolist(), told.tolist()))) == len(set(told))
  assert len(set(groups.tolist())) == len(set(told))
  assert method.row['group'].shape == ()
  plain = moco.make(baselines.get_config('moco,test'), 16, 1)
  assert plain.side is None
  assert not plain.row
  asked = baselines.get_config('moco,test')
  asked.moco.mask_groups = True
  assert set(moco.make(asked, 16, 1).side(ds)) == {'group'}


def test_a_run_from_before_the_mask_loads_without_it():
  old = baselines.get_config('moco,test').to_dict()
  del old['moco']['mask_groups']
  assert encoders.config_from_json(old).moco.mask_groups is False


# Contrast in the network that denoises.


def test_a_share_of_the_batch_is_drawn_at_little_noise():
  class _Fake(NamedTuple):
    fields: ConfigDict
    recipe: Recipe
    d: ddpm.Denoiser

  c = config(**{'contrast.t_limit': 50, 'contrast.share': 0.25})
  fake = _Fake(c.contrast, Recipe(), ddpm.denoiser(c, 16, 1))
  t = np.asarray(ddpm_contrast.draw_timesteps(fake, jax.random.key(0), 400))
  assert (t[:100] < 50).all()
  # 300 draws of [0, 1000): a standard error of 289 / sqrt(300) = 17.
  assert abs(t[100:].mean() - 500) < 70
  assert (t.min() >= 0, t.max() < 1000) == (True, True)


def test_what_was_done_to_the_first_view_is_told(state):
  made = ddpm_contrast.make(config(**{'recipe.tell_augment': True}), 16, 1)
  start = jax.eval_shape(made.init, jax.random.key(0))
  assert 'told' in start[0]['net']
  assert 'told' not in state[0]['net']
  jax.eval_shape(made.loss, *start, batch(), jax.random.key(1))


def test_averages_stand_side_by_side():
  x = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
  found = ddpm_contrast.pooled({'a': x, 'b': -x}, ('a', 'b'))
  np.testing.assert_allclose(found, [[3, 4, -3, -4]])


def test_the_loss_is_the_sum_of_both(loss, state):
  params, extra = state
  at_start, (_, metrics) = loss(params, extra, batch(), jax.random.key(1))
  # The contrast warms up from nothing.
  np.testing.assert_allclose(at_start, metrics['denoise'], rtol=1e-6)
  warm = {**extra, 'warm': jnp.float32(1)}
  value, (_, metrics) = loss(params, warm, batch(), jax.random.key(1))
  np.testing.assert_allclose(
    value, metrics['denoise'] + 0.2 * metrics['contrast'], rtol=1e-5
  )
  # It outputs zero, so its error is the variance of the noise.
  assert abs(float(metrics['denoise']) - 1) < 0.1
  # Among 33 keys of which none is known.
  assert 0.5 * np.log(33) < float(metrics['contrast']) < 2 * np.log(33)
  assert 0 < float(metrics['feature_std']) < 1


def test_the_warm_up_ends_after_its_steps(method, state):
  after = jax.jit(method.after)
  params, extra = state
  warm = [float(after(params, extra, step)['warm']) for step in (0, 1, 4, 9)]
  np.testing.assert_allclose(warm, [0.2, 0.4, 1, 1], rtol=1e-6)


def test_keys_come_from_the_averages_not_from_what_is_trained(loss, state):
  params, extra = state

  def pushed(params, extra):
    return loss(params, extra, batch(), jax.random.key(1))[1][0]

  before = pushed(params, extra)
  np.testing.assert_allclose(
    np.linalg.norm(before['queue'], axis=1), 1, rtol=1e-5
  )
  assert before['queue_group'][:16].tolist() == list(range(16))

  def moved(tree):
    return jax.tree.map(lambda x: x + np.float32(0.1), jax.device_get(tree))

  same = pushed(moved(params), extra)
  np.testing.assert_array_equal(same['queue'], before['queue'])
  for name in ('ema', 'projector'):
    other = pushed(params, {**extra, name: moved(extra[name])})
    assert np.abs(other['queue'] - before['queue']).max() > 1e-3, name


def test_images_with_much_noise_do_not_enter_the_queries(loss, state):
  def spread(dark):
    one = batch()
    one['image'][dark] = 0
    metrics = loss(*state, one, jax.random.key(1))[1][1]
    return [float(metrics[name]) for name in ('feature_std', 'top_share')]

  want = spread([])
  # Half of the batch, the first, has little noise.
  assert spread(slice(8, 16)) == want
  assert spread(slice(0, 8)) != want


def test_images_of_a_group_are_no_negatives(loss, state):
  params, extra = state
  crowd = {**extra, 'queue_group': jnp.zeros(32, jnp.int32)}

  def contrast(extra, **changes):
    args = params, extra, {**batch(), **changes}, jax.random.key(1)
    return float(loss(*args)[1][1]['contrast'])

  # Image 0 has no negative left, then none has.
  assert contrast(crowd) < contrast(extra)
  alike = np.zeros(16, np.int32)
  assert contrast(crowd, group=alike) == pytest.approx(0, abs=1e-5)


def test_features_samples_and_validation_are_those_of_a_ddpm(method, state):
  base = ddpm.make(config(), 16, 1)
  assert method.layers == base.layers
  assert (method.output, method.timesteps) == (base.output, base.timesteps)
  variables = method.frozen(*state)
  assert jax.tree.structure(variables) == jax.tree.structure(
    jax.eval_shape(base.init, jax.random.key(0))[0]
  )
  for name in ('features', 'validate', 'sample'):
    assert getattr(method, name).func is getattr(base, name).func
  assert method.facts == {'contrast': True}


def flops(c):
  return gradient_flops(ddpm_contrast.make(c, 16, 1), batch())


@pytest.mark.slow
def test_what_is_denoised_is_the_first_view():
  # Asked for x0, a network that outputs zero is off by the view itself.
  changes = {'diffusion.target': 'x0', 'augment.flip': 1.0}
  for policy in ('', 'mri'):
    made = ddpm_contrast.make(config(views=policy, **changes), 16, 1)
    start = jax.jit(made.init)(jax.random.key(0))
    one, key = batch(), jax.random.key(1)
    _, (_, metrics) = jax.jit(made.loss)(*start, one, key)
    want = np.mean((one['image'] / 127.5 - 1) ** 2)
    alike = float(metrics['denoise']) == pytest.approx(want, rel=1e-5)
    assert alike == (policy == '')


@pytest.mark.slow
def test_contrast_alone_computes_no_decoder():
  alone = config('contrast_alone')
  assert ddpm_contrast.make(alone, 16, 1).facts['contrast_alone'] is True
  made = ddpm_contrast.make(alone, 16, 1)
  assert made.sample is None
  assert made.layers == ('down0_0', 'down1_0', 'mid')
  assert 'denoise' not in made.metrics
  # Whether the compared are denoised is no question then.
  spared = config('contrast_alone', **{'contrast.denoise_compared': False})
  assert flops(spared) == flops(alone)
  both = config('contrast_alone', **{'contrast.denoise': 1.0})
  # Nor its gradient: of the UNet more than half is the way up.
  assert flops(alone) < 0.5 * flops(both)


def test_images_that_are_compared_may_be_spared_the_way_back_up(state):
  # Asked for x0, a network that outputs zero is off by the picture itself.
  changes = {'diffusion.target': 'x0', 'contrast.denoise_compared': False}
  made = ddpm_contrast.make(config(**changes), 16, 1)
  loss = jax.jit(made.loss)

  def metrics(dark):
    one = batch()
    one['image'][dark] = 0
    return one, loss(*state, one, jax.random.key(1))[1][1]

  one, want = metrics([])
  # Half of the batch, the first, is compared; the rest is shown as it is.
  plain = np.mean((one['image'][8:] / 127.5 - 1) ** 2)
  assert float(want['denoise']) == pytest.approx(plain, rel=1e-5)
  others = metrics(slice(8, 16))[1]
  assert float(others['feature_std']) == float(want['feature_std'])
  compared = metrics(slice(0, 8))[1]
  assert float(compared['denoise']) == float(want['denoise'])
  assert float(compared['feature_std']) != float(want['feature_std'])


@pytest.mark.slow
def test_an_image_that_is_only_compared_costs_no_decoder():
  def spared(share):
    changes = {'contrast.share': share, 'contrast.denoise_compared': False}
    return flops(config(**changes))

  assert spared(0.75) < spared(0.5) < flops(config(**{'contrast.share': 0.5}))


def test_runs_from_before_any_were_spared_denoise_all():
  old = config().to_dict()
  del old['contrast']['denoise_compared']
  assert encoders.config_from_json(old).to_dict() == config().to_dict()


@pytest.mark.parametrize('norm', ['', 'layer'])
def test_the_projector_may_have_another_norm(norm):
  made = ddpm_contrast.make(config(**{'contrast.norm': norm}), 16, 1)
  params, extra = jax.eval_shape(made.init, jax.random.key(0))
  assert ('norm' in params['projector']) == bool(norm)
  assert extra['stats'] == {}
  _, (after, _) = jax.eval_shape(
    made.loss, params, extra, batch(), jax.random.key(0)
  )
  assert jax.tree.structure(after) == jax.tree.structure(extra)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'contrast.queue': 40}, '--config.contrast.queue'),
    ({'contrast.temperature': 0.0}, '--config.contrast.temperature'),
    ({'contrast.features': 0}, '--config.contrast.features'),
    ({'contrast.weight': 0.0}, '--config.contrast.weight'),
    ({'contrast.denoise': -1.0}, '--config.contrast.denoise'),
    (
      {'contrast.denoise_compared': False, 'contrast.share': 1.0},
      '--config.contrast.share',
    ),
    ({'contrast.share': 0.0}, '--config.contrast.share'),
    ({'contrast.share': 1.5}, '--config.contrast.share'),
    ({'contrast.t_limit': 1001}, '--config.contrast.t_limit'),
    ({'contrast.t_key': 0}, '--config.contrast.t_key'),
    ({'contrast.warmup_steps': -1}, '--config.contrast.warmup_steps'),
    ({'contrast.taps': ('middle',)}, "'mid'.*--config.contrast.taps"),
    ({'contrast.taps': ('up0_0',)}, '--config.contrast.taps'),
    ({'contrast.norm': 'group'}, '--config.contrast.norm'),
    ({'contrast.groups': 1}, '--config.contrast.groups'),
    ({'accumulate': 8}, '--config.contrast.groups'),
    ({'recipe.crop_px': 8}, '--config.recipe.crop_px=0'),
    ({'contrast.share': 0.4}, '7 of them.*--config.contrast.share'),
    ({'views': 'papers'}, '--config.views'),
  ],
)
def test_bad_settings_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    ddpm_contrast.make(config(**change), 16, 1)


def test_a_queue_needs_four_times_its_images(method):
  method.check(128)
  with pytest.raises(ValueError, match='--config.contrast.queue'):
    method.check(127)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ddpm_contrast', 'contrast_alone'])
def test_a_resumed_run_is_the_whole_one(name, tmp_path):
  c = config(
    name,
    **{
      'data.path': phantom(),
      'model.multipliers': (1,),
      'model.attention': (),
      'steps': 4,
      'log_every': 1,
      'save_every': 2,
      'keep_every': 2,
      'eval_every': 4,
      'monitor.probe_images': 0,
      'monitor.samples': 0,
    },
  ).lock()
  whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
  results = train.run(c, str(whole))
  assert results['dataset']['contrast'] is True
  assert ('val_loss' in results) == (name == 'ddpm_contrast')
  assert results['feature_rank'] > 1
  shutil.copytree(whole, resumed)
  shutil.rmtree(resumed / 'checkpoints' / '4')
  train.run(c, str(resumed))
  want, have = state_of(whole, 4), state_of(resumed, 4)
  assert want.keys() == have.keys()
  assert any('queue_group' in k for k in want)
  for k in want:
    np.testing.assert_array_equal(have[k], want[k], err_msg=k)
  encoder = encoders.load_encoder(str(whole))
  assert encoder.info.facts == encoder.method.facts
  may_draw = encoder.method.sample is not None
  with pytest.raises(ValueError, match='images=0' if may_draw else 'decoder'):
    sample.check(ConfigDict({'checkpoint': 'run', 'images': 0}), encoder)

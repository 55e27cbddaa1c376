import functools
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_bundle

from configs import pretrain
from micdiffrep_jax.diffusion.process import draw_t, make_diffusion, q_sample
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.methods import ddpm, recipe, views
from micdiffrep_jax.models import unet
from micdiffrep_jax.models.unet import UNet, decoder_taps, encoder_taps

SIZE = tiny_bundle.SIZE
PROCESS = make_diffusion('cosine', 50, 'v')


def config(**fields):
  found = tiny_bundle.config()
  found.recipe.update(fields)
  return found


def pictures(b=4, size=32):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.uniform(-0.9, 0.9, (b, size, size, 1)), jnp.float32)


def keys():
  return tuple(jax.random.split(jax.random.key(0), 3))


@functools.cache
def shown(weighting='none', **fields):
  """Of pictures(), as numpy arrays."""
  parts = recipe.Recipe(**fields)
  show = functools.partial(recipe.show, parts, PROCESS, weighting)
  return jax.device_get(jax.jit(show)(pictures(), {}, keys()))


def noise():
  return jax.random.normal(keys()[1], pictures().shape)


def numpy_noised(x0, t, eps):
  """x_t and v of one level a picture, in float64."""
  alpha_bar = PROCESS.alpha_bar[np.asarray(t)].reshape(-1, 1, 1, 1)
  alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
  x0, eps = np.asarray(x0, np.float64), np.asarray(eps, np.float64)
  return alpha * x0 + sigma * eps, alpha * eps - sigma * x0


# All off.


def test_the_presets_have_every_part_and_all_are_off():
  for preset in ('paper', 'small', 'tiny', 'test'):
    fields = pretrain.get_config(preset).recipe.to_dict()
    assert fields == recipe.Recipe()._asdict()
  assert recipe.Recipe(density='beta').network_parts() == ()
  assert recipe.Recipe(levels_px=8).network_parts() == ('levels_px',)
  assert recipe.Recipe().network_fields() == {}


def test_a_stored_config_without_the_recipe_has_it_off():
  found = tiny_bundle.config().to_dict()
  del found['recipe']
  back = encoders.config_from_json(json.loads(json.dumps(found)))
  assert back.recipe.to_dict() == recipe.Recipe()._asdict()
  found['recipe'] = {'blocks': [1, 2]}
  back = encoders.config_from_json(json.loads(json.dumps(found)))
  assert back.recipe.blocks == (1, 2)
  assert back.recipe.crop_px == 0


@pytest.fixture(scope='module')
def plain():
  """The method with all parts off, and weights that are zero nowhere."""
  method = ddpm.make(config(), SIZE, 1)
  return method, tiny_bundle.encoder().variables


BATCH = {'image': tiny_bundle.images(4)}


def key():
  return jax.random.key(5)


@pytest.fixture(scope='module')
def plain_loss(plain):
  method, params = plain
  extra = {'ema': params}
  return float(jax.jit(method.loss)(params, extra, BATCH, key())[0])


def test_with_all_off_the_loss_is_the_paper_s(plain, plain_loss):
  _, params = plain
  d = ddpm.denoiser(config(), SIZE, 1)
  k_augment, k_t, k_eps, _ = jax.random.split(key(), 4)
  x0 = jnp.asarray(BATCH['image'] / 127.5 - 1, jnp.float32)
  x0 = views.augment(k_augment, x0, config().augment)
  t = jax.random.randint(k_t, (4,), 0, 50)
  eps = jax.random.normal(k_eps, x0.shape)
  output, _ = jax.jit(d.apply)(params, q_sample(d.process, x0, t, eps), t)
  wanted = np.mean(np.square(np.asarray(output) - np.asarray(eps)))
  np.testing.assert_allclose(plain_loss, wanted, rtol=1e-5)


X, T = pictures(2, SIZE), jnp.array([3, 40])


@pytest.fixture(scope='module')
def bare_taps(plain):
  """Taps of X at T, of the network that is told nothing more."""
  return jax.jit(ddpm.denoiser(config(), SIZE, 1).apply)(plain[1], X, T)[1]


# What was done to a picture.


def test_an_augmentation_tells_what_it_did():
  x, fields = pictures(32, 16), dict.fromkeys(views.LIMITS, 0.0)

  def changed(**some):
    augment = config().augment
    augment.update({**fields, **some})
    drawn = functools.partial(views.augmented, config=augment)
    return jax.device_get(jax.jit(drawn)(jax.random.key(3), x))

  out, told = changed(flip=0.5)
  flipped = (out == np.asarray(x)[:, :, ::-1]).all(axis=(1, 2, 3))
  np.testing.assert_array_equal(told[:, 0], flipped)
  assert not told[:, 1:].any()
  assert 4 < flipped.sum() < 28

  out, told = changed(brightness=0.01, contrast=0.05)
  gain, lift = 1 + 0.05 * told[:, 6], 2 * 0.01 * told[:, 5]
  wanted = (np.asarray(x) + 1) * gain[:, None, None, None] - 1
  wanted += lift[:, None, None, None]
  np.testing.assert_allclose(out, wanted, atol=1e-5)
  assert not told[:, :5].any()
  assert 0.5 < np.abs(told[:, 5:]).max() <= 1

  out, told = changed(shift=0.25)
  offset = told[:, 3:5] * 0.25 * 16
  wanted = jax.vmap(lambda x, o: views.affine(x, jnp.eye(2), o))(x, offset)
  np.testing.assert_allclose(out, wanted, atol=1e-5)
  assert not told[:, [0, 1, 2, 5, 6]].any()


def test_telling_changes_nothing_until_it_is_learnt(plain, plain_loss):
  _, params = plain
  method = ddpm.make(config(tell_augment=True), SIZE, 1)
  shapes = jax.eval_shape(method.init, jax.random.key(0))[0]
  assert shapes['told']['kernel'].shape == (views.TOLD, 4)
  loss = jax.jit(lambda params: method.loss(params, {}, BATCH, key())[0])

  def with_row(row, value):
    kernel = jnp.zeros((views.TOLD, 4)).at[row].set(value)
    return float(loss({**params, 'told': {'kernel': kernel}}))

  np.testing.assert_allclose(with_row(0, 0.0), plain_loss, rtol=1e-6)
  # Flips alone are on: only their row says anything.
  np.testing.assert_allclose(with_row(1, 9.0), plain_loss, rtol=1e-6)
  assert abs(with_row(0, 9.0) / plain_loss - 1) > 1e-4


# Which steps are drawn.


def test_drawn_steps_follow_their_density():
  n, T = 200_000, PROCESS.timesteps
  edges = np.arange(1, T)
  log_sigma = (np.log1p(-PROCESS.alpha_bar) - np.log(PROCESS.alpha_bar)) / 2
  middles = (log_sigma[1:] + log_sigma[:-1]) / 2
  mean, std = -1.0, 0.8
  below = {
    'uniform': edges / T,
    'beta': 1 - (1 - edges / T) ** 2,
    'lognormal': [
      (1 + math.erf((m - mean) / std / math.sqrt(2))) / 2 for m in middles
    ],
  }
  for name, wanted in below.items():
    t = np.asarray(draw_t(PROCESS, jax.random.key(1), (n,), name, mean, std))
    assert t.dtype == np.int32
    assert t.min() >= 0
    found = np.bincount(t, minlength=T).cumsum() / n
    assert found[-1] == 1
    # Kolmogorov's bound: beyond 1.95 / sqrt(n) once in a thousand.
    assert np.abs(found[:-1] - wanted).max() < 1.95 / math.sqrt(n), name


# Half of the batch partly hidden.


def test_every_other_picture_is_hidden_in_three_patches_of_four():
  s = shown(blank_px=8)
  blank = s.told['blank']
  patches = blank.reshape(4, 4, 8, 4, 8).mean(axis=(2, 4))
  assert set(np.unique(patches)) == {0.0, 1.0}
  np.testing.assert_array_equal(patches.sum(axis=(1, 2)), [0, 12] * 2)
  assert (patches[1] != patches[3]).any()
  assert not s.t[1::2].any()
  assert s.t[::2].all()  # as drawn with these keys
  assert not s.x_t[blank == 1].any()
  x_t, target = numpy_noised(pictures(), s.t, noise())
  seen = blank == 0
  np.testing.assert_allclose(s.x_t[seen], x_t[seen], atol=1e-5)
  np.testing.assert_allclose(s.target[::2], target[::2], atol=1e-5)


@pytest.mark.parametrize('weighting', ['none', 'min_snr'])
def test_hidden_patches_alone_count_where_there_are_any(weighting):
  s = shown(weighting, blank_px=8)
  blank = s.told['blank'][..., None]
  right = np.where(blank, np.asarray(pictures()), s.target)
  assert float(s.loss(right)) < 1e-12
  # Errors of 3 at what is seen of half-hidden pictures, of 2 at what is not.
  partly = np.array([0, 1, 0, 1], bool).reshape(4, 1, 1, 1)
  wrong = right + 3 * (partly & (blank == 0)) + 2 * blank
  # 2 squared in half of the pictures.
  np.testing.assert_allclose(s.loss(wrong), 2.0, rtol=1e-5)


def test_one_picture_at_a_time_cannot_be_half_hidden():
  parts, x0 = recipe.Recipe(blank_px=8), pictures(1)
  with pytest.raises(ValueError, match='--config.accumulate'):
    recipe.show(parts, PROCESS, 'none', x0, {}, keys())


# Two levels in a picture.


def test_each_block_has_the_noise_of_its_level():
  s = shown(levels_px=8)
  second = s.told['second']
  blocks = second.reshape(4, 4, 8, 4, 8)
  np.testing.assert_array_equal(blocks.min((2, 4)), blocks.max((2, 4)))
  assert 0.2 < second.mean() < 0.8
  assert s.t.shape == (4, 2)
  assert (s.t[:, 0] != s.t[:, 1]).any()
  for level in (0, 1):
    x_t, target = numpy_noised(pictures(), s.t[:, level], noise())
    at = second == level
    np.testing.assert_allclose(s.x_t[at], x_t[at], atol=1e-5)
    np.testing.assert_allclose(s.target[at], target[at], atol=1e-5)
  np.testing.assert_allclose(s.loss(s.target + 2), 4.0, rtol=1e-5)


def test_weights_follow_the_level_of_each_pixel():
  s = shown('min_snr', levels_px=8)
  alpha_bar = PROCESS.alpha_bar
  snr = alpha_bar / (1 - alpha_bar)
  each = (np.minimum(snr, 5) / (snr + 1))[s.t][:, :, None, None]
  second = s.told['second']
  wanted = np.where(second, each[:, 1], each[:, 0])
  np.testing.assert_allclose(s.weight, wanted, rtol=1e-5)
  np.testing.assert_allclose(s.loss(s.target + 1), wanted.mean(), rtol=1e-5)


def test_a_cell_is_told_the_share_of_its_pixels():
  rng = np.random.default_rng(0)
  second = (rng.uniform(size=(2, 8, 8)) < 0.5).astype(np.float32)
  shift = rng.normal(size=(2, 2, 3)).astype(np.float32)
  found = unet._spread(shift, second, np.zeros((2, 4, 4, 3), np.float32))
  for i, row, column in np.ndindex(2, 4, 4):
    share = second[i, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean()
    wanted = (1 - share) * shift[i, 0] + share * shift[i, 1]
    np.testing.assert_allclose(found[i, row, column], wanted, rtol=1e-5)


def test_two_equal_levels_are_one(plain, bare_taps):
  d = ddpm.denoiser(config(), SIZE, 1)
  second = jnp.zeros((2, SIZE, SIZE)).at[:, :8].set(1.0)

  @jax.jit
  def taps(t):
    variables = {'params': plain[1]}
    return d.model.apply(variables, X, t, second=second)[1]

  two = taps(jnp.stack([T, T], axis=1))
  other = taps(jnp.stack([T, T + 9], axis=1))
  for name, tap in bare_taps.items():
    np.testing.assert_allclose(two[name], tap, atol=1e-4, err_msg=name)
    assert not np.allclose(other[name], tap, atol=1e-3), name


# A vector for the way up.


def test_its_own_middle_guides_the_way_up_alone(plain, bare_taps):
  d = ddpm.denoiser(config(self_condition='own'), SIZE, 1)
  apply = jax.jit(d.apply)
  width = plain[1]['time2']['bias'].shape[0]

  def taps(value):
    kernel = jnp.full((4, width), value)
    return apply({**plain[1], 'guide': {'kernel': kernel}}, X, T)[1]

  silent, loud = taps(0.0), taps(1.0)
  for name, tap in bare_taps.items():
    np.testing.assert_allclose(silent[name], tap, atol=1e-5)
    same = np.allclose(loud[name], tap, atol=1e-3)
    assert same == (name in encoder_taps(d.model)), name


def test_a_first_pass_guides_half_of_the_pictures():
  seen = {}

  def apply(variables, x_t, t, **told):
    seen.update(told, weights=variables['params'])
    return x_t, {'mid': jnp.repeat(x_t, 3, axis=-1)}

  d = ddpm.Denoiser(PROCESS, None, types.SimpleNamespace(apply=apply))
  x = pictures(8, 4)
  blank = jnp.arange(8.0)[:, None, None] * jnp.ones((8, 4, 4))
  told = recipe.Shown(x, jnp.zeros(8, int), {'blank': blank}, x, jnp.ones(8))
  found = ddpm._guided(d, 'mid', 'averaged', told)
  rows, others = np.array([0, 1, 4, 5]), np.array([2, 3, 6, 7])
  assert seen['weights'] == 'averaged'
  np.testing.assert_array_equal(seen['blank'][:, 0, 0], rows)
  guide = np.asarray(found.told['guide'])
  assert guide.shape == (8, 3)
  assert not guide[others].any()
  means = np.asarray(x).mean(axis=(1, 2, 3))[rows]
  for column in guide[rows].T:
    np.testing.assert_allclose(column, means, atol=1e-6)
  assert found.told['blank'] is blank


# Crops.


def test_a_crop_is_where_it_says():
  rows, columns = np.meshgrid(np.arange(12), np.arange(12), indexing='ij')
  # Pixel centres, from the middle of the image, in halves of it.
  image = np.stack([rows, columns], axis=-1) * 2 / 12 + 1 / 12 - 1
  x0 = jnp.asarray(np.repeat(image[None], 64, axis=0), jnp.float32)
  pieces, place = recipe.crop(jax.random.key(0), x0, 4)
  assert pieces.shape == (64, 4, 4, 2)
  assert (np.asarray(place)[:, 0] == 1).all()
  centres = np.asarray(pieces).mean(axis=(1, 2))
  np.testing.assert_allclose(place[:, 1:], centres, atol=1e-6)
  # All nine places along each side, from edge to edge.
  for axis in (1, 2):
    found = np.unique(np.round(np.asarray(place)[:, axis] * 12))
    np.testing.assert_array_equal(found, np.arange(-8, 9, 2))


def test_every_other_picture_is_a_crop_and_counts_as_one():
  x0 = jnp.ones((5, 16, 16, 1)) * jnp.arange(5.0)[:, None, None, None]
  told = {'told': jnp.arange(5.0)[:, None]}
  seen = {}

  def value(keys, x, told):
    # Pictures and what is told of them stay together.
    np.testing.assert_array_equal(x[:, 0, 0, 0], told['told'][:, 0])
    seen[x.shape[1]] = told['told'], jax.random.key_data(jnp.stack(keys))
    return jnp.mean(x)

  found = recipe.whole_and_crops(8, keys(), x0, told, value)
  np.testing.assert_allclose(found, 2.0)  # of all five, not of two halves
  (whole, first), (crops, second) = seen[16], seen[8]
  np.testing.assert_array_equal(whole[:, 0], [0, 2, 4])
  assert not whole[:, 1:].any()
  np.testing.assert_array_equal(crops[:, 0], [1, 3])
  assert (crops[:, 1] == 1).all()
  assert (first != second).any(axis=1).all()
  with pytest.raises(ValueError, match='--config.accumulate'):
    recipe.whole_and_crops(8, None, x0[:1], told, value)


def test_a_crop_has_attention_where_its_image_has_it():
  model = UNet(4, (1, 1), 1, (16,), 1, 2, size_px=16)
  t, key = jnp.zeros((1,), jnp.int32), jax.random.key(0)

  def parts(px):
    x = jnp.zeros((1, px, px, 1))
    return jax.eval_shape(model.init, key, x, t)['params']

  assert 'attention' in parts(16)['down0_0']
  assert 'attention' not in parts(16)['down1_0']
  assert jax.tree.map(lambda x: x.shape, parts(8)) == jax.tree.map(
    lambda x: x.shape, parts(16)
  )


# The network, and what is refused.


def test_levels_have_blocks_of_their_own():
  d = ddpm.denoiser(config(blocks=(1, 3)), SIZE, 1)
  down = ('down0_0', 'down1_0', 'down1_1', 'down1_2', 'mid')
  up = ('up1_0', 'up1_1', 'up1_2', 'up1_3', 'up0_0', 'up0_1')
  assert encoder_taps(d.model) == down
  assert decoder_taps(d.model) == up
  x, t = jnp.zeros((1, SIZE, SIZE, 1)), jnp.zeros((1,), jnp.int32)
  variables = jax.eval_shape(d.model.init, jax.random.key(0), x, t)
  taps = jax.eval_shape(d.model.apply, variables, x, t)[1]
  assert set(taps) == {*down, *up}
  same = ddpm.denoiser(config(blocks=(1, 1)), SIZE, 1)
  assert encoder_taps(same.model) == ('down0_0', 'down1_0', 'mid')


ALL = dict(
  tell_augment=True,
  blocks=(1, 2),
  density='lognormal',
  blank_px=4,
  levels_px=4,
  self_condition='first',
  crop_px=8,
)


def test_all_parts_at_once_fit_together_and_are_absent_from_features():
  method = ddpm.make(config(**ALL), SIZE, 1)
  key = jax.random.key(0)
  state = jax.eval_shape(method.init, key)
  assert state[0]['in']['kernel'].shape[2] == 4 * 4 * 2
  assert state[0]['told']['kernel'].shape == (views.TOLD + recipe.PLACE, 4)
  loss, _ = jax.eval_shape(method.loss, *state, BATCH, key)
  assert loss.shape == ()
  variables = jax.eval_shape(method.frozen, *state)
  keys = jax.random.split(key, 4)
  t = jnp.int32(3)
  images = BATCH['image']
  taps = jax.eval_shape(method.features, variables, images, keys, t)
  assert set(taps) == set(method.layers)
  drawn = jax.eval_shape(method.sample, variables, keys)
  assert drawn.shape == (4, SIZE, SIZE, 1)
  sums = jax.eval_shape(method.validate, variables, images, keys, jnp.ones(4))
  assert 'loss' in sums


@pytest.mark.slow
def test_all_parts_at_once_learn():
  method = ddpm.make(config(**ALL), SIZE, 1)
  params, extra = jax.jit(method.init)(jax.random.key(0))

  @jax.jit
  def step(params, key):
    grad_fn = jax.value_and_grad(method.loss, has_aux=True)
    (loss, _), grads = grad_fn(params, extra, BATCH, key)
    return loss, jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)

  losses = []
  for i in range(60):
    loss, params = step(params, jax.random.key(i))
    losses.append(float(loss))
  assert np.isfinite(losses).all()
  assert np.mean(losses[-20:]) < np.mean(losses[:20])
  for name in ('told', 'guide'):
    assert np.any(np.asarray(params[name]['kernel']) != 0), name


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'density': 'betas'}, "'beta'.*--config.recipe.density"),
    ({'density_std': 0.0}, '--config.recipe.density_std'),
    ({'self_condition': 'mine'}, '--config.recipe.self_condition'),
    ({'blocks': (1, 1, 2)}, 'one for each of 2 levels.*--config.recipe.blocks'),
    ({'blocks': (1, 0)}, '--config.recipe.blocks'),
    ({'blank_px': 5}, 'pictures of 16 px.*--config.recipe.blank_px'),
    ({'blank_px': 16}, '--config.recipe.blank_px'),
    ({'blank_px': -8}, '--config.recipe.blank_px'),
    ({'levels_px': 8, 'crop_px': 8}, 'of 8 px.*--config.recipe.levels_px'),
    ({'crop_px': 12}, 'multiple of 8 below the 16 px.*--config.recipe.crop_px'),
    ({'crop_px': 16}, '--config.recipe.crop_px'),
  ],
)
def test_fields_that_do_not_fit_are_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    ddpm.make(config(**fields), SIZE, 1)


def test_a_network_that_knows_no_part_is_not_given_one(monkeypatch):
  other = ddpm.BACKBONES['unet']._replace(recipe=('tell_augment',))
  monkeypatch.setitem(ddpm.BACKBONES, 'other', other)
  given = config(crop_px=8)
  given.model.name = 'other'
  with pytest.raises(ValueError, match="'other'.*--config.recipe.crop_px"):
    ddpm.make(given, SIZE, 1)

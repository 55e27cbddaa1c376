import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import baselines
from micdiffrep_jax.encoders import features
from micdiffrep_jax.methods import mae
from micdiffrep_jax.models import vit

SIZE, PATCH = 16, 4


def get_config(**changes):
  config = baselines.get_config('mae,test')
  config.update_from_flattened_dict(changes)
  return config.lock()


@pytest.fixture(scope='module')
def method():
  return mae.make(get_config(), SIZE, 1)


@pytest.fixture(scope='module')
def params(method):
  return jax.jit(method.init)(jax.random.key(0))[0]


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (6, SIZE, SIZE, 1)).astype(np.uint8)


def test_visible_and_hidden_patches_are_put_back_in_their_places():
  patches = np.arange(16, dtype=np.float32).reshape(1, 16, 1)
  keep, restore, hidden = mae.random_mask(jax.random.key(3), 16, 4)
  assert len(set(keep.tolist())) == 4
  assert sorted(restore.tolist()) == list(range(16))
  visible = vit.take(jnp.asarray(patches), keep[None])
  padded = jnp.concatenate([visible, jnp.full((1, 12, 1), -1.0)], axis=1)
  back = np.asarray(vit.take(padded, restore[None]))[0, :, 0]
  np.testing.assert_array_equal(np.flatnonzero(hidden == 0), np.sort(keep))
  np.testing.assert_array_equal(back[keep], keep)
  assert (back[np.asarray(hidden) == 1] == -1).all()


def test_positions_are_the_formula_of_the_paper():
  d, g = 8, 3
  found = vit.positions(g, d)
  for place in range(g * g):
    row, column = divmod(place, g)
    for i in range(d // 4):
      frequency = 10000 ** -(i / (d / 4))
      want = [
        f(at * frequency) for at in (column, row) for f in (np.sin, np.cos)
      ]
      np.testing.assert_allclose(found[place, i :: d // 4], want, rtol=1e-6)


def test_targets_are_standardised_but_not_below_the_floor():
  rng = np.random.default_rng(1)
  patches = rng.normal(size=(2, 3, 16)).astype(np.float32)
  patches[0, 0] = 0.5 + 1e-3 * patches[0, 0]  # nearly constant background
  found = np.asarray(mae.targets(jnp.asarray(patches), True, 0.0))
  np.testing.assert_allclose(found.mean(-1), 0, atol=1e-4)
  np.testing.assert_allclose(found[1].std(-1, ddof=1), 1, rtol=1e-3)
  assert found[0, 0].std() > 0.5
  floored = np.asarray(mae.targets(jnp.asarray(patches), True, 1e-2))
  assert floored[0, 0].std() < 0.02
  np.testing.assert_allclose(floored[1], found[1], rtol=1e-5)


def test_the_loss_is_the_mean_over_hidden_patches(method, params, images):
  keys = jax.random.split(jax.random.key(1), len(images))
  total, count = jax.jit(method.validate)(
    params, images, keys, np.ones(len(images), np.float32)
  )['loss']
  encoder = vit.Encoder(16, 2, 2, PATCH)
  decoder = vit.Decoder(8, 1, 2, PATCH**2)
  encode, decode = jax.jit(encoder.apply), jax.jit(decoder.apply)
  want = []
  for key, image in zip(keys, images):
    x = image[None].astype(np.float32) / 127.5 - 1
    keep, restore, hidden = mae.random_mask(key, 16, 4)
    tokens, _ = encode({'params': params['encoder']}, x, keep[None])
    drawn = decode({'params': params['decoder']}, tokens, restore[None])
    errors = []
    for place in np.flatnonzero(hidden):
      i, j = divmod(place, SIZE // PATCH)
      patch = x[0, i * 4 : i * 4 + 4, j * 4 : j * 4 + 4].ravel()
      aim = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
      errors.append(np.mean((np.asarray(drawn)[0, place] - aim) ** 2))
    want.append(np.mean(errors))
  assert count == len(images)
  np.testing.assert_allclose(total, np.sum(want), rtol=1e-4)


def test_the_encoder_reads_nothing_of_hidden_patches(params, images):
  encoder = vit.Encoder(16, 2, 2, PATCH)
  keep = jnp.array([[0, 5, 9, 15]])
  x = images[:1].astype(np.float32)
  changed = x.copy()
  changed[:, 0:4, 4:8] += 50  # patch 1
  apply = jax.jit(encoder.apply)
  of = lambda x: apply({'params': params['encoder']}, x, keep)[0]  # noqa: E731
  np.testing.assert_array_equal(of(x), of(changed))
  changed[:, 0:4, 0:4] += 50  # patch 0
  assert np.abs(np.asarray(of(x)) - of(changed)).max() > 1e-3


def test_taps_do_not_depend_on_later_blocks(method, params, images):
  other = jax.device_get(params)
  other['encoder']['block1'] = jax.tree.map(
    lambda x: x + 1, other['encoder']['block1']
  )
  features_of = jax.jit(method.features)
  a, b = (features_of(p, images, None, 0) for p in (params, other))
  assert method.layers == ('block0', 'block1', 'cls')
  np.testing.assert_array_equal(a['block0'], b['block0'])
  assert np.abs(np.asarray(a['block1']) - b['block1']).max() > 1e-3
  assert a['block0'].shape == (6, 4, 4, 16)
  assert features.pool_map(a['cls'], 2).shape == (6, 1, 1, 16)


@pytest.mark.parametrize(
  ('field', 'value', 'flag'),
  [
    ('model.patch', 5, '--config.model.patch'),
    ('model.heads', 3, 'heads'),
    ('mae.width', 6, '--config.mae.width'),
    ('mae.mask', 1.0, '--config.mae.mask'),
    ('crop', (0.0, 1.0), '--config.crop'),
    ('mae.variance_floor', -1.0, '--config.mae.variance_floor'),
  ],
)
def test_bad_fields_are_refused(field, value, flag):
  with pytest.raises(ValueError, match=flag):
    mae.make(get_config(**{field: value}), SIZE, 1)

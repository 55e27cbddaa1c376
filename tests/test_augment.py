import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from micdiffrep_jax.methods import views

OFF = dict.fromkeys(views.LIMITS, 0.0)


def config(**fields):
  return ConfigDict({**OFF, **fields})


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.uniform(-0.9, 0.9, (64, 9, 9, 1)), jnp.float32)


def apply(images, seed=0, **fields):
  return np.asarray(
    views.augment(jax.random.key(seed), images, config(**fields))
  )


def test_off_is_the_identity(images):
  np.testing.assert_array_equal(apply(images), images)


def test_flips_mirror_about_half_of_the_images(images):
  out = apply(images, flip=0.5)
  mirrored = np.asarray(images)[:, :, ::-1]
  flipped = (out == mirrored).all(axis=(1, 2, 3))
  kept = (out == np.asarray(images)).all(axis=(1, 2, 3))
  assert (flipped ^ kept).all()
  assert 16 < flipped.sum() < 48


def test_a_shift_moves_the_picture_and_brings_in_black():
  x = jnp.full((1, 9, 9, 1), -1.0).at[0, 4, 4, 0].set(1.0)
  matrix, offset = jnp.eye(2), jnp.array([1.0, -2.0])
  out = np.asarray(views.affine(x[0], matrix, offset))
  # The output at p shows the input at p + offset.
  assert out[3, 6, 0] == 1
  assert (np.delete(out.ravel(), 3 * 9 + 6) == -1).all()


def test_a_quarter_turn_is_a_quarter_turn(images):
  matrix = jnp.array([[0.0, -1.0], [1.0, 0.0]])
  out = views.affine(images[0], matrix, jnp.zeros(2))
  expected = np.rot90(np.asarray(images[0]), -1)
  np.testing.assert_allclose(
    np.abs(np.asarray(out) - expected).max(), 0, atol=1e-4
  )


def test_geometry_differs_from_image_to_image(images):
  same = jnp.repeat(images[:1], 8, axis=0)
  out = apply(same, rotate_deg=20.0, scale=0.1, shift=0.05)
  assert np.abs(out[1:] - out[:1]).max(axis=(1, 2, 3)).min() > 1e-3


def test_intensity_keeps_range_and_background(images):
  x = images.at[:, 0].set(-1.0)
  out = apply(x, brightness=0.3, contrast=0.5)
  assert out.min() >= -1
  assert out.max() <= 1
  assert (out[:, 0] == -1).all()
  assert not np.allclose(out[:, 1:], x[:, 1:])


def test_fields_out_of_range_are_refused():
  with pytest.raises(ValueError, match='--config.augment.scale'):
    views.check_augment(config(scale=1.5))

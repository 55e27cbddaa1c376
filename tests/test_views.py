import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micdiffrep_jax.methods import views


def images(b=6, h=16, w=16, seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, (b, h, w, 1)).astype(np.float32)


def bilinear_row(line, start, length):
  """A loop: the antialiased triangle at each output pixel, border cut off."""
  size = len(line)
  step = length / size
  support = max(step, 1.0)
  out = np.zeros(size)
  for i in range(size):
    centre = start + (i + 0.5) * step
    weights = [
      max(0.0, 1 - abs(j + 0.5 - centre) / support) for j in range(size)
    ]
    out[i] = np.dot(weights, line) / np.sum(weights)
  return out


@pytest.mark.parametrize(('start', 'length'), [(2.3, 7.4), (0.0, 16.0)])
def test_crop_weights_are_bilinear(start, length):
  line = np.random.default_rng(1).normal(size=16)
  weights = views._bilinear(jnp.array([start]), jnp.array([length]), 16)[0]
  np.testing.assert_allclose(
    weights @ line, bilinear_row(line, start, length), atol=1e-5
  )


def test_a_crop_of_a_ramp_is_a_part_of_it():
  # Bilinear sampling keeps a ramp; its steps tell the sides of the crop.
  ramp = np.linspace(-1, 1, 32, dtype=np.float32)
  x = np.stack([np.add.outer(0 * ramp, ramp), np.add.outer(ramp, 0 * ramp)])
  x = np.repeat(x[:, None], 64, axis=1)[..., None]
  across, down = (
    np.asarray(views.random_resized_crop(jax.random.key(3), v, (0.2, 0.6)))
    for v in x
  )
  # Two rows or columns from the border, where a neighbour is missing.
  widths = np.diff(across[:, 5, 2:-2, 0], axis=1) / np.diff(ramp)[0]
  heights = np.diff(down[:, 2:-2, 5, 0], axis=1) / np.diff(ramp)[0]
  assert np.ptp(widths, axis=1).max() < 1e-3
  width, height = widths.mean(axis=1), heights.mean(axis=1)
  assert (width <= 1 + 1e-4).all()
  assert (height <= 1 + 1e-4).all()
  area, ratio = width * height, width / height
  assert area.min() > 0.19
  assert area.max() < 0.61
  assert area.max() - area.min() > 0.2
  assert ratio.min() > 0.74
  assert ratio.max() < 1.34


def test_the_whole_image_is_its_own_crop():
  x = images()
  same = views.random_resized_crop(jax.random.key(0), x, (1.0, 1.0), (1.0, 1.0))
  np.testing.assert_allclose(same, x, atol=1e-5)


def test_blur_is_the_gaussian_sum():
  x = images(1)[0, :, :, 0]
  weights = np.asarray(views._gaussian(jnp.array([0.8]), 16)[0])
  place = np.arange(16)
  kernel = np.exp(-((place[:, None] - place) ** 2) / (2 * 0.8**2))
  kernel /= kernel.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(weights @ x, kernel @ x, atol=1e-5)


def test_solarize_inverts_the_bright_half():
  x = np.array([-1.0, -0.25, 0.25, 1.0], np.float32)
  np.testing.assert_array_equal(views.solarize(x), [-1.0, -0.25, -0.25, -1.0])


def test_jitter_keeps_black_black_without_contrast():
  x = images()
  x[:, :4] = -1.0
  y = np.asarray(views.jitter(jax.random.key(0), x, 0.5, 0.0))
  np.testing.assert_array_equal(y[:, :4], -1.0)
  # Below the clip the ratio of intensities is one factor per image.
  kept = y[:, 4:] < 0.999
  ratio = np.where(kept, (y[:, 4:] + 1) / (x[:, 4:] + 1), np.nan)
  factor = np.nanmedian(ratio, axis=(1, 2, 3))
  assert np.nanmax(np.abs(ratio - factor[:, None, None, None])) < 1e-2
  assert np.ptp(factor) > 0.1
  assert ((factor > 0.49) & (factor < 1.51)).all()


@pytest.mark.parametrize('policy', views.POLICIES)
def test_views_are_deterministic_and_differ(policy):
  x = images()
  draw = jax.jit(views.two_views, static_argnums=2)
  one = draw(jax.random.key(0), x, policy)
  again = draw(jax.random.key(0), x, policy)
  other = draw(jax.random.key(1), x, policy)
  for a, b, c in zip(one, again, other, strict=True):
    assert a.shape == x.shape
    assert a.dtype == jnp.float32
    assert float(jnp.abs(a).max()) <= 1 + 1e-5
    np.testing.assert_array_equal(a, b)
    assert np.abs(np.asarray(a - c)).mean(axis=(1, 2, 3)).min() > 1e-3
  assert np.abs(np.asarray(one[0] - one[1])).mean(axis=(1, 2, 3)).min() > 1e-3


def test_images_of_a_batch_are_drawn_each_on_its_own():
  x = np.repeat(images(1), 4, axis=0)
  first, _ = views.two_views(jax.random.key(0), x, 'paper')
  for i in range(1, 4):
    assert np.abs(np.asarray(first[i] - first[0])).max() > 1e-2


def test_an_unknown_policy_names_its_flag():
  with pytest.raises(ValueError, match='--config.views'):
    views.get_policy('papers')

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micdiffrep_jax.models.unet import (
  Grow,
  UNet,
  check_unet,
  decoder_taps,
  encoder_taps,
  time_embedding,
)

TINY = dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4)


def init(model, size=8, channels=1):
  x = jnp.zeros((1, size, size, channels))
  return jax.eval_shape(
    model.init, jax.random.key(0), x, jnp.zeros((1,), jnp.int32)
  )


def count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


def test_cifar_form_has_the_published_parameter_count():
  # Ho et al. 2020, appendix B: 35.7 million; 35.75 by their code.
  assert count(init(UNet(), 32, 3)) == 35_746_307


def test_taps_carry_their_names_and_resolutions():
  model = UNet(**TINY)
  variables = init(model)
  x, t = jnp.zeros((2, 8, 8, 1)), jnp.zeros((2,), jnp.int32)
  output, taps = jax.eval_shape(model.apply, variables, x, t)
  assert output.shape == x.shape
  assert set(taps) == {*encoder_taps(model), *decoder_taps(model)}
  assert encoder_taps(model) == ('down0_0', 'down1_0', 'mid')
  assert decoder_taps(model) == ('up1_0', 'up1_1', 'up0_0', 'up0_1')
  assert taps['down0_0'].shape == (2, 8, 8, 8)
  assert taps['mid'].shape == (2, 4, 4, 16)
  assert taps['up0_1'].shape == (2, 8, 8, 8)


@pytest.fixture(scope='module')
def perturbed():
  """A tiny UNet whose zero-initialised kernels are not zero."""
  model = UNet(**TINY)
  rng = np.random.default_rng(1)
  x = rng.normal(size=(2, 8, 8, 1)).astype(np.float32)
  t = jnp.array([3, 700])
  variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), x, t))
  variables = jax.tree.map(
    lambda v: v + 0.1 * rng.normal(size=v.shape).astype(v.dtype), variables
  )
  return model, variables, x, t


@pytest.fixture(scope='module')
def apply(perturbed):
  """The forward pass, compiled once."""
  return jax.jit(perturbed[0].apply)


def test_taps_ignore_layers_above(perturbed, apply):
  model, variables, x, t = perturbed
  before = apply(variables, x, t)[1]
  names = (*encoder_taps(model), *decoder_taps(model))
  changed = jax.tree.map(lambda v: v, variables)
  changed['params']['up1_0'] = jax.tree.map(
    lambda v: v + 1.0, variables['params']['up1_0']
  )
  after = apply(changed, x, t)[1]
  cut = names.index('up1_0')
  for name in names[:cut]:
    np.testing.assert_array_equal(before[name], after[name], err_msg=name)
  for name in names[cut:]:
    assert not np.array_equal(before[name], after[name]), name


def test_compiler_drops_what_lies_above_a_tap(perturbed):
  model, variables, x, t = perturbed

  def flops(name):
    fn = jax.jit(lambda v, x, t: model.apply(v, x, t)[1][name])
    return fn.lower(variables, x, t).compile().cost_analysis()['flops']

  assert flops('down0_0') < 0.5 * flops('mid') < 0.5 * flops('up0_1')


def test_every_parameter_reaches_the_output(perturbed):
  model, variables, x, t = perturbed
  grads = jax.jit(
    jax.grad(lambda v: jnp.sum(jnp.square(model.apply(v, x, t)[0])))
  )(variables)
  flat, _ = jax.tree_util.tree_flatten_with_path(grads)
  dead = [jax.tree_util.keystr(k) for k, g in flat if not jnp.any(g != 0)]
  # Softmax ignores what all keys share: the key bias has no gradient, and it
  # lies inside the qkv bias, which has one.
  assert not dead


def test_patches_and_remat_keep_the_shape_and_the_values(perturbed, apply):
  _, variables, x, t = perturbed
  want = apply(variables, x, t)[0]
  for remat in ('norms', 'stages'):
    same = jax.jit(UNet(**TINY, remat=remat).apply)(variables, x, t)[0]
    np.testing.assert_allclose(same, want, rtol=1e-5, atol=1e-5)
  patched = UNet(**{**TINY, 'attention': ()}, patch=2)
  out, taps = jax.eval_shape(
    patched.apply, init(patched), jnp.zeros((1, 8, 8, 1)), jnp.zeros((1,), int)
  )
  assert out.shape == (1, 8, 8, 1)
  assert taps['down0_0'].shape == (1, 4, 4, 8)


@pytest.mark.slow
def test_remat_computes_norms_again_but_no_product(perturbed):
  _, variables, x, t = perturbed

  def count_in(remat):
    model = UNet(**TINY, remat=remat)

    def loss(v):
      return jnp.sum(model.apply(v, x, t, train=True)[0] ** 2)

    text = str(jax.make_jaxpr(jax.grad(loss))(variables))
    return text.count(' rsqrt'), text.count('conv_general_dilated[')

  plain, norms, stages = (count_in(r) for r in ('', 'norms', 'stages'))
  assert norms[0] > plain[0]
  assert norms[1] == plain[1]
  assert stages[0] > plain[0]
  assert stages[1] > plain[1]


def test_growing_is_a_convolution_of_repeated_pixels():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
  grow = Grow(6, 'float32')
  params = {
    'kernel': rng.normal(size=(3, 3, 4, 6)).astype(np.float32),
    'bias': rng.normal(size=6).astype(np.float32),
  }
  literal = nn.Conv(6, (3, 3)).apply(
    {'params': params}, jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
  )
  found = grow.apply({'params': params}, x)
  np.testing.assert_allclose(found, literal, atol=1e-5)
  shapes = jax.eval_shape(grow.init, jax.random.key(0), x)['params']
  assert {k: v.shape for k, v in shapes.items()} == {
    k: v.shape for k, v in params.items()
  }


def test_a_fresh_network_predicts_zero(perturbed, apply):
  model, _, x, t = perturbed
  variables = jax.jit(model.init)(jax.random.key(0), x, t)
  assert not np.any(apply(variables, x, t)[0])


def test_neighbouring_timesteps_are_told_apart():
  e = np.asarray(time_embedding(jnp.array([1, 2, 999]), 32))
  assert np.linalg.norm(e[0] - e[1]) > 0.5
  assert e.shape == (3, 32)


@pytest.mark.parametrize(
  ('size', 'change', 'words'),
  [
    (8, {'attention': (16,)}, r'Attention at \[16\].*--config.model.attention'),
    (10, {'multipliers': (1, 2, 2)}, 'multiple of 4'),
    (8, {'groups': 3}, '--config.model.groups'),
    (8, {'heads': 3}, '--config.model.heads'),
    (8, {'remat': 'all'}, '--config.model.remat'),
  ],
)
def test_fields_that_do_not_fit_are_refused(size, change, words):
  fields = dict(
    channels=8,
    multipliers=(1, 2),
    attention=(4,),
    heads=1,
    groups=4,
    patch=1,
  )
  check_unet(8, **fields)
  with pytest.raises(ValueError, match=words):
    check_unet(size, **{**fields, **change})

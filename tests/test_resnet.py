import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micdiffrep_jax.models import resnet


def batch(b=16, h=3, d=5, seed=0):
  rng = np.random.default_rng(seed)
  return (2 + 3 * rng.normal(size=(b, h, h, d))).astype(np.float32)


def norm_of(groups, x, train=True):
  """A norm with gains and offsets unlike 1 and 0: (module, variables)."""
  norm = resnet.GroupedBatchNorm(groups)
  variables = norm.init(jax.random.key(0), x[:groups], train=train)
  d = x.shape[-1]
  params = {'scale': jnp.arange(1.0, d + 1), 'bias': jnp.linspace(-1, 1, d)}
  return norm, {**variables, 'params': params}


@pytest.mark.parametrize('groups', [1, 4])
@pytest.mark.parametrize('shape', ['map', 'vector'])
def test_groups_are_batch_norms_of_their_own(groups, shape):
  x = batch() if shape == 'map' else batch(h=1)[:, 0, 0]
  norm, variables = norm_of(groups, x)
  y, updates = norm.apply(variables, x, train=True, mutable=['batch_stats'])
  scale, bias = variables['params']['scale'], variables['params']['bias']
  means, spreads = [], []
  for i, part in enumerate(np.split(x.astype(np.float64), groups)):
    flat = part.reshape(-1, 5)
    means.append(flat.mean(axis=0))
    spreads.append(flat.var(axis=0))
    want = (part - means[-1]) / np.sqrt(spreads[-1] + 1e-5)
    have = np.split(np.asarray(y), groups)[i]
    np.testing.assert_allclose(
      have, want * np.asarray(scale) + np.asarray(bias), atol=1e-4
    )
  stats = updates['batch_stats']
  np.testing.assert_allclose(
    stats['mean'], 0.1 * np.mean(means, axis=0), rtol=1e-4
  )
  np.testing.assert_allclose(
    stats['var'], 0.9 + 0.1 * np.mean(spreads, axis=0), rtol=1e-4
  )


def test_frozen_norms_know_nothing_of_the_batch():
  x = batch()
  norm, variables = norm_of(4, x)
  stats = {'mean': jnp.full(5, 2.0), 'var': jnp.full(5, 9.0)}
  variables = {**variables, 'batch_stats': stats}
  y = norm.apply(variables, x[:3], train=False)
  want = (x[:3] - 2) / np.sqrt(9 + 1e-5) * np.arange(1, 6) + np.linspace(
    -1, 1, 5
  )
  np.testing.assert_allclose(y, want, atol=1e-4)


def on_eight(x):
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
  spec = jax.sharding.PartitionSpec('data')
  return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))


@pytest.mark.parametrize('groups', [1, 4, 8])
def test_a_split_batch_gives_the_same_norm_and_gradient(groups):
  x = batch()
  norm, variables = norm_of(groups, x)

  @jax.jit
  def f(x):
    def total(x):
      y, updates = norm.apply(variables, x, train=True, mutable=['batch_stats'])
      return jnp.sum(jnp.sin(y)), (y, updates['batch_stats'])

    return jax.value_and_grad(total, has_aux=True)(x)

  one, eight = f(x), f(on_eight(x))
  assert len(eight[1].sharding.device_set) == 8
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    # Sums in another order.
    np.testing.assert_allclose(a, np.asarray(b), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('groups', 'talks'), [(8, False), (1, True)])
def test_groups_that_lie_on_a_device_need_no_other(groups, talks):
  x = on_eight(batch())
  norm, variables = norm_of(groups, batch())
  f = jax.jit(
    lambda x: norm.apply(variables, x, train=True, mutable=['batch_stats'])[0]
  )
  text = f.lower(x).compile().as_text()
  assert ('all-reduce' in text) == talks


# torchvision's counts without the classifier, less two colour channels of the
# first convolution: 11,689,512 - 513,000 - 6,272; 25,557,032 - 2,049,000 -
# 6,272.
@pytest.mark.parametrize(
  ('blocks', 'bottleneck', 'count', 'd'),
  [
    ((2, 2, 2, 2), False, 11_170_240, 512),
    ((3, 4, 6, 3), True, 23_501_760, 2048),
  ],
)
def test_parameters_are_those_of_torchvision(blocks, bottleneck, count, d):
  model = resnet.ResNet(blocks, bottleneck)
  x = jax.ShapeDtypeStruct((2, 112, 112, 1), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  found = sum(v.size for v in jax.tree.leaves(variables['params']))
  assert found == count
  out, taps = jax.eval_shape(model.apply, variables, x)
  assert out.shape == (2, d)
  sides = {k: v.shape[1] for k, v in taps.items()}
  assert sides == {'stage1': 28, 'stage2': 14, 'stage3': 7, 'stage4': 4}


@pytest.mark.parametrize(
  ('stem', 'side'), [('stride1', 16), ('stride2', 8), ('stride4', 4)]
)
def test_stems_shrink_as_they_say(stem, side):
  model = resnet.ResNet((1,), False, 4, stem)
  x = jax.ShapeDtypeStruct((1, 16, 16, 1), jnp.float32)
  (_, taps), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
  assert taps['stage1'].shape == (1, side, side, 4)


@pytest.mark.parametrize(
  ('size', 'blocks', 'stem', 'words'),
  [
    (64, (2, 2), 'stride3', '--config.model.stem'),
    (64, (), 'stride2', '--config.model.blocks'),
    (64, (2, 0), 'stride2', '--config.model.blocks'),
    (16, (1, 1, 1), 'stride2', 'shrink 16 px to 2'),
  ],
)
def test_encoders_that_do_not_fit_are_refused(size, blocks, stem, words):
  with pytest.raises(ValueError, match=words):
    resnet.check_resnet(size, blocks, stem)


def test_the_smallest_map_allowed_is_accepted():
  resnet.check_resnet(12, (1, 1, 1), 'stride1')
  resnet.check_resnet(64, (2, 2, 2, 2), 'stride2')

"""The vision transformer as a denoiser: the network, and runs of its preset."""

import json
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from configs import bundle as bundle_config
from configs import predict as predict_config
from configs import pretrain
from configs import probe as probe_config
from configs import sample as sample_config
from micdiffrep_jax.bundle import export, predict, torch_names
from micdiffrep_jax.data import batches
from micdiffrep_jax.encoders.encoder import load_encoder
from micdiffrep_jax.generate import sample
from micdiffrep_jax.methods import ddpm
from micdiffrep_jax.models import dit, vit
from micdiffrep_jax.models.dit import DiT, decoder_taps, encoder_taps
from micdiffrep_jax.pretrain import train
from micdiffrep_jax.studies import probe

TINY = dict(width=8, depth=3, heads=2, patch=4, skips=True)
SIZE = 8


def shapes(model, size=SIZE, channels=1):
  x, t = jnp.zeros((1, size, size, channels)), jnp.zeros((1,), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), x, t)['params']


def count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


@pytest.fixture(scope='module')
def fresh():
  """Weights as initialised, and an input."""
  rng = np.random.default_rng(1)
  x = rng.normal(size=(2, SIZE, SIZE, 1)).astype(np.float32)
  t = jnp.array([3, 700])
  model = DiT(**TINY, told=2)
  return model, jax.jit(model.init)(jax.random.key(0), x, t), x, t


@pytest.fixture(scope='module')
def apply(fresh):
  """The forward pass, compiled once: variables, told -> output, taps."""
  model, _, x, t = fresh
  return jax.jit(lambda v, told=None: model.apply(v, x, t, told=told))


@pytest.fixture(scope='module')
def perturbed(fresh):
  """Weights that are zero nowhere."""
  rng = np.random.default_rng(2)
  return jax.tree.map(
    lambda v: v + 0.2 * rng.normal(size=v.shape).astype(v.dtype),
    jax.device_get(fresh[1]),
  )


# The published sizes.


def test_dit_s_2_has_the_published_parameters_but_for_what_we_leave_out():
  # Peebles and Xie 2023, table 1: 33 M for latents of 32 x 32 x 4. By their
  # code 32,963,360, with a table of 1000 labels and one for none, fixed
  # positions (which torch counts), and a second output for the variance.
  labels, positions, variance = 1001 * 384, 256 * 384, (384 + 1) * 2 * 2 * 4
  ours = count(shapes(DiT(384, 12, 6, 2), 32, 4))
  assert ours + labels + positions + variance == 32_963_360


def test_u_vit_s_2_has_the_published_parameters_but_for_how_time_enters():
  # Bao et al. 2023, table 1: 44 M for CIFAR-10. By their code 44,255,328: time
  # is a token, positions are learnt, norms have scale and bias, query, key and
  # value have no bias, and a 3 x 3 convolution is last.
  d, depth = 512, 13
  params = shapes(DiT(d, depth, 8, 2, skips=True), 32, 3)
  time = count([params.pop(k) for k in ('time1', 'time2', 'moves')])
  blocks = [params[f'block{i}'] for i in range(depth)]
  time += count([block.pop('moves') for block in blocks])
  biases = depth * 3 * d
  positions, norms, last = 257 * d, (2 * depth + 1) * 2 * d, 3 * 3 * 3 * 3 + 3
  assert count(params) - biases + positions + norms + last == 44_255_328
  assert time == 256 * d + d + d * d + d + (6 * depth + 2) * (d * d + d)


# The network.


def test_a_fresh_network_s_blocks_are_the_identity_and_it_predicts_zero(
  fresh, apply
):
  _, variables, x, _ = fresh
  output, taps = jax.device_get(apply(variables))
  patches = vit.patches(x, 4) @ variables['params']['patches']['kernel']
  want = patches + vit.positions(2, 8)[None]
  for i in range(3):
    found = taps[f'block{i}'].reshape(2, 4, 8)
    np.testing.assert_allclose(found, want, atol=1e-5)
  assert not output.any()


def numpy_block(x, temb, skip, params, heads):
  """A block of x (b, l, d) in float64, by the formulas of the papers."""

  def dense(x, name):
    return x @ p[name]['kernel'] + p[name]['bias']

  def norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)

  p = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
  if skip is not None:
    x = x + dense(np.concatenate([x, skip], -1), 'skip')
  moves = dense(temb / (1 + np.exp(-temb)), 'moves')[:, None]
  shift1, scale1, gate1, shift2, scale2, gate2 = np.split(moves, 6, -1)
  h = norm(x) * (1 + scale1) + shift1
  q, k, v = (
    np.stack(np.split(dense(h, name), heads, -1))
    for name in ('query', 'key', 'value')
  )
  scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))
  h = scores / scores.sum(-1, keepdims=True) @ v
  x = x + gate1 * dense(np.concatenate(list(h), -1), 'out')
  h = dense(norm(x) * (1 + scale2) + shift2, 'up')
  gelu = np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))
  return x + gate2 * dense(0.5 * h * (1 + gelu), 'down')


def test_blocks_are_what_the_papers_say(perturbed, apply):
  params = perturbed['params']
  taps = jax.device_get(apply(perturbed)[1])
  tokens = {k: np.float64(v.reshape(2, 4, 8)) for k, v in taps.items()}
  temb = np.asarray(
    jax.jit(Time().apply)(
      {'params': {k: params[k] for k in ('time1', 'time2', 'told')}},
      jnp.array([3, 700]),
    )
  )
  for name, before, skip in (
    ('block1', 'block0', None),
    ('block2', 'block1', 'block0'),
  ):
    want = numpy_block(
      tokens[before], temb, tokens.get(skip), params[name], heads=2
    )
    np.testing.assert_allclose(tokens[name], want, rtol=1e-3, atol=1e-4)


class Time(dit.nn.Module):
  """What DiT does with t."""

  @dit.nn.compact
  def __call__(self, t):
    return dit.embed(t, 256, 8, None, 2)


def test_what_is_cut_into_patches_is_put_together_in_its_place():
  image = np.arange(2 * 16 * 16, dtype=np.float32).reshape(2, 16, 16, 1)
  folded = dit.fold_patches(image, 4)
  patch = image[0, 4:8, 8:12, 0].ravel()
  np.testing.assert_array_equal(folded[0, 1, 2], patch)
  np.testing.assert_array_equal(dit.unfold_patches(folded, 4), image)


def test_taps_are_maps_and_ignore_later_blocks(perturbed, apply):
  before = apply(perturbed)[1]
  changed = jax.tree.map(lambda v: v, perturbed)
  changed['params']['block1'] = jax.tree.map(
    lambda v: v + 1.0, perturbed['params']['block1']
  )
  after = apply(changed)[1]
  assert {k: v.shape for k, v in before.items()} == {
    f'block{i}': (2, 2, 2, 8) for i in range(3)
  }
  np.testing.assert_array_equal(before['block0'], after['block0'])
  for name in ('block1', 'block2'):
    assert not np.allclose(before[name], after[name], atol=1e-2), name


@pytest.mark.parametrize(
  ('depth', 'encoder'), [(13, 7), (12, 6), (1, 1), (2, 1)]
)
def test_the_middle_is_the_last_of_the_encoder(depth, encoder):
  model = DiT(depth=depth)
  names = (*encoder_taps(model), *decoder_taps(model))
  assert names == tuple(f'block{i}' for i in range(depth))
  assert len(encoder_taps(model)) == encoder


def with_gradient(model, variables, x, t):
  """The output of the model, and the gradients of its square."""

  def loss(v):
    output = model.apply(v, x, t, told=jnp.ones((2, 2)))[0]
    return jnp.sum(output**2), output

  gradient, output = jax.jit(jax.grad(loss, has_aux=True))(variables)
  return jax.device_get((output, gradient))


@pytest.fixture(scope='module')
def plain(fresh, perturbed):
  """As with_gradient, of nothing computed again."""
  return with_gradient(DiT(**TINY, told=2), perturbed, *fresh[2:])


def test_every_parameter_reaches_the_output(plain):
  flat, _ = jax.tree_util.tree_flatten_with_path(plain[1])
  dead = {jax.tree_util.keystr(k) for k, g in flat if not g.any()}
  # Softmax ignores what all keys share; rounding may leave it or not.
  assert not {name for name in dead if "'key'" not in name}


@pytest.mark.parametrize('remat', ['norms', 'stages'])
def test_what_is_computed_again_is_the_same(fresh, perturbed, plain, remat):
  model = DiT(**TINY, told=2, remat=remat)
  output, gradient = with_gradient(model, perturbed, *fresh[2:])
  np.testing.assert_allclose(output, plain[0], rtol=1e-5, atol=1e-5)
  for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain[1])):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_bfloat16_gives_the_same_up_to_rounding(fresh, perturbed, apply):
  _, _, x, t = fresh
  want = apply(perturbed)[0]
  half = jax.jit(DiT(**TINY, told=2, dtype='bfloat16').apply)
  output, taps = half(perturbed, x, t)
  np.testing.assert_allclose(output, want, atol=0.03 * np.abs(want).max())
  assert not np.array_equal(output, want)
  assert {v.dtype for v in (output, *taps.values())} == {jnp.dtype('float32')}


def test_norms_are_computed_again_but_no_product_of_a_layer():
  x, t = jnp.zeros((1, SIZE, SIZE, 1)), jnp.zeros((1,), jnp.int32)

  def found_in(remat):
    """How many norms a step computes, and how many products of a layer."""
    model = DiT(8, 1, 2, 4, remat=remat)

    def loss(params):
      return jnp.sum(model.apply({'params': params}, x, t, train=True)[0] ** 2)

    text = str(jax.make_jaxpr(jax.grad(loss))(shapes(model)))
    products = re.findall(r'dimension_numbers=\(\(.*?\), \((.*?)\)\)', text)
    # Those of attention have batch dimensions.
    return text.count(' rsqrt'), products.count('[], []')

  plain, norms, stages = (found_in(r) for r in ('', 'norms', 'stages'))
  assert norms[0] > plain[0]
  assert norms[1] == plain[1] > 0
  assert stages[1] > plain[1]


def test_dropout_is_of_training_alone(fresh, perturbed, apply):
  _, _, x, t = fresh
  model = DiT(**TINY, told=2, dropout=0.5)

  @jax.jit
  def trained(key):
    return model.apply(perturbed, x, t, train=True, rngs={'dropout': key})[0]

  a, b = (trained(jax.random.key(i)) for i in (0, 1))
  assert not np.allclose(a, b, atol=1e-3)
  still = jax.jit(model.apply)(perturbed, x, t)[0]
  np.testing.assert_allclose(still, apply(perturbed)[0], atol=1e-5)


def test_nothing_told_is_zeros_told(perturbed, apply):
  bare = apply(perturbed)[0]
  np.testing.assert_array_equal(bare, apply(perturbed, jnp.zeros((2, 2)))[0])
  assert not np.allclose(bare, apply(perturbed, jnp.ones((2, 2)))[0], atol=1e-3)


# What is refused, before anything is compiled.


def get_config(**changes):
  config = pretrain.get_config('vit_test')
  config.update_from_flattened_dict(changes)
  return config.lock()


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'model.patch': 5}, '16 px.*patches of 5.*--config.model.patch'),
    ({'model.heads': 3}, 'heads=3.*width 16.*--config.model.heads'),
    ({'model.heads': 0}, '--config.model.heads'),
    ({'model.width': 18}, 'model.width=18.*multiple of 4'),
    ({'model.depth': 0}, '--config.model.depth'),
    ({'model.depth': 4}, 'depth=4 is even.*--config.model.skips=False'),
    ({'model.remat': 'all'}, '--config.model.remat'),
    ({'recipe.crop_px': 8}, 'knows no recipe.crop_px.*--config.recipe.crop_px'),
    ({'model.name': 'unet'}, "fields of 'unet'.*pretrain.py:vit"),
  ],
)
def test_fields_that_do_not_fit_are_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    ddpm.make(get_config(**changes), 16, 1)


def test_fields_of_a_unet_are_refused():
  config = pretrain.get_config('test')
  config.model.name = 'vit'
  with pytest.raises(ValueError, match="fields of 'vit'.*pretrain.py:vit"):
    ddpm.make(config, 16, 1)


def test_told_augmentation_reaches_the_network():
  params = shapes(
    ddpm.denoiser(get_config(**{'recipe.tell_augment': True}), 16, 1).model, 16
  )
  assert params['told']['kernel'].shape == (ddpm.views.TOLD, 256)


@pytest.mark.parametrize('preset', ['vit', 'vit_small', 'vit_tiny'])
def test_presets_fit_their_size(preset):
  config = pretrain.get_config(preset)
  method = ddpm.make(config, 112 if preset == 'vit' else 64, 1)
  assert method.output in method.layers


# The preset from one end to the other.


def trained(workdir, **changes):
  config = get_config(
    **{
      'data.path': 'phantom:size_px=16,patients=60',
      'steps': 8,
      'log_every': 2,
      'save_every': 3,
      'eval_every': 8,
      'model.dropout': 0.1,
      'recipe.tell_augment': True,
      **changes,
    }
  )
  return train.run(config, str(workdir))


def config_of(module, preset, **changes):
  config = module.get_config(preset)
  config.update_from_flattened_dict(changes)
  return config.lock()


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_and_all_takes_it_as_a_unet(
  tmp_path, monkeypatch
):
  run, again = tmp_path / 'run', tmp_path / 'again'
  trained(run)
  gather = batches._gather
  calls = []

  def stop_at_fifth_batch(*args):
    calls.append(1)
    if len(calls) == 5:
      os.kill(os.getpid(), signal.SIGTERM)
    return gather(*args)

  monkeypatch.setattr(batches, '_gather', stop_at_fifth_batch)
  with pytest.raises(SystemExit):
    trained(again)
  monkeypatch.undo()
  trained(again)
  states = [load_encoder(str(w)) for w in (run, again)]
  assert [x.info.step for x in states] == [8, 8]
  jax.tree.map(
    np.testing.assert_array_equal,
    *(jax.device_get(x.variables) for x in states),
  )

  data = {'data.path': 'phantom:size_px=16,patients=60'}
  probe_dir, checkpoint = str(tmp_path / 'probe'), {'checkpoint': str(run)}
  seeds = {'seeds': (0,), 'random_encoder': False, 'select': 'validation'}
  found = probe.run(
    config_of(probe_config, 'test', **data, **checkpoint, **seeds), probe_dir
  )
  assert 'block' in json.dumps(found)
  sample.run(
    config_of(sample_config, 'test', **checkpoint), str(tmp_path / 'sample')
  )
  assert (tmp_path / 'sample' / 'samples.png').exists()
  exported = export.run(
    config_of(bundle_config, '', probe=probe_dir), str(tmp_path / 'bundle')
  )
  assert exported['same_class'] > 0.9
  Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / 'a.png')
  predicted = predict.run(
    config_of(
      predict_config,
      '',
      bundle=str(tmp_path / 'bundle' / 'bundle.npz'),
      source=str(tmp_path / 'a.png'),
      heatmaps=True,
    ),
    str(tmp_path / 'predictions'),
  )
  assert sum(predicted['counts'].values()) == 1
  encoder = load_encoder(str(tmp_path / 'bundle' / 'bundle.npz'))
  with pytest.raises(ValueError, match='network vit; only the UNet'):
    torch_names.unet_encoder(encoder, 3)

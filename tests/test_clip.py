import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import baselines
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.methods import captions, clip
from micdiffrep_jax.models.vit import TextTransformer
from micdiffrep_jax.pretrain import train

# Captions 0 and 2 are equal, 4 is absent.
IDS = np.array([[30, 2, 31], [30, 3, 31], [30, 2, 31], [30, 4, 31], [0, 0, 0]])


@pytest.fixture(scope='module')
def phantom():
  return data.open_dataset('phantom:size_px=16,patients=60')


@pytest.fixture(scope='module')
def logits():
  return np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32) * 3


def test_softmax_loss_equals_a_loop(logits):
  def one_way(z):
    total = 0.0
    for i in range(4):
      p = np.exp(z[i, :4]) / np.exp(z[i, :4]).sum()
      twins = [j for j in range(4) if (IDS[i] == IDS[j]).all()]
      total -= sum(np.log(p[j]) for j in twins) / len(twins)
    return total / 4

  z = logits.astype(np.float64)
  want = (one_way(z) + one_way(z.T)) / 2
  found = clip.softmax_loss(jnp.asarray(logits), jnp.asarray(IDS))
  np.testing.assert_allclose(found, want, rtol=1e-5)


def test_sigmoid_loss_equals_a_loop(logits):
  total = 0.0
  for i in range(4):
    for j in range(4):
      z = 1 if (IDS[i] == IDS[j]).all() else -1
      total += np.log1p(np.exp(-z * float(logits[i, j])))
  found = clip.sigmoid_loss(jnp.asarray(logits), jnp.asarray(IDS))
  np.testing.assert_allclose(found, total / 4, rtol=1e-5)


@pytest.mark.parametrize('name', clip.CONTRASTS)
def test_images_without_a_caption_have_no_influence(logits, name):
  loss = clip.CONTRASTS[name].loss
  other = logits.copy()
  other[4], other[:, 4] = 7.0, -7.0
  a, gradient = jax.value_and_grad(loss)(jnp.asarray(logits), jnp.asarray(IDS))
  b = loss(jnp.asarray(other), jnp.asarray(IDS))
  np.testing.assert_allclose(a, b, rtol=1e-6)
  np.testing.assert_array_equal(gradient[4], 0)
  np.testing.assert_array_equal(gradient[:, 4], 0)
  nothing = loss(jnp.asarray(logits), jnp.zeros_like(IDS))
  assert float(nothing) == 0


def test_later_tokens_do_not_change_earlier_outputs():
  model = TextTransformer(32, 6, 16, 2, 2, 8)
  ids = np.array([[30, 2, 3, 31, 0, 0]])
  changed = np.array([[30, 2, 3, 31, 9, 8]])
  variables = jax.jit(model.init)(jax.random.key(0), ids)
  apply = jax.jit(model.apply)
  out, taps = apply(variables, ids)
  again, others = apply(variables, changed)
  # What pads a caption leaves its embedding alone.
  np.testing.assert_allclose(out, again, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    taps['block1'][:, :4], others['block1'][:, :4], rtol=1e-5, atol=1e-6
  )
  assert np.abs(taps['block1'][:, 4:] - others['block1'][:, 4:]).max() > 1e-3


def test_templates_read_labels_of_training_images_only(phantom):
  config = baselines.get_config('clip,test')
  rows = data.pretraining_rows(phantom, 'patient')
  texts = captions.read(config.captions, phantom, rows)
  labels = data.labels(phantom)
  assert all(
    text.endswith(phantom.classes[labels[i]].replace('_', ' '))
    for i, text in enumerate(texts)
    if text
  )
  assert {i for i, text in enumerate(texts) if text} == set(
    rows[labels[rows] >= 0].tolist()
  )
  method = clip.make(config, 16, 1)
  ids = method.side(phantom)['tokens']
  rest = np.setdiff1d(np.arange(len(ids)), rows)
  assert len(rest)
  assert not ids[rest].any()
  assert len(np.unique(ids[rows], axis=0)) == len(phantom.classes)
  assert method.facts['supervised_text'] is True


def test_captions_come_from_a_table_by_file(phantom, tmp_path):
  path = tmp_path / 'captions.csv'
  files = phantom.manifest['file'].tolist()
  rows = data.pretraining_rows(phantom, 'patient')
  with path.open('w', newline='') as f:
    writer = csv.writer(f)
    writer.writerow(('file', 'caption'))
    for number, i in enumerate(rows[:-1]):
      writer.writerow((files[i], f'finding {number % 3}, left'))
  config = baselines.get_config('clip,test')
  config.captions.template, config.captions.csv = '', str(path)
  method = clip.make(config, 16, 1)
  assert method.facts['supervised_text'] is False
  ids = method.side(phantom)['tokens']
  np.testing.assert_array_equal(ids[rows[0]], ids[rows[3]])
  assert (ids[rows[0]] != ids[rows[1]]).any()
  assert not ids[rows[-1]].any()
  path.write_text('file,caption\nno/such.png,a lesion\n')
  with pytest.raises(ValueError, match='0 different captions.*captions.csv'):
    method.side(phantom)
  path.write_text('name,text\n')
  with pytest.raises(ValueError, match='columns file and caption'):
    method.side(phantom)


@pytest.mark.parametrize(
  ('field', 'value', 'flag'),
  [
    ('captions.template', '', '--config.captions.csv'),
    ('captions.template', 'no place', '--config.captions.template'),
    ('contrast.loss', 'hinge', '--config.contrast.loss'),
    ('text.tokens', 'bytes', '--config.text.tokens'),
    ('text.heads', 3, '--config.text.heads'),
    ('text.length', 2, '--config.text.length'),
    ('model.patch', 5, '--config.model.patch'),
    ('model.heads', 3, '--config.model.heads'),
    ('model.activation', 'relu', '--config.model.activation'),
    ('model.out', 0, '--config.model.out'),
    ('accumulate', 2, '--config.accumulate'),
  ],
)
def test_bad_settings_are_refused_with_their_flag(field, value, flag):
  config = baselines.get_config('clip,test')
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=flag):
    clip.make(config, 16, 1)


@pytest.mark.slow
@pytest.mark.parametrize('name', clip.CONTRASTS)
def test_training_tells_captions_apart(phantom, name):
  """Overfits four images with captions of their own, by plain descent."""
  config = baselines.get_config('clip,test')
  config.contrast.loss = name
  config.augment.flip = 0.0
  method = clip.make(config, 16, 1)
  rows = np.flatnonzero(method.side(phantom)['tokens'].any(axis=1))[:4]
  batch = {
    'image': phantom.images[rows],
    'tokens': np.tile(np.arange(16), (4, 1)) * 0
    + np.array([[30, i + 2, 31, *[0] * 13] for i in range(4)]),
  }
  params, _ = jax.jit(method.init)(jax.random.key(0))

  @jax.jit
  def step(params, key):
    (value, _), gradient = jax.value_and_grad(method.loss, has_aux=True)(
      params, {}, batch, key
    )
    return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)

  values = []
  for i in range(40):
    value, params = step(params, jax.random.key(i))
    values.append(float(value))
  assert values[-1] < 0.6 * values[0]


@pytest.mark.slow
def test_a_run_is_flagged_and_its_encoder_loads(tmp_path, phantom):
  config = baselines.get_config('clip,test')
  config.steps, config.optim.warmup_steps = 2, 1
  config.monitor.probe_images = 0
  config.save_every = config.eval_every = 2
  results = train.run(config.lock(), str(tmp_path))
  assert results['dataset']['supervised_text'] is True
  encoder = encoders.load_encoder(str(tmp_path))
  assert encoder.info.facts['supervised_text'] is True
  taps = features.extract(
    encoder, phantom, np.arange(8), t=0, grid=2, batch_size=8
  )
  assert taps['block1'].shape == (8, 2, 2, 16)
  assert taps['embedding'].shape == (8, 1, 1, 8)

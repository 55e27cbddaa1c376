"""A frozen encoder and pictures whose worth is known, without training."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.bundle import classifier, fingerprints
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import prepare
from micdiffrep_jax.encoders import encoder
from micdiffrep_jax.methods.base import Method

SIZE = 16
PHANTOM = f'phantom:size_px={SIZE},patients=40,slices=3'


def fake_encoder(ds, split='patient', size=SIZE):
  """'image' holds the picture, 'mean' its brightness, 'noise' nothing."""

  def maps(variables, images, keys, t):
    x = images.astype(jnp.float32) / 255 * variables['eyes']
    draw = jax.vmap(lambda k: jax.random.normal(k, (8, 8, 1)))(keys)
    small = x.reshape(len(x), 8, size // 8, 8, size // 8, -1).mean((2, 4))
    return {
      'image': small + t / 1e3 * draw,
      'mean': jnp.broadcast_to(x.mean((1, 2), keepdims=True), small.shape),
      'noise': draw,
    }

  method = Method(
    init=lambda key: ({'eyes': jnp.float32(0)}, {}),  # random weights: blind
    loss=None,
    after=None,
    frozen=lambda params, extra: params,
    features=maps,
    validate=None,
    sample=None,
    layers=('noise', 'mean', 'image'),
    timesteps=100,
  )
  info = encoder.EncoderInfo(
    size,
    ds.info.channels,
    path='fake',
    step=1,
    images_seen=8,
    fingerprint=ds.fingerprint,
    split=split,
    split_hash=data.split_hash(ds, split),
  )
  variables = {'eyes': jnp.float32(1)}
  return encoder.Encoder(method, variables, ConfigDict({'model': 1}), info)


def quadrants():
  """The classes of a phantom, each a bright quadrant that moves a little."""
  real = data.open_dataset(prepare.resolve(PHANTOM))
  rng = np.random.default_rng(0)
  images = rng.integers(0, 120, real.images.shape).astype(np.uint8)
  for image, label in zip(images, data.labels(real)):
    y, x = 8 * (label // 2), 8 * (label % 2)
    y, x = np.array([y, x]) + rng.integers(-2, 3, 2)
    image[max(y, 0) : y + 8, max(x, 0) : x + 8] += 60
  return real._replace(images=images)


def use_fake(patch, ds):
  """Whatever opens a dataset or loads an encoder gets these."""
  patch.setattr(data, 'open_dataset', lambda *_: ds)
  patch.setattr(encoder, 'load_encoder', lambda path, step: fake_encoder(ds))


def classify(head, one, ds, rows):
  """Probabilities (len(rows), k) that a bundle of head and encoder gives."""
  info = one.info
  meta = classifier.Meta(ds.classes, info.size_px, info.channels, 0.5, '')
  model = classifier.assemble(one, head, meta, fingerprints.empty())
  return classifier.bundle_predict(model, ds.images[rows])


def study_config(module, **changes):
  """The test preset of a study in `configs`, on the fake encoder."""
  config = module.get_config('test')
  config.checkpoint = 'fake'
  config.data.path = PHANTOM
  config.floors = ('majority',)
  config.heads.epochs = 12
  config.update_from_flattened_dict(changes)
  return config.lock()


def gradient_flops(method, batch):
  """Of a compiled gradient of a method's loss, of nothing but shapes."""
  params, extra = jax.eval_shape(method.init, jax.random.key(0))
  gradient = jax.grad(lambda p, *a: method.loss(p, *a)[0])
  lowered = jax.jit(gradient).lower(params, extra, batch, jax.random.key(0))
  return lowered.compile().cost_analysis()['flops']

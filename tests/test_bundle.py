import zipfile

import jax
import numpy as np
import pytest
from scipy import special
import tiny_bundle

import micdiffrep_jax as mdr
from micdiffrep_jax.bundle import classifier, fingerprints
from micdiffrep_jax.data import duplicates
from micdiffrep_jax.encoders import encoder as encoders


def write(tmp_path, model, precision='float32'):
  path = str(tmp_path / 'bundle.npz')
  classifier.write(path, model, precision)
  return path


@pytest.mark.parametrize(
  'kind', ['mlp', pytest.param('kernel', marks=pytest.mark.slow)]
)
def test_a_bundle_read_again_predicts_the_same(tmp_path, kind):
  model, images = tiny_bundle.model(kind=kind), tiny_bundle.images(5)
  want = classifier.bundle_predict(model, images)
  for precision, tolerance in (
    ('float32', 0),
    ('float16', 5e-3),
    ('int8', 0.05),
  ):
    stored = classifier.load_bundle(write(tmp_path, model, precision))
    found = classifier.bundle_predict(stored, images)
    np.testing.assert_allclose(found, want, atol=tolerance)
    assert stored.classes == tiny_bundle.CLASSES
  assert np.ptp(want, axis=0).min() > 1e-3  # the images do differ


def committee():
  """Two heads of one encoder, on layers of their own."""
  other = tiny_bundle.model(layers=('down1_0',))
  return tiny_bundle.model()._replace(others=(other,))


def test_a_committee_says_the_mean_and_survives_its_file(tmp_path):
  model, images = committee(), tiny_bundle.images(5)
  each = [
    special.softmax(classifier.logits(one, images).astype(float) / 2.5, axis=1)
    for one in model.members
  ]
  assert np.abs(each[0] - each[1]).max() > 0.05
  want = classifier.bundle_predict(model, images)
  np.testing.assert_allclose(want, np.mean(each, 0))
  path = write(tmp_path, model)
  stored = classifier.load_bundle(path)
  np.testing.assert_array_equal(classifier.bundle_predict(stored, images), want)
  with pytest.raises(ValueError, match='committee of 2 encoders'):
    encoders.load_encoder(path)
  loaded = mdr.load(path)
  with pytest.raises(ValueError, match='committee of 2 encoders'):
    loaded.features(images)
  np.testing.assert_array_equal(loaded.predict_proba(images), want)


def test_every_member_of_a_committee_is_named():
  assert tiny_bundle.model().chosen['layers'] == ('down0_0',)
  named = [one['layers'] for one in committee().chosen['members']]
  assert named == [('down0_0',), ('down1_0',)]


@pytest.mark.parametrize('layer', ['down0_0', 'mid', 'up1_0'])
def test_weights_that_are_left_out_have_no_bearing(layer):
  """Poisoned with nan they would show; a sound subset must stay finite."""
  encoder = tiny_bundle.encoder()
  use = classifier.needed(encoder, [layer], tiny_bundle.SIZE, 1)
  leaves, tree = jax.tree.flatten(jax.device_get(encoder.variables))
  poisoned = [
    x if used else np.full_like(x, np.nan)
    for x, used in zip(leaves, use.values())
  ]
  images = tiny_bundle.images(1)

  def tap(leaves):
    keys = jax.random.split(jax.random.key(0), 1)
    variables = jax.tree.unflatten(tree, leaves)
    return encoder.method.features(variables, images, keys, 3)[layer]

  want, found = jax.jit(tap)(leaves), jax.jit(tap)(poisoned)
  np.testing.assert_array_equal(found, want)
  dropped = [name for name, used in use.items() if not used]
  assert any('out' in name for name in dropped)
  assert any('up0_1' in name for name in dropped)


def test_a_bundle_of_a_shallow_layer_is_smaller(tmp_path):
  sizes = {}
  for layer in ('down0_0', 'up0_1'):
    path = write(tmp_path, tiny_bundle.model(None, (layer,)))
    with zipfile.ZipFile(path) as z:
      sizes[layer] = [n for n in z.namelist() if n.startswith('encoder.')]
  assert set(sizes['down0_0']) < set(sizes['up0_1'])
  assert not any('up' in n or 'mid' in n for n in sizes['down0_0'])


def test_a_prediction_does_not_depend_on_its_company():
  """Up to rounding: 1e-5 on probabilities, in another place of the batch."""
  model, images = tiny_bundle.model(), tiny_bundle.images(70)
  together = classifier.bundle_predict(model, images)
  order = np.random.default_rng(0).permutation(70)
  shuffled = classifier.bundle_predict(model, images[order])
  np.testing.assert_allclose(shuffled, together[order], atol=1e-5)
  alone = classifier.bundle_predict(model, images[41:42])
  np.testing.assert_allclose(alone, together[41:42], atol=1e-5)


def test_probabilities_are_softmax_of_logits_at_the_temperature():
  model, images = tiny_bundle.model(), tiny_bundle.images(4)
  raw = classifier.logits(model, images).astype(np.float64)
  want = special.softmax(raw / 2.5, axis=1)
  np.testing.assert_allclose(classifier.bundle_predict(model, images), want)


def test_fingerprints_survive_the_file(tmp_path):
  images = tiny_bundle.images(6)
  known = fingerprints.Fingerprints(
    np.array([3, 2**63 + 1], np.uint64),
    duplicates.crops(images, np.arange(6)),
    fingerprints.shrink(images),
  )
  model = tiny_bundle.model()._replace(fingerprints=known)
  stored = classifier.load_bundle(write(tmp_path, model)).fingerprints
  np.testing.assert_array_equal(stored.hashes, known.hashes)
  grey = stored.crops.astype(int) - known.crops
  assert np.abs(grey).max() <= 4
  grey = stored.small.astype(int) - known.small
  assert np.abs(grey).max() <= 8


def test_fingerprints_of_older_files_open():
  known = fingerprints.empty()._replace(hashes=np.array([3], np.uint64))
  arrays = known.arrays()
  del arrays['fingerprints.small']
  found = fingerprints.Fingerprints.from_arrays(arrays)
  assert found.recognises == 'equal pixels only'
  assert found.small.shape == (0, 24, 24)


def test_a_damaged_file_is_refused(tmp_path):
  write(tmp_path, tiny_bundle.model())
  whole = (tmp_path / 'bundle.npz').read_bytes()
  for damaged in (
    whole[: len(whole) // 2],
    whole[:400] + bytes([whole[400] ^ 1]) + whole[401:],
    b'not a bundle',
    b'',
  ):
    (tmp_path / 'bad.npz').write_bytes(damaged)
    with pytest.raises(ValueError, match='damaged'):
      classifier.load_bundle(str(tmp_path / 'bad.npz'))
  with pytest.raises(ValueError, match=r'--config\.bundle=FILE'):
    classifier.load_bundle(str(tmp_path / 'absent.npz'))


def test_a_bundle_is_no_dataset_and_is_told_to_be_one(tmp_path):
  path = write(tmp_path, tiny_bundle.model())
  with pytest.raises(ValueError, match='is a bundle, no folder of a prepared'):
    mdr.open_dataset(path)
  (tmp_path / 'notes.txt').write_text('x')
  with pytest.raises(ValueError, match='is a file, no folder of a prepared'):
    mdr.open_dataset(tmp_path / 'notes.txt')


def test_an_unknown_precision_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"'int4'.*--config\.precision"):
    write(tmp_path, tiny_bundle.model(), 'int4')
  assert not list(tmp_path.iterdir())


def test_a_weight_too_large_for_float16_is_refused(tmp_path):
  model = tiny_bundle.model()
  params = {**model.head.params, 'M': model.head.params['M'] * 1e6}
  model = model._replace(head=model.head._replace(params=params))
  with pytest.raises(ValueError, match=r'--config\.precision=float32'):
    write(tmp_path, model, 'float16')


def test_images_of_another_shape_are_refused():
  with pytest.raises(ValueError, match=r'\(16, 16, 1\)'):
    classifier.bundle_predict(
      tiny_bundle.model(), np.zeros((1, 8, 8, 1), np.uint8)
    )

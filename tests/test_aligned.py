"""A teacher's maps beside the denoising loss."""

import json
import os

from fakes import PHANTOM, fake_encoder, gradient_flops
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from configs import baselines
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import prepare
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.generate import sample
from micdiffrep_jax.methods import ddpm, ddpm_aligned, views
from micdiffrep_jax.methods.base import to_float
from micdiffrep_jax.pretrain import teacher as teachers
from micdiffrep_jax.pretrain import train
from micdiffrep_jax.run import devices
from micdiffrep_jax.studies import table1

D = 3  # features of the maps below


def config(**changes):
  c = baselines.get_config('ddpm_aligned,test')
  c.update_from_flattened_dict(
    {
      'teacher.shape': (4, 4, D),
      'teacher.name': 'Miss Fake, image',
      'teacher.flags': ('external',),
      **changes,
    }
  )
  return c


def rows(b=16, seed=0):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.integers(0, 256, (b, 16, 16, 1)).astype(np.uint8),
    'teacher': rng.normal(size=(b, 4, 4, D)).astype(np.float16),
  }


@pytest.fixture(scope='module')
def method():
  return ddpm_aligned.make(config(**{'augment.flip': 0.0}), 16, 1)


@pytest.fixture(scope='module')
def state(method):
  return jax.jit(method.init)(jax.random.key(0))


@pytest.fixture(scope='module')
def loss(method):
  return jax.jit(method.loss)


@pytest.fixture(scope='module')
def phantom():
  return data.open_dataset(prepare.resolve(PHANTOM))


# The loss.


def test_what_points_where_the_teacher_does_is_aligned():
  seen = np.random.default_rng(0).normal(size=(2, 3, 3, 5)).astype(np.float32)
  lengths = np.random.default_rng(1).uniform(0.5, 2, (2, 3, 3, 1))
  same = ddpm_aligned.misalignment(seen * lengths.astype(np.float32), seen)
  np.testing.assert_allclose(same, 0, atol=1e-6)
  np.testing.assert_allclose(
    ddpm_aligned.misalignment(-seen, seen), 2, atol=1e-6
  )
  other = np.random.default_rng(2).normal(size=seen.shape).astype(np.float32)
  want = [
    1
    - np.mean(
      [
        np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(x.reshape(9, 5), y.reshape(9, 5), strict=True)
      ]
    )
    for x, y in zip(seen, other, strict=True)
  ]
  np.testing.assert_allclose(
    ddpm_aligned.misalignment(seen, other), want, rtol=1e-4
  )


def test_cells_are_averages_of_equal_squares():
  x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
  found = ddpm_aligned.to_cells(jnp.asarray(x), 2)
  np.testing.assert_allclose(found[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])


def test_the_loss_is_the_sum_of_both(loss, state):
  value, (_, metrics) = loss(*state, rows(), jax.random.key(1))
  # It outputs zero, so its error is the variance of the noise.
  assert abs(float(metrics['denoise']) - 1) < 0.1
  assert 0.5 < float(metrics['align']) < 1.5  # random directions
  np.testing.assert_allclose(
    value, metrics['denoise'] + 0.5 * metrics['align'], rtol=1e-5
  )


def test_maps_are_flipped_with_their_images(loss, state):
  def aligned(f, batch):
    return float(f(*state, batch, jax.random.key(1))[1][1]['align'])

  flipping = ddpm_aligned.make(config(**{'augment.flip': 1.0}), 16, 1)
  batch = rows()
  mirrored = {k: v[:, :, ::-1] for k, v in batch.items()}
  found = aligned(jax.jit(flipping.loss), batch)
  assert found == pytest.approx(aligned(loss, mirrored), rel=1e-5)
  torn = {**mirrored, 'teacher': batch['teacher']}
  assert abs(found - aligned(loss, torn)) > 1e-4


def test_maps_of_images_that_were_flipped_are_flipped():
  x = np.random.default_rng(0).uniform(-1, 1, (64, 1, 4, 1)).astype(np.float32)
  one = config(**{'augment.brightness': 0.1}).augment
  _, done = views.augmented(jax.random.key(0), jnp.asarray(x), one)
  plain = config().augment
  turned, done_too = views.augmented(jax.random.key(0), jnp.asarray(x), plain)
  for told in (done, done_too):
    found = ddpm_aligned.flip_maps(told, jnp.asarray(x))
    np.testing.assert_array_equal(found, turned)
  kept = (np.asarray(turned) == x).all((1, 2, 3))
  assert 16 < kept.sum() < 48


def test_what_was_done_is_told(state):
  told = ddpm_aligned.make(config(**{'recipe.tell_augment': True}), 16, 1)
  start = jax.eval_shape(told.init, jax.random.key(0))
  assert 'told' in start[0]['net']
  assert 'told' not in state[0]['net']
  jax.eval_shape(told.loss, *start, rows(), jax.random.key(1))


def test_features_samples_and_validation_are_those_of_a_ddpm(method, state):
  base = ddpm.make(config(), 16, 1)
  assert (method.layers, method.decoder) == (base.layers, base.decoder)
  assert jax.tree.structure(method.frozen(*state)) == jax.tree.structure(
    jax.eval_shape(base.init, jax.random.key(0))[0]
  )
  assert method.row['teacher'].shape == (4, 4, D)


def test_a_teacher_is_named_and_its_flags_are_the_pupils(method):
  assert method.facts == {'teacher': 'Miss Fake, image', 'external': True}
  assert table1.flags(method.facts) == [
    'external',
    'teacher:Miss_Fake,_image',
  ]


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'teacher.shape': ()}, '--config.teacher.checkpoint'),
    ({'teacher.shape': (3, 3, 4)}, '3 x 3 cells.*--config.teacher.grid'),
    ({'align.tap': 'down1'}, "'down1_0'.*--config.align.tap"),
    ({'align.tap': 'up1_0'}, '--config.align.tap'),
    ({'align.weight': 0.0}, '--config.align.weight'),
    ({'align.hidden': 0}, '--config.align.hidden'),
    ({'align.tap': 'down0_0+'}, '--config.align.tap'),
    ({'align.tap': 'mid+mid'}, 'twice.*--config.align.tap'),
    ({'align.denoise_every': -1}, '--config.align.denoise_every'),
    ({'align.denoise_every': 5}, '--config.align.denoise_every'),
    (
      {'align.denoise_every': 4, 'align.t_limit': 0},
      '--config.align.t_limit',
    ),
    (
      {'align.denoise_every': 0, 'align.t_limit': 1001},
      '--config.align.t_limit',
    ),
    ({'recipe.crop_px': 8}, '--config.recipe.crop_px=0'),
    ({'recipe.blank_px': 8}, '--config.recipe.blank_px=0'),
    ({'recipe.levels_px': 8}, '--config.recipe.levels_px=0'),
    ({'recipe.self_condition': 'first'}, 'recipe.self_condition=own'),
    ({'augment.rotate_deg': 5.0}, '--config.augment.rotate_deg=0'),
    ({'augment.scale': 0.1}, '--config.augment.scale=0'),
    ({'augment.shift': 0.1}, '--config.augment.shift=0'),
  ],
)
def test_bad_settings_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    ddpm_aligned.make(config(**change), 16, 1)


# Images that are only aligned.


def flops(c):
  return gradient_flops(ddpm_aligned.make(c, 16, 1), rows())


def test_the_spared_are_all_but_each_so_many():
  x = jnp.arange(12).reshape(6, 2)
  np.testing.assert_array_equal(
    ddpm_aligned.spared(x, 3), x[jnp.array([1, 2, 4, 5])]
  )
  np.testing.assert_array_equal(ddpm_aligned.spared(x, 1), x[:0])
  np.testing.assert_array_equal(ddpm_aligned.spared(x, 0), x)


@pytest.mark.parametrize('every', [0, 1, 4])
def test_each_image_is_aligned_with_its_own_map(every, state):
  # A map that is torn from its image counts, whether that is denoised or not.
  changes = {'align.denoise_every': every, 'augment.flip': 0.0}
  made = ddpm_aligned.make(config(**changes), 16, 1)
  loss = jax.jit(made.loss)
  batch = rows()

  def aligned(maps):
    args = (*state, {**batch, 'teacher': maps}, jax.random.key(1))
    return float(loss(*args)[1][1]['align'])

  whole = aligned(batch['teacher'])
  for i in range(16):
    turned = batch['teacher'].copy()
    turned[i] *= -1  # its cosine changes its sign
    assert abs(aligned(turned) - whole) > 1e-5
  turned = -batch['teacher']
  assert aligned(turned) == pytest.approx(2 - whole, rel=1e-4)


@pytest.mark.slow
def test_an_image_that_is_only_aligned_costs_no_decoder():
  all_of_them, some, none = (
    flops(config(**{'align.denoise_every': n})) for n in (1, 4, 0)
  )
  assert none < some < all_of_them
  assert none < 0.5 * all_of_them


@pytest.mark.slow
def test_a_batch_over_eight_devices_is_spared_alike(state):
  made = ddpm_aligned.make(config(**{'align.denoise_every': 4}), 16, 1)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ('data',))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  copied = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  batch = rows(32)
  loss = jax.jit(made.loss)
  found = loss(
    *jax.device_put(state, copied),
    jax.device_put(batch, split),
    jax.random.key(1),
  )
  want = loss(*state, batch, jax.random.key(1))
  assert float(found[0]) == pytest.approx(float(want[0]), rel=1e-5)


def test_alignment_alone_has_no_decoder_and_says_so():
  made = ddpm_aligned.make(config(**{'align.denoise_every': 0}), 16, 1)
  assert made.sample is None
  assert made.layers == ('down0_0', 'down1_0', 'mid')
  assert made.metrics == ('loss', 'align')
  assert made.facts['aligned_alone'] is True


def test_deeper_layers_are_aligned_with_coarser_maps():
  made = ddpm_aligned.make(config(**{'align.tap': 'down0_0+mid'}), 16, 1)
  params, extra = jax.jit(made.init)(jax.random.key(0))
  assert {'projector', 'projector_mid'} < set(params)
  loss = jax.jit(jax.grad(made.loss, has_aux=True))
  gradient, (_, metrics) = loss(params, extra, rows(), jax.random.key(1))
  for name in ('projector', 'projector_mid'):
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient[name]))
  assert 0.5 < float(metrics['align']) < 1.5


def test_runs_from_before_any_were_spared_go_on():
  old = config().to_dict()
  del old['align']['denoise_every'], old['align']['t_limit']
  found = encoders.config_from_json(old).align.to_dict()
  assert found == config().align.to_dict()


@pytest.mark.parametrize('size', ['paper', 'tiny'])
@pytest.mark.parametrize('name', ['ddpm_aligned', 'aligned_alone'])
def test_layers_fit_maps_of_the_grid_that_is_asked_for(name, size):
  c = baselines.get_config(f'{name},{size}')
  c.teacher.shape = (c.teacher.grid, c.teacher.grid, D)
  ddpm_aligned.make(c, {'paper': 112, 'tiny': 64}[size], 1)


def test_a_run_without_a_validation_loss_is_not_stopped_by_it(phantom):
  made = ddpm_aligned.make(config(**{'align.denoise_every': 0}), 16, 1)
  c = config(**{'stop.metric': 'val_loss'})
  with pytest.raises(ValueError, match='--config.stop.metric'):
    train.check_stop(made, c, phantom)


# The teacher.


def run_config(**changes):
  c = baselines.get_config('ddpm_aligned,test')
  c.update_from_flattened_dict(
    {
      'data.path': PHANTOM,
      'teacher.checkpoint': 'fake',
      'teacher.layer': 'image',
      **changes,
    }
  )
  return c


@pytest.fixture
def faked(phantom, monkeypatch):
  """The fake encoder is loaded, and how many images it is shown is counted."""
  shown = []
  extract = features.extract

  def counted(encoder, dataset, rows, *args, **kwargs):
    shown.append(len(rows))
    return extract(encoder, dataset, rows, *args, **kwargs)

  monkeypatch.setattr(features, 'extract', counted)
  monkeypatch.setattr(
    encoders, 'load_encoder', lambda path, step=None: fake_encoder(phantom)
  )
  return shown


def small(images):
  """What the fake sees: averages of 2 x 2 pixels, in [0, 1]."""
  b = len(images)
  x = images.astype(np.float32) / 255
  return x.reshape(b, 8, 2, 8, 2, 1).mean((2, 4))


def test_maps_are_read_once_and_are_the_teachers(faked, phantom, tmp_path):
  train_rows = data.pretraining_rows(phantom, 'patient')
  for _ in range(2):  # two runs
    teacher = teachers.open_teacher(run_config(), phantom)
    assert teacher.shape == (8, 8, 1)
    maps = teacher.read(train_rows, str(tmp_path))
    assert isinstance(maps, np.memmap)
    assert (maps.dtype, maps.shape) == (
      np.float16,
      (len(phantom.images), 8, 8, 1),
    )
    np.testing.assert_allclose(
      maps[train_rows], small(phantom.images[train_rows]), atol=1e-3
    )
  assert faked == [len(train_rows)]
  rest = np.setdiff1d(np.arange(len(maps)), train_rows)
  assert len(rest)
  assert not np.asarray(maps[rest]).any()


def test_maps_are_pooled_to_the_cells_asked_for(faked, phantom, tmp_path):
  teacher = teachers.open_teacher(run_config(**{'teacher.grid': 4}), phantom)
  maps = teacher.read(np.arange(8), str(tmp_path))
  assert teacher.shape == maps.shape[1:] == (4, 4, 1)
  want = phantom.images[:8].reshape(8, 4, 4, 4, 4, 1).mean((2, 4)) / 255
  np.testing.assert_allclose(maps[:8], want, atol=1e-3)


def test_maps_travel_with_their_images(faked, phantom, tmp_path):
  rows = data.pretraining_rows(phantom, 'patient')
  teacher = teachers.open_teacher(run_config(), phantom)
  method = ddpm_aligned.make(teacher.fill_in(run_config()), 16, 1)
  unwritable = phantom._replace(path=str(tmp_path / 'absent'))
  side = train._side(method, teacher, unwritable, rows, str(tmp_path))
  mesh = devices.make_mesh()
  batches = train._batches(side, phantom, rows, run_config(), 3, mesh)
  for _ in range(2):
    batch = jax.device_get(next(batches))
    np.testing.assert_allclose(
      batch['teacher'], small(batch['image']), atol=1e-3
    )


def test_what_is_known_of_a_teacher_is_saved_with_the_run(faked, phantom):
  given = run_config()
  told = teachers.open_teacher(given, phantom).fill_in(given.lock())
  assert told.teacher.shape == (8, 8, 1)
  assert told.teacher.name == 'encoder of fake, image'
  assert given.teacher.shape == ()
  # As a checkpoint holds it; no teacher is at hand where features are read.
  again = encoders.config_from_json(json.loads(told.to_json()))
  made = encoders.make_method(again, 16, 1)
  assert made.facts == {'teacher': 'encoder of fake, image'}


def test_a_teacher_that_had_labels_makes_pupils_that_had(phantom, monkeypatch):
  labelled = fake_encoder(phantom)
  object.__setattr__(
    labelled.method, 'facts', {'supervised': True, 'contrast_alone': True}
  )
  monkeypatch.setattr(encoders, 'load_encoder', lambda *_: labelled)
  teacher = teachers.open_teacher(run_config(), phantom)
  made = ddpm_aligned.make(teacher.fill_in(run_config()), 16, 1)
  assert made.facts['supervised'] is True
  assert 'contrast_alone' not in made.facts  # the pupil denoises


def test_a_teacher_that_may_have_seen_test_images_is_refused(faked, phantom):
  # The fake was trained on the split `patient`, and spared no other.
  for split, spare in (('grouped', ()), ('patient', ('paper',))):
    c = run_config(**{'data.split': split, 'data.spare': spare})
    with pytest.raises(ValueError, match='test images of split.*--config.data'):
      teachers.open_teacher(c, phantom)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'teacher.checkpoint': ''}, '--config.teacher.features'),
    ({'teacher.features': 'x.npz'}, 'give one of them'),
    ({'teacher.layer': 'imagen'}, "'image'.*--config.teacher.layer"),
    ({'teacher.timestep': 100}, '--config.teacher.timestep'),
    ({'teacher.grid': 0}, '--config.teacher.grid'),
  ],
)
def test_a_teacher_that_cannot_teach_is_refused(faked, phantom, change, words):
  with pytest.raises(ValueError, match=words):
    teachers.open_teacher(run_config(**change), phantom)


# A table of features.


def table(tmp_path, ids, found, **more):
  path = str(tmp_path / 'features.npz')
  np.savez(path, id=ids, features=found, **more)
  return {'teacher.checkpoint': '', 'teacher.features': path}


def test_a_table_is_laid_beside_its_images(phantom, tmp_path):
  ids = phantom.manifest['id']
  order = np.random.default_rng(0).permutation(len(ids))
  found = np.random.default_rng(1).normal(size=(len(ids), 4, 4, 6))
  given = table(tmp_path, ids[order], found[order].astype(np.float32))
  rows = data.pretraining_rows(phantom, 'patient')
  want = found.reshape(-1, 2, 2, 2, 2, 6).mean((2, 4))
  for _ in range(2):
    teacher = teachers.open_teacher(
      run_config(**given, **{'teacher.grid': 2}), phantom
    )
    maps = teacher.read(rows, str(tmp_path / 'maps'))
    assert teacher.name == 'features.npz'
    assert teacher.shape == maps.shape[1:] == (2, 2, 6)
    np.testing.assert_allclose(maps[rows], want[rows], atol=2e-3)
  assert len(os.listdir(tmp_path / 'maps')) == 1


def test_vectors_are_maps_of_one_cell(phantom, tmp_path):
  ids = phantom.manifest['id']
  found = np.random.default_rng(1).normal(size=(len(ids), 6))
  c = run_config(**table(tmp_path, ids, found))
  assert teachers.open_teacher(c, phantom).shape == (1, 1, 6)


def test_a_table_that_lacks_images_or_has_another_form_is_refused(
  phantom, tmp_path
):
  ids, rows = phantom.manifest['id'], data.pretraining_rows(phantom, 'patient')
  n = len(ids)

  def opened(ids, found):
    c = run_config(**table(tmp_path, ids, found))
    return teachers.open_teacher(c, phantom)

  few = np.setdiff1d(np.arange(n), rows[:2])
  lacking = opened(ids[few], np.ones((len(few), 6)))
  with pytest.raises(ValueError, match=r'lacks 2 of .*--config.teacher'):
    lacking.read(rows, str(tmp_path))
  for found in (
    np.ones((n, 2, 3, 6)),
    np.ones((n, 6), int),
    np.ones((n - 1, 6)),
    np.full((n, 6), 1e6),
    np.full((n, 6), np.nan),
  ):
    with pytest.raises(ValueError, match='--config.teacher.features'):
      opened(ids, found)
  with pytest.raises(ValueError, match='--config.teacher.grid'):
    opened(ids, np.ones((n, 9, 9, 2)))
  (tmp_path / 'features.npz').write_text('no archive')
  c = run_config(
    **{'teacher.checkpoint': '', 'teacher.features': f'{tmp_path}/features.npz'}
  )
  with pytest.raises(ValueError, match='no .npz.*--config.teacher.features'):
    teachers.open_teacher(c, phantom)


# A run.


@pytest.mark.slow
def test_a_run_is_flagged_resumes_and_generates(
  faked, phantom, tmp_path, monkeypatch
):
  loader = encoders._of_run
  monkeypatch.setattr(train, 'folder_of', lambda *_: str(tmp_path / 'maps'))
  c = run_config(
    steps=2,
    log_every=1,
    save_every=1,
    eval_every=2,
    **{'monitor.probe_images': 0},
  ).lock()
  results = train.run(c, str(tmp_path / 'run'))
  assert results['dataset']['teacher'] == 'encoder of fake, image'
  assert np.isfinite(results['align'])
  assert results['config']['teacher']['shape'] == []  # as it was given
  again = train.run(c, str(tmp_path / 'run'))
  assert again['align'] == results['align']
  assert len(faked) == 1
  encoder = loader(str(tmp_path / 'run'), None)
  assert encoder.info.facts['teacher'] == 'encoder of fake, image'
  sampling = ConfigDict({'checkpoint': 'run', 'images': 0})
  with pytest.raises(ValueError, match='images=0'):  # past who may generate
    sample.check(sampling, encoder)
  x = to_float(jnp.asarray(phantom.images[:8]))
  taps = sample.denoiser_of(encoder).apply(
    encoder.variables, x, jnp.zeros(8, jnp.int32)
  )[1]
  assert taps['down1_0'].shape == (8, 8, 8, 16)

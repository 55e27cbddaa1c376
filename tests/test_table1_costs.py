"""What Table 1 says of a method beside its accuracy."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from configs import baselines, pretrain
from micdiffrep_jax.draw import page
from micdiffrep_jax.draw.result import Run
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.methods import METHODS
from micdiffrep_jax.models import resnet, vit
from micdiffrep_jax.run import files
from micdiffrep_jax.studies import page_table1, table1

SIZE = 16


def config_of(name, **changes):
  config = (
    pretrain.get_config('test')
    if name == 'ddpm'
    else baselines.get_config(f'{name},test')
  )
  config.update_from_flattened_dict({'steps': 4, **changes})
  return config


def encoder_of(name, **changes):
  config = config_of(name, **changes)
  method = METHODS[config.method](config, SIZE, 1)
  variables = jax.eval_shape(
    lambda key: method.frozen(*method.init(key)), jax.random.key(0)
  )
  info = encoders.EncoderInfo(SIZE, 1, images_seen=64)
  return encoders.Encoder(method, variables, config, info)


def parameters(encoder, layers=()):
  return table1.parameters(encoder, layers or encoder.method.layers)


def parameters_of(model):
  x = jnp.zeros((1, SIZE, SIZE, 1))
  params = jax.eval_shape(model.init, jax.random.key(0), x)['params']
  return sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize('name', ['moco', 'byol', 'supervised'])
def test_an_encoder_is_the_resnet_alone(name):
  want = parameters_of(resnet.ResNet((1, 1, 1), False, 8, 'stride1'))
  assert parameters(encoder_of(name)) == want


def test_an_encoder_of_a_labelled_vit_is_that_of_mae():
  assert parameters(encoder_of('supervised_vit')) == parameters(
    encoder_of('mae')
  )


def test_an_encoder_of_mae_has_no_decoder():
  assert parameters(encoder_of('mae')) == parameters_of(
    vit.Encoder(16, 2, 2, 4)
  )
  wide = encoder_of('mae', **{'mae.depth': 3})
  assert parameters(wide) == parameters(encoder_of('mae'))


def test_a_denoiser_counts_the_way_up_where_heads_read_it():
  encoder = encoder_of('ddpm')
  whole = sum(x.size for x in jax.tree.leaves(encoder.variables))
  down = parameters(encoder, ('down0_0', 'mid'))
  assert down < 0.6 * whole
  # But for the convolution that leads out, behind all layers.
  assert down < 0.9 * parameters(encoder) < parameters(encoder) < whole


def test_flops_of_a_labelled_step_are_those_of_its_convolutions():
  # Multiply-adds of 3 x 3 and 1 x 1 (skip) convolutions at 16, 8 and 4 px.
  madds = 16**2 * 9 * (1 * 8 + 2 * 8 * 8)
  madds += 8**2 * (9 * (8 * 16 + 16 * 16) + 8 * 16)
  madds += 4**2 * (9 * (16 * 32 + 32 * 32) + 16 * 32)
  # Forward, and backward to inputs and to weights; norms and augmentation add.
  found = table1.flops_per_image(encoder_of('supervised'))
  assert found == pytest.approx(3 * 2 * madds, rel=0.3)


@pytest.mark.slow
def test_flops_of_captions_grow_with_the_text_tower():
  one, three = (
    table1.flops_per_image(encoder_of('clip', **{'text.depth': depth}))
    for depth in (1, 3)
  )
  length, d = 16, 16
  block = 12 * length * d * d + 2 * length * length * d  # multiply-adds
  assert three - one == pytest.approx(2 * 3 * 2 * block, rel=0.3)


@pytest.mark.parametrize(
  ('name', 'flags'),
  [
    ('ddpm', ()),
    pytest.param('ddpm_contrast', ('contrast',), marks=pytest.mark.slow),
    ('moco', ()),
    ('clip', ('supervised_text',)),
    ('supervised', ('supervised',)),
  ],
)
def test_flags_tell_what_a_method_had_of_the_labels(
  name, flags, tmp_path, monkeypatch
):
  encoder = encoder_of(name)
  encoder = encoder._replace(
    info=dataclasses.replace(encoder.info, path=str(tmp_path))
  )
  monkeypatch.setattr(
    table1.checkpoints, 'find', lambda path: (f'{path}/checkpoints', 4)
  )
  found = table1.cost(encoder)
  assert found.flags == flags
  assert found.parameters == parameters(encoder)
  assert found.training_s is None


def results():
  """Two methods, as their probes leave them."""
  value = {'value': 0.5, 'low': 0.4, 'high': 0.6}
  rows = {
    name: {'test': {'all': {'accuracy': value}}}
    for name in ('knn', 'random/knn', 'floor/majority')
  }
  costs = {
    'supervised': page_table1.Cost(
      images_drawn=6400,
      training_s=1234.4,
      flops_per_image=2.5e9,
      parameters=3_000_000,
      flags=('supervised',),
    ),
    'external': page_table1.Cost(
      images_drawn=0,
      training_s=None,
      flops_per_image=None,
      parameters=40_000,
      flags=('external', 'imagenet_supervised'),
    ),
  }
  cells = {name: {'grouped': table1.Cell({'rows': rows}, '')} for name in costs}
  return {
    'table': table1.rows_of(cells, costs, 'knn'),
    'costs': files.plain(costs),
    'comparisons': [],
    'splits': ['grouped'],
    'ours': 'ddpm',
    'headline': 'knn',
  }


def test_costs_and_flags_stand_beside_trained_rows_only():
  for line in results()['table']:
    mine = line['row'] == 'knn'
    assert bool(line['flags']) == mine
    seconds = 1234.4 if mine and line['method'] == 'supervised' else None
    assert line['training_s'] == seconds
  flags = {x['flags'] for x in results()['table']}
  assert flags == {'', 'supervised', 'external imagenet_supervised'}


def test_the_text_names_flags_and_costs():
  blocks = page_table1.blocks(Run('table1', '', results()))
  text = page.markdown('', '', [page.Section('', blocks)])
  assert '| supervised | - | 50.0 (40.0 to 60.0) |' in text
  assert '| supervised, random weights | - | 50.0 (40.0 to 60.0) |' in text
  assert '| supervised | supervised | 6,400 | 1,234 | 2.50 | 3.00 |' in text
  assert '| external | external, imagenet_supervised | 0 | - | - | 0.04 |' in (
    text
  )


def test_the_picture_names_flags(monkeypatch):
  drawn = []
  monkeypatch.setattr(table1.plots, 'intervals', lambda *a: drawn.append(a))
  monkeypatch.setattr(table1.plots, 'save', lambda *_: None)
  table1.draw('', results())
  rows, main, _ = drawn[0]
  assert main == 'knn'
  assert [title for title, _, _ in rows] == [
    'supervised, nearest neighbours, all layers',
    'supervised, random weights: nearest neighbours, all layers',
    'external (imagenet_supervised), nearest neighbours, all layers',
    'external, random weights: nearest neighbours, all layers',
    'majority class',
    'majority class',
  ]

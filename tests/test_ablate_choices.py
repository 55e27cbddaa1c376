"""What a timestep study chooses, draws as a curve, and refuses."""

import dataclasses

from fakes import fake_encoder, quadrants, study_config, use_fake
import pandas as pd
import pytest

from configs import ablate as ablate_config
from micdiffrep_jax.encoders import features
from micdiffrep_jax.studies import ablate, grid


@pytest.fixture(scope='module')
def ds():
  return quadrants()


def get_config(**changes):
  return study_config(ablate_config, **changes)


def scored(kind='linear', layers=('a',), timestep='1', seed=0, score=0.5):
  return {
    'kind': kind,
    'part': 'concat' if len(layers) > 1 else 'single',
    'layers': '+'.join(layers),
    'timestep': timestep,
    'grid': 1,
    'learning_rate': 1e-2,
    'weight_decay': 0.0,
    'seed': seed,
    'width': 8,
    'accuracy': score,
    'balanced_accuracy': score / 2,
  }


def test_fused_timesteps_get_rows_of_their_own():
  heads = [
    scored(score=0.5),
    scored(timestep='51', score=0.6),
    scored(timestep='1+51', score=0.9),
    scored('mlp', ('a', 'b'), '1+51', score=0.8),
  ]
  averaged = grid.average(pd.DataFrame(heads), 'accuracy')
  chosen = grid.choose(averaged, ('linear', 'mlp'))
  assert set(chosen) == {
    'linear_single',
    'fused_linear_single',
    'fused_mlp_concat',
  }
  assert chosen['linear_single'].spot.timestep == 51
  assert chosen['fused_mlp_concat'].spot.timestep == (1, 51)


def test_a_curve_shows_the_best_setting_and_its_spread_over_seeds():
  heads = [scored(seed=s, score=v) for s, v in enumerate((0.4, 0.5, 0.6))]
  heads += [
    scored(seed=s, score=0.45) | {'learning_rate': 1e-3} for s in range(3)
  ]
  found = ablate.best_by_timestep(pd.DataFrame(heads), 'accuracy')
  mean, low, high = found['1']
  assert mean == pytest.approx(0.5)
  # t(0.975, 2 degrees of freedom) = 4.3027, from a printed table.
  assert high - mean == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
  assert mean - low == pytest.approx(high - mean)
  assert ablate.band([0.3]) == (0.3, 0.3, 0.3)
  assert ablate.band([0.9, 1.0])[2] == 1.0


def test_taps_choose_the_encoder_or_the_decoder(ds):
  names = ('down0_0', 'down1_0', 'mid', 'up1_0', 'up0_0')
  method = dataclasses.replace(
    fake_encoder(ds).method, layers=names, decoder=names[3:]
  )
  chosen = {
    taps: ablate.choose_layers(method, get_config(taps=taps))
    for taps in ablate.TAPS
  }
  assert chosen['all'] == names
  assert chosen['encoder'] == names[:3]
  assert chosen['decoder'] == names[3:]


def test_features_that_do_not_fit_are_refused_before_the_first_pass(
  tmp_path,
  ds,
):
  encoder = fake_encoder(ds)
  feature_fn = features.make_feature_fn(encoder.method, ('noise', 'mean'), 2)
  # Two layers of one channel on 2 x 2 cells, 2 bytes each.
  assert ablate.size_bytes(feature_fn, encoder, 100) == 100 * 2 * 4 * 2
  with pytest.raises(ValueError, match=r'--config\.timesteps'):
    ablate.check_space(str(tmp_path), 2**50, 2, 100)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'taps': 'decodr'}, r'--config\.taps'),
    ({'taps': 'decoder'}, r'--config\.taps=all'),
    ({'taps': 'encoder', 'layers': ('image',)}, r'--config\.layers'),
    ({'search_seeds': ()}, r'--config\.search_seeds'),
    ({'fused': ('1,51',)}, r'--config\.fused'),
    ({'fused': ('1+100',)}, r'--config\.timesteps'),
  ],
)
def test_a_bad_config_is_refused_with_its_flag(
  tmp_path,
  monkeypatch,
  ds,
  changes,
  words,
):
  use_fake(monkeypatch, ds)
  with pytest.raises(ValueError, match=words):
    ablate.run(get_config(**changes), str(tmp_path))

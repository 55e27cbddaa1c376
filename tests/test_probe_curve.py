"""Accuracy against images drawn, on a fake encoder."""

import dataclasses
import json
import os

from fakes import fake_encoder, quadrants, study_config
import pytest

from configs import probe_curve as curve_config
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders import encoder
from micdiffrep_jax.studies import curve as probe_curve


@pytest.mark.slow
def test_the_curve_goes_over_images_drawn_and_tests_nothing(
  tmp_path,
  monkeypatch,
):
  ds = quadrants()

  def load(path, step):
    one = fake_encoder(ds)
    info = dataclasses.replace(one.info, step=step, images_seen=32 * step)
    return one._replace(info=info)

  monkeypatch.setattr(data, 'open_dataset', lambda *_: ds)
  monkeypatch.setattr(encoder, 'load_encoder', load)
  monkeypatch.setattr(probe_curve, 'kept_steps', lambda *_: [5, 9])
  config = study_config(curve_config, timesteps=(1,))
  results = probe_curve.run(config, str(tmp_path))
  curve = [p for p in results['points'] if p['row'] == 'mlp_concat']
  assert [p['images_seen'] for p in curve] == [0, 160, 288]
  # The fake's random weights are blind; its trained ones all see alike.
  assert curve[0]['mean'] < curve[1]['mean'] == curve[2]['mean']
  assert results['floors']['majority'] < 0.5
  assert os.path.getsize(tmp_path / 'curve.png') > 5000
  assert '"test"' not in json.dumps({**results, 'data': 0, 'config': 0})

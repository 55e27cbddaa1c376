import pytest

from configs import pretrain
from micdiffrep_jax.data import promises
from micdiffrep_jax.pretrain import train


def test_pretraining_refuses_data_that_the_audit_refuses(tmp_path, monkeypatch):
  monkeypatch.setattr(promises, 'check', lambda *_: ['a group crosses parts'])
  config = pretrain.get_config('test').lock()
  with pytest.raises(ValueError, match='a group crosses parts') as e:
    train.run(config, str(tmp_path))
  assert '--config.allow_failed_audit=True' in str(e.value)
  assert not list(tmp_path.iterdir())

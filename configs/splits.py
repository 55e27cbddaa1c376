r"""The same probe under four splits, side by side: what each leak is worth.

python -m micdiffrep_jax.main --config=configs/splits.py:PRESET \
  --config.checkpoint=RUN --config.probe.data.path=DATASET \
  --workdir=RUN/splits

(none)  four probes of configs/probe.py.
tiny    the same, narrower, as probe.py:tiny.
test    seconds; for trying things out.
An encoder is pretrained on the train part of one split, so it has drawn test
images of the others; the table says how many. Give one per split to mend that:
--config.checkpoints.paper=RUN_PAPER. Splits that are finished are not run
again.
"""

from ml_collections import ConfigDict

from configs import probe


def get_config(preset: str = '') -> ConfigDict:
  """The splits, their encoders, and the probe that all of them get."""
  if preset not in ('', 'tiny', 'test'):
    raise ValueError(f'Unknown preset {preset!r}; tiny, test, or none.')
  config = ConfigDict()
  config.task = 'splits'
  config.splits = ('leaky', 'paper', 'grouped', 'patient')
  config.checkpoint = ''  # pretraining run or bundle, for all splits
  config.checkpoints = ConfigDict()  # or one of its own
  config.checkpoints.patient = ''
  config.checkpoints.paper = ''
  config.checkpoints.grouped = ''
  config.checkpoints.leaky = ''
  config.checkpoints.given = ''
  config.others = ()  # more encoders, each under every split; without controls
  # Of each of them the taps to read, joined by '+'; '' or () is all.
  config.other_layers = ()
  config.probe = probe.get_config(preset)  # its split and checkpoint are set
  return config

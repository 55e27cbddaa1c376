r"""Makes one file of a probe: encoder, head, preparation, class names.

python -m micdiffrep_jax.main --config=configs/bundle.py \
  --config.probe=RUN/probe --workdir=RUN/bundle

Writes RUN/bundle/bundle.npz, which configs/predict.py and configs/evaluate.py
need and nothing else. Some minutes on 2 CPU cores. --config.hub=FOLDER also
writes it as model hubs have it, and --config.exports="('jax','torch')" writes
RUN/bundle/exports: functions that jax.export.deserialize runs on cpu, cuda and
tpu without this package, and the UNet's way down for
benchmarks/torch_encoder.py (pip install 'micdiffrep_jax[hub]').
"""

from ml_collections import ConfigDict


def get_config(preset: str = '') -> ConfigDict:
  """The fields of a bundle."""
  if preset:
    raise ValueError(f'Unknown preset {preset!r}; this config has none.')
  config = ConfigDict()
  config.task = 'bundle'
  config.seed = 0  # nothing is drawn at random; every task has one

  config.probe = ''  # folder of a probe run
  # Further probes of the same data and split: a committee, whose probabilities
  # are the mean of theirs. Encoders may differ.
  config.others = ()
  config.out = ''  # file to write; '' is bundle.npz in the workdir
  config.precision = 'float16'  # of the weights: float32 | float16 | int8
  # What the file remembers of training images, so that evaluate can find them
  # again: hashes (of equal pixels alone) | small (and pictures of 24 px, 180
  # bytes each: also those saved again) | crops (and head crops, 450 bytes more:
  # also those cut or framed) | none. Private pictures: hashes or none.
  config.fingerprints = 'crops'
  # Fit the head again, as it was chosen, on all labelled images, test included:
  # better on new pictures. The head before is kept beside it, and predict and
  # evaluate take it with --config.head=measured; the test scores are its own.
  config.refit = False
  # Also a folder in the form of the model hubs: safetensors, config.json and
  # README.md, the model card. predict, evaluate and load read it too.
  config.hub = ''
  config.licence = ''  # that the card states, e.g. apache-2.0; '' is not stated
  config.push_to = ''  # NAME/MODEL: upload it, private (micdiffrep_jax[hub])
  config.exports = ()  # other forms beside the file: jax (StableHLO) | torch
  config.checkpoint = ''  # '' is the one that the probe names

  config.data = ConfigDict()
  config.data.path = ''  # '' is the dataset that the probe names
  return config

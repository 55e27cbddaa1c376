r"""Accuracy against the share of labelled training groups, beside the floors.

python -m micdiffrep_jax.main --config=configs/label_efficiency.py:PRESET \
  --config.checkpoint=RUN --config.data.path=DATASET --workdir=RUN/labels

(none)  5 shares x 5 draws, MLP of 256, 3 rates x 2 decays; for a GPU.
tiny    the same shares and draws, smaller heads; for 2 CPU cores and a tiny
        encoder.
test    seconds; for trying things out.
Take timesteps and grids from an ablation of the same encoder. Everything else
is chosen on validation, anew for each draw.
"""

from ml_collections import ConfigDict

from configs import ablate, finetune


def get_config(preset: str = '') -> ConfigDict:
  """The fields of an ablation, and those of the draws.

  fused, seeds, search_seeds, bundle and normal_class have no effect here; there
  are no views.
  """
  if preset not in ('', 'tiny', 'test'):
    raise ValueError(f'Unknown preset {preset!r}; one of tiny, test, or none.')
  config = ablate.get_config(preset)
  config.task = 'label_efficiency'
  config.fractions = (0.01, 0.05, 0.1, 0.25, 1.0)  # of the training groups
  config.draws_of_labels = 5  # of each share; the head's seed changes along
  config.validation = 'share'  # share | all: labels that choices may use
  config.sources_only = False  # train and choose on untouched sources alone
  config.timesteps = (11,)  # several: chosen on validation
  config.grids = (4,)  # several: chosen on validation
  config.heads.learning_rates = (1e-3, 3e-4, 1e-2)  # of equals, the first
  config.heads.weight_decays = (0.0, 1.0)  # ours; decoupled, times the rate
  config.heads.min_updates = 300  # small shares make as many passes as it takes
  # And prototypes, kernel, kernel_layers (one per layer); always standardised,
  # all layers.
  config.classic = ('logistic', 'knn')
  # Ways to fine-tune the encoder on each draw, of full, last and lora; each
  # trains it as often as there are draws.
  config.finetuned = ()
  config.finetune = finetune.recipe(preset)  # how
  config.random_encoder = True  # the same on random weights
  config.floors = (
    'nearest_pixels',
    'nearest_hog',
    'logistic_hog',
    'imagenet',  # if installed: EfficientNet-Lite0, frozen
  )
  if preset == 'tiny':
    config.heads.learning_rates = (1e-3,)
    config.heads.epochs = 10
  elif preset == 'test':
    config.fractions = (0.1, 0.5, 1.0)
    config.draws_of_labels = 2
    config.heads.learning_rates = (1e-2,)
    config.heads.weight_decays = (0.0,)
    config.heads.min_updates = 10
    config.floors = ('nearest_pixels',)
  return config

"""Task `sample`: images from a pretrained DDPM, and what they are worth."""

from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.diffusion import plans, samplers
from micdiffrep_jax.diffusion.process import check_timesteps
from micdiffrep_jax.draw import grids
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.generate import assess, figures, generate, quality
from micdiffrep_jax.methods import ddpm
from micdiffrep_jax.run import devices, log


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Draws config.images images, saves them and their figures, assesses them.

  Raises ValueError before any compile for what cannot be done.
  """
  if not config.checkpoint:
    raise ValueError(
      'No model to sample from. Set --config.checkpoint to the folder of a '
      'pretraining run.'
    )
  encoder = encoders.load_encoder(config.checkpoint, config.step or None)
  plan = check(config, encoder)
  real = open_real(config, encoder)
  model = ddpm.denoiser(encoder.config, encoder.info.size_px)
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  results: dict[str, Any] = {
    'task': 'sample',
    'model': encoder.info.as_dict(),
    'steps': len(plan.t),
  }

  images, frames, results['seconds'] = generate.drawn(
    config, encoder, model, len(plan.t), workdir
  )
  pictures = {'samples': figures.samples(images, real, config.figure)}
  if len(frames):
    pictures['trajectory'] = figures.trajectory(frames, plan.t)
  if config.interpolation.images:
    pictures['interpolation'] = figures.interpolation(
      encoder, model, real, config.interpolation
    )
  if config.reconstruction.images:
    pictures['reconstruction'] = figures.reconstruction(
      encoder, model, real, config.reconstruction, config.seed
    )

  if config.memorisation.enabled or config.quality.enabled:
    train = assess.evenly(real.train, config.features.train_images)
    name, sets = assess.feature_sets(
      encoder,
      real._replace(train=train),
      images,
      config.features,
      config.batch_size,
    )
  if config.memorisation.enabled:
    results['memorisation'], near = assess.memorisation(
      real, images, name, sets, train, config.memorisation
    )
    limits = {s: r['threshold'] for s, r in results['memorisation'].items()}
    pictures['nearest'] = assess.nearest_figure(
      images[: config.figure.images],
      real.dataset,
      near,
      limits,
      config.figure.columns,
    )
    assess.save_nearest(str(folder / 'nearest.csv'), real.dataset, near)
  if config.quality.enabled:
    results['quality'] = {name: quality.compare(**sets)}
    if config.quality.external:
      sets = assess.external_sets(config.quality.external, len(images))
      results['quality'][config.quality.external] = quality.compare(**sets)
    if config.quality.loss_images:
      results['loss'] = assess.loss_by_timestep(
        encoder,
        real.dataset,
        assess.evenly(real.val, config.quality.loss_images),
        config.batch_size,
        config.seed,
      )
  if jax.process_index() == 0:
    for name, picture in pictures.items():
      grids.save_png(str(folder / f'{name}.png'), picture)
  log.get_logger().info('Figures %s in %s.', ', '.join(pictures), workdir)
  return log.write_results(workdir, results, config)


def check(config: ConfigDict, encoder: encoders.Encoder) -> plans.Plan:
  """Raises ValueError for what the config asks and the model cannot do."""
  if encoder.config.method != 'ddpm':
    raise ValueError(
      f'{config.checkpoint} was pretrained with {encoder.config.method!r}, '
      'which generates no images. Set --config.checkpoint to a ddpm run.'
    )
  if encoder.method.sample is None:
    raise ValueError(
      f'{config.checkpoint} is a bundle, which holds the layers of a head and '
      'no decoder. Set --config.checkpoint to the folder of a pretraining run.'
    )
  if config.images < 1:
    raise ValueError(
      f'images={config.images}: set --config.images to 1 or more.'
    )
  mesh = devices.make_mesh()
  devices.check_batch_size(config.batch_size, mesh, '--config.batch_size')
  process = ddpm.denoiser(encoder.config, encoder.info.size_px).process
  plan = plans.make_plan(process, **generate.options(config))
  samplers.frame_steps(len(plan.t), config.figure.trajectory)
  features.check_request(
    encoder.method, (config.features.layer,), (config.features.timestep,)
  )
  check_timesteps(
    config.reconstruction.timesteps,
    process.timesteps,
    '--config.reconstruction.timesteps',
  )
  plans.spread(process.alpha_bar, config.interpolation.steps)
  if config.memorisation.enabled:
    quality.memorisation(
      np.ones(1),
      np.ones(1),
      config.memorisation.percentile,
      config.memorisation.warn_share,
    )
  if config.quality.external:
    assess.external_sets(config.quality.external, config.images)
  return plan


def open_real(config: ConfigDict, encoder: encoders.Encoder) -> assess.Real:
  """The training and validation images; warns if they are not the model's."""
  path = config.data.path or encoder.config.data.path
  split = config.data.split or encoder.info.split or ''
  dataset = data.open_dataset(path, cache=config.data.cache)
  features.check_images(encoder, dataset)
  if data.split_hash(dataset, split) != encoder.info.split_hash:
    log.get_logger().warning(
      'The model was not trained on the %r split of %s: whether it copies its '
      'training images cannot be told from these.',
      split,
      path,
    )
  spared = tuple(encoder.info.spared or ())
  train = data.pretraining_rows(dataset, split, spared)
  val = data.rows(dataset, split, 'val')
  if not len(train) or not len(val):
    raise ValueError(
      f'The {split!r} split of {path} has {len(train)} training and {len(val)} '
      'validation images; some of both are needed. Set --config.data.split.'
    )
  val = assess.evenly(val, config.memorisation.val_images)
  return assess.Real(dataset, train, val)

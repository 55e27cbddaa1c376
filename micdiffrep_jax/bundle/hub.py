"""A classifier as a folder of the model hubs, with its model card.

Weights, config and preprocessing are those of run/archive.py; README.md says
what a reader must know before the model is used on anything.
"""

from collections.abc import Iterator, Mapping
import os
from typing import Any

from micdiffrep_jax.bundle import classifier
from micdiffrep_jax.bundle.classifier import Classifier, Meta
from micdiffrep_jax.draw.page import DISCLAIMER, brackets
from micdiffrep_jax.draw.result import (
  FLOOR,
  RANDOM,
  SUBSETS,
  patients_in_words,
  title,
)
from micdiffrep_jax.run import archive, files, log, records
from micdiffrep_jax.scores.bootstrap import SETS
from micdiffrep_jax.scores.metrics import HEADLINE
from micdiffrep_jax.scores.summary import RowSummary

_KEPT_APART = {
  'patient': 'no two parts share a known patient, near-duplicates or copies',
  'grouped': 'no two parts share near-duplicates or copies; other slices of '
  'a test patient may be in training',
  'paper': 'no two parts share copies, but near-duplicates and other slices of '
  'a test patient may be in training',
  'leaky': 'nothing is kept apart: its numbers are too good',
  'given': 'the parts are those of the folders that the pictures came in',
}
# Facts of an encoder that had more than pictures.
_HAD = {
  'supervised': 'labels',
  'supervised_text': 'captions made of labels',
  'teacher': 'a teacher',
}
_USE = """```python
import micdiffrep_jax as mdr
model = mdr.load('FOLDER')  # this one, once it was downloaded
model.predict_proba(images)  # arrays of any size, or paths
model.features(images, t={t}, layers='all', cells={cells})
```
"""


def write(
  folder: str,
  model: Classifier,
  precision: str,
  results: Mapping[str, Any],
  licence: str,
) -> None:
  """Writes the folder; results: of the probe that the head is from, with
  `origins` of its data.

  licence: an identifier of SPDX, '' where it is not stated. Raises ValueError
  where the package safetensors is not installed.
  """
  text = card(model, results, licence)
  archive.write_folder(folder, *classifier.contents(model, precision))
  files.write_whole(os.path.join(folder, 'README.md'), text.encode())


def push(folder: str, repo: str, private: bool = True) -> str:
  """Uploads a folder of `write` by huggingface_hub; returns its address.

  repo: 'name/model', made where it is not there. The account is the one that
  `hf auth login` knows. Raises ValueError for a folder that is none, or
  without the package.
  """
  if not archive.is_folder(folder):
    raise ValueError(
      f'{folder!r} is no model folder. Write one with configs/bundle.py, '
      '--config.hub=FOLDER.'
    )
  try:
    from huggingface_hub import HfApi
  except ImportError as e:
    raise ValueError(
      'Pushing needs the package huggingface_hub: pip install '
      "'micdiffrep_jax[hub]'."
    ) from e
  known = classifier.load_bundle(folder).fingerprints
  if len(known.small) or len(known.crops):
    log.get_logger().warning(
      '%s holds small copies of training pictures. Where they are private, '
      'make it again with --config.fingerprints=hashes.',
      folder,
    )
  api = HfApi()
  api.create_repo(repo_id=repo, private=private, exist_ok=True)
  done = api.upload_folder(folder_path=folder, repo_id=repo)
  log.get_logger().info('Pushed %s to %s.', folder, repo)
  return str(done)


def card(model: Classifier, results: Mapping[str, Any], licence: str) -> str:
  """The model card, Markdown with the head that hubs read."""
  meta = model.meta
  of = '' if licence else ' (not stated: ask whoever published it)'
  lines = [
    '---',
    f'license: {licence or "unknown"}',
    'library_name: micdiffrep_jax',
    'pipeline_tag: image-classification',
    'tags: [medical-imaging, diffusion, self-supervised, jax]',
    '---',
    f'# {", ".join(meta.classes)}: a classifier on diffusion features',
    '',
    f'**{DISCLAIMER}**',
    '',
    *_what(model),
    '## Use',
    '',
    _USE.format(t=model.head.info.timestep, cells=model.head.info.grid),
    '## Data and split',
    '',
    *_data(meta, results),
    '## Numbers',
    '',
    *_numbers(meta, results),
    '## Limits',
    '',
    *_limits(model),
    '## Licence',
    '',
    f'{licence or "Unknown"}{of}. The pictures that it was trained on have '
    'licences of their own.',
    '',
  ]
  return '\n'.join(lines)


def _what(model: Classifier) -> Iterator[str]:
  info, meta = model.head.info, model.meta
  drawn, facts = model.encoder.info.images_seen, model.encoder.info.facts
  had = [words for name, words in _HAD.items() if facts.get(name)]
  means = f'with {" and ".join(had)}' if had else 'without labels'
  config, how = model.encoder.config, 'pretrained'
  if facts.get('finetuned'):
    config, how = config.base, 'fine-tuned'
  yield (
    f'A frozen encoder ({config.method}'
    + (f', {how} {means} on {drawn:,} images, repeats counted' if drawn else '')
    + f') reads {", ".join(info.layers)} at noise level {info.timestep}, '
    f'{info.grid} x {info.grid} cells each; a head of the kind '
    f'`{info.kind}` tells the class. Pictures are padded to a square and '
    f'resized to {meta.size_px} px with {meta.channels} channel(s).'
  )
  yield ''


def _data(meta: Meta, results: Mapping[str, Any]) -> Iterator[str]:
  told = results['data']
  images = ', '.join(f'{n:,} {part}' for part, n in told['images'].items())
  split = told['split']
  if results.get('origins'):
    yield f'* Sources: {", ".join(results["origins"])}.'
    if 'phantom' in results['origins']:
      yield '* **Phantoms are generated pictures: no patient is behind them.**'
  yield f'* Images: {images}.'
  yield f'* Patients: {patients_in_words(told.get("patients", {}))}.'
  yield f'* Split `{split}`: {_KEPT_APART[split]}.'
  yield f'* Fingerprint of the data: `{meta.dataset}`, of the split: '
  yield f'  `{meta.split_hash}`.'
  same = {
    True: 'the training part of the same data',
    False: 'other data',
    None: 'unknown data',
  }
  yield f'* Pretraining: {same[meta.same_data_in_pretraining]}.'
  if meta.fitted_on_test_images:
    yield (
      f'* The head was fitted again on all {meta.training_images:,} labelled '
      'images, test included. The numbers are those of the head before that, '
      'which had not seen test; it is in the file too: '
      "`classifier.load_bundle(path, 'measured')`, or `--config.head=measured`."
    )
  yield ''


def _numbers(meta: Meta, results: Mapping[str, Any]) -> Iterator[str]:
  """Tables of the head, its random twin and the floors, by set of images."""
  name = results['bundle']
  rows = records.read(Mapping[str, RowSummary], results['rows'])
  shown = [name, *(r for r in rows if r == RANDOM + name)]
  shown += [r for r in rows if r.startswith(FLOOR)]
  yield 'Test part, percent with 95 % intervals over groups of images.'
  yield ''
  for part in SETS:
    if part not in rows[name].test or (
      part == 'sources' and rows[name].no_variants
    ):
      continue
    words = SUBSETS[part]
    yield f'| {words} | {" | ".join(x.replace("_", " ") for x in HEADLINE)} |'
    yield '|---' * (1 + len(HEADLINE)) + '|'
    for row in shown:
      scored = rows[row].test.get(part)
      if scored:
        cells = ' | '.join(brackets(scored.scores[x]) for x in HEADLINE)
        mark = '**' if row == name else ''
        yield f'| {mark}{title(row)}{mark} | {cells} |'
    yield ''
  accuracy = {r: rows[r].test['all'].scores['accuracy'].value for r in shown}
  own = accuracy.pop(name)
  level = [title(row) for row, value in accuracy.items() if value >= own]
  if level:
    yield f'**Not better, by accuracy on all images, than {", ".join(level)}.**'
    yield ''
  if not any(row.startswith(FLOOR) for row in shown):
    yield 'No floor was computed: what the images alone give is not known.'
    yield ''


def _limits(model: Classifier) -> Iterator[str]:
  meta = model.meta
  yield (
    f'* It knows {len(meta.classes)} classes and answers one of them for any '
    f'picture. Below a probability of {meta.low_confidence:.2f} it is unsure, '
    'as it is of a tenth of its validation images.'
  )
  yield (
    '* Measured on the data above alone. Other scanners, protocols and '
    'populations are not in these numbers: score it on pictures of your own '
    'with configs/evaluate.py, which finds training images again.'
  )
  kept = model.fingerprints.recognises or 'nothing'
  yield f'* What it recognises of its training images: {kept}.'
  if len(model.fingerprints.small) or len(model.fingerprints.crops):
    yield '* **It holds small copies of training pictures.**'
  yield ''

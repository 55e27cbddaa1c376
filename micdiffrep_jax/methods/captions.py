"""The caption of each image, and its token ids: text alone, without JAX.

Captions come from a table, or from the names of the classes. A caption made
from a label is a label: what learns from it is supervised, and its results say
so. Ids are CLIP's byte pairs, or words of the captions at hand; in both, id 0
pads and the last id of the vocabulary ends a caption, which is where the text
tower reads it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
import csv
import functools
import gzip
import html
import importlib.util
import itertools
import os
import re

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data

BPE_SIZE = 49408
_BPE_FILE = 'bpe_simple_vocab_16e6.txt.gz'
_BPE_PACKAGES = ('open_clip', 'clip')
_MERGES = BPE_SIZE - 512 - 2
_WORD = re.compile(r'[^\W_]+|[^\w\s]')
# CLIP's own pattern names Unicode's letters and numbers, which `re` cannot:
# fractions and the like stay within words here.
_PIECE = re.compile(
  r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE
)

Encode = Callable[[str], list[int]]  # caption -> ids, without start and end


def pack(
  encode: Encode, captions: Sequence[str], vocabulary: int, length: int
) -> np.ndarray:
  """Ids (n, length) int32: start, caption, end, zeros; '' gives zeros only.

  A longer caption is cut, and its end kept. The start is the id before the end
  in CLIP's vocabulary, and so it is here.
  """
  found = np.zeros((len(captions), length), np.int32)
  cached = functools.cache(encode)
  for row, caption in zip(found, captions, strict=True):
    if caption:
      ids = [vocabulary - 2, *cached(caption)[: length - 2], vocabulary - 1]
      row[: len(ids)] = ids
  return found


def words(captions: Sequence[str], vocabulary: int) -> Encode:
  """An encoder over the most frequent words; rarer ones share id 1.

  Words are lower case; equally frequent ones go by the alphabet.
  """
  counts = Counter(w for c in captions for w in _WORD.findall(c.lower()))
  ranked = sorted(counts, key=lambda w: (-counts[w], w))
  # 0 pads, 1 is unknown, the last two start and end.
  number = {w: i + 2 for i, w in enumerate(ranked[: vocabulary - 4])}
  return lambda text: [number.get(w, 1) for w in _WORD.findall(text.lower())]


def find_bpe() -> str:
  """CLIP's merges inside an installed package, found without its code.

  Raises ValueError where none is installed.
  """
  for package in _BPE_PACKAGES:
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
      path = os.path.join(folder, _BPE_FILE)
      if os.path.exists(path):
        return path
  raise ValueError(
    "CLIP's vocabulary is not installed: pip install open-clip-torch, or take "
    'that of the captions with --config.text.tokens=words.'
  )


def _alphabet() -> dict[int, str]:
  """A printable character per byte, as GPT-2 has it."""
  kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
  rest = [b for b in range(256) if b not in kept]
  return {b: chr(b) for b in kept} | {
    b: chr(256 + i) for i, b in enumerate(rest)
  }


def bpe(path: str) -> Encode:
  """CLIP's encoder, its merges read from `path` (.txt or .txt.gz).

  Source: Sennrich et al. 2016, as in OpenAI's CLIP: lower case, no space before
  a word, '</w>' after its last letter; the earliest learnt pair is joined
  first.
  """
  opened = gzip.open if path.endswith('.gz') else open
  with opened(path, 'rt', encoding='utf-8') as f:
    lines = f.read().split('\n')[1 : _MERGES + 1]
  merges = [tuple(line.split()) for line in lines if line]
  letters = _alphabet()
  pieces = [*letters.values(), *(v + '</w>' for v in letters.values())]
  number = {p: i for i, p in enumerate([*pieces, *map(''.join, merges)])}
  rank = {pair: i for i, pair in enumerate(merges)}

  @functools.cache
  def split(word: str) -> list[int]:
    parts = [letters[b] for b in word.encode()]
    parts[-1] += '</w>'
    while len(parts) > 1:
      pairs = list(itertools.pairwise(parts))
      best = min(pairs, key=lambda p: rank.get(p, len(rank)))
      if best not in rank:
        break
      joined, i = [], 0
      while i < len(parts):
        both = tuple(parts[i : i + 2]) == best
        joined.append(''.join(best) if both else parts[i])
        i += 2 if both else 1
      parts = joined
    return [number[p] for p in parts]

  def encode(text: str) -> list[int]:
    text = html.unescape(html.unescape(text)).lower()
    return [i for word in _PIECE.findall(text) for i in split(word)]

  return encode


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
    with open(path, newline='', encoding='utf-8') as f:
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

import json

import numpy as np
import pytest

from micdiffrep_jax.methods import captions


def test_words_are_ranked_and_rare_ones_unknown():
  texts = ['A b, b', 'c b', '', 'a']
  encode = captions.words(texts, 7)  # room for three words
  # b three times, a twice; ',' and c once, of which ',' comes first.
  assert encode('b a , c zebra') == [2, 3, 4, 1, 1]
  assert encode('B A') == [2, 3]


def test_captions_are_framed_cut_and_padded():
  encode = captions.words(['one two three'], 9)
  ids = captions.pack(encode, ['one two three', 'two', ''], 9, 4)
  assert ids.dtype == np.int32
  one, two = encode('one')[0], encode('two')[0]
  np.testing.assert_array_equal(
    ids, [[7, one, two, 8], [7, two, 8, 0], [0, 0, 0, 0]]
  )


@pytest.mark.needs('transformers')
def test_byte_pairs_equal_those_of_transformers(tmp_path):
  import transformers

  merges = ['a n', 'an d</w>', 't h', 'th e</w>', 'o n</w>', 'i on</w>']
  merges += ['o n', 'on e</w>']
  (tmp_path / 'merges.txt').write_text('\n'.join(['#version', *merges, '']))
  letters = list(captions._alphabet().values())
  pieces = [*letters, *(v + '</w>' for v in letters)]
  pieces += [m.replace(' ', '') for m in merges]
  pieces += ['<|startoftext|>', '<|endoftext|>']
  vocabulary = {p: i for i, p in enumerate(pieces)}
  (tmp_path / 'vocab.json').write_text(json.dumps(vocabulary))
  reference = transformers.CLIPTokenizer(
    vocab=vocabulary, merges=[tuple(m.split()) for m in merges]
  )
  encode = captions.bpe(str(tmp_path / 'merges.txt'))
  for text in (
    'the ion AND one',
    "it's 12 mm, T1-weighted; naïve_anandthe!!",
    'Läsion   links\nand',
  ):
    want = reference(text)['input_ids'][1:-1]
    assert encode(text) == want, text


def test_byte_pairs_of_clip_equal_the_published_ones():
  try:
    path = captions.find_bpe()
  except ValueError as e:
    pytest.skip(str(e))
  text = 'an axial T1-weighted MRI slice of a glioma'
  ids = captions.pack(captions.bpe(path), [text], captions.BPE_SIZE, 77)[0]
  want = '49406 550 46550 339 272 268 43179 24773 13431 539 320 5896 5358 49407'
  assert ids[ids > 0].tolist() == [int(x) for x in want.split()]

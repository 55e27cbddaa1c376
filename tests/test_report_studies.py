"""Studies of labels and splits on the page."""

from micdiffrep_jax.draw import page
from micdiffrep_jax.draw.result import Run
from micdiffrep_jax.studies import page_labels, page_splits


def scored(value):
  return {'value': value, 'low': value - 0.1, 'high': value + 0.1}


def markdown(blocks):
  return page.markdown('', '', [page.Section('', blocks)])


def label_record(images=('all', 'sources')):
  curves = [
    {
      'method': method,
      'share': share,
      'images': subset,
      'balanced_accuracy': scored(share + (0.2 if subset == 'sources' else 0)),
    }
    for method in ('mlp_concat', 'random/knn', 'floor/nearest_hog')
    for share in (0.5, 0.25)
    for subset in images
  ]
  comparisons = [
    {
      'method': method,
      'floor': 'floor/nearest_hog',
      'share': 0.25,
      'images': subset,
      'balanced_accuracy': scored(0.05 if subset == 'sources' else 0.9),
    }
    for method in ('mlp_concat', 'random/knn')
    for subset in images
  ]
  return {'task': 'label_efficiency', 'curves': curves} | {
    'comparisons': comparisons
  }


def test_few_labels_are_a_row_a_method_and_a_column_a_share():
  text = markdown(page_labels.blocks(Run('x', '', label_record())))
  assert '| method | 25 % | 50 % |' in text
  assert (
    '| MSFA (MLP, all layers) | 45.0 (35.0 to 55.0) | 70.0 (60.0 to 80.0) |'
    in text
  )
  assert 'untouched pictures' in text
  # Ours alone is compared, where it was: at one share.
  assert (
    '| MSFA (MLP, all layers) | floor: 1-NN on HOG | +5.0 (-5.0 to +15.0) | - |'
    in text
  )
  assert text.count('floor: 1-NN on HOG |') == 2


def test_a_record_without_sources_or_comparisons_is_shown_too():
  record = label_record(('all',))
  del record['comparisons']
  text = markdown(page_labels.blocks(Run('x', '', record)))
  assert 'all images' in text
  assert '25.0 (15.0 to 35.0)' in text
  assert 'minus' not in text


def test_splits_stand_side_by_side_with_what_pretraining_saw():
  table = [
    {
      'method': 'mlp_concat',
      'split': split,
      'images': images,
      'metric': 'accuracy',
      **scored(value if images == 'all' else 0.3),
    }
    for split, value in (('leaky', 0.9), ('grouped', 0.8))
    for images in ('all', 'sources')
  ]
  seen = {
    'leaky': {'images': 9, 'pretrained_on': 'grouped', 'seen': 4}
    | {'relatives': 5},
    'grouped': {'images': 9, 'pretrained_on': 'grouped', 'seen': 0}
    | {'relatives': 0},
  }
  record = {'table': table, 'test_images_in_pretraining': seen}
  blocks = page_splits.blocks(Run('x', '', record))
  text = markdown(blocks)
  assert '| method | leaky | grouped |' in text
  assert '| 90.0 (80.0 to 100.0) | 80.0 (70.0 to 90.0) |' in text
  assert "'leaky' in pretraining: 4 of 9 drawn, 5 with a relative" in text
  assert "'grouped' in pretraining: none" in text
  assert [b.tone for b in blocks if isinstance(b, page.Text)] == ['warning', '']

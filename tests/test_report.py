import base64
import json
import re

from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest
from sklearn.metrics import balanced_accuracy_score

from micdiffrep_jax.draw import page
from micdiffrep_jax.draw.result import layer_title
from micdiffrep_jax.run import files
from micdiffrep_jax.scores import bootstrap, summary
from micdiffrep_jax.studies import report

CLASSES = ('glioma', 'no <b>tumour</b>')


def predictions(seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 2, 60)
  probs = rng.dirichlet([1, 1], 60)
  return labels, probs


def probe_record():
  labels, probs = predictions()
  variants = np.where(np.arange(60) % 2, 'HF', '')
  test = summary.summarise(
    labels,
    probs,
    bootstrap.Slices(np.arange(60) // 4, variants, np.arange(60) // 4),
    CLASSES,
    resamples=20,
  )
  test = files.plain(test)
  row = {'chosen': {'layers': ['mid'], 'timestep': 10, 'grid': 2}, 'test': test}
  trials = [
    {'kind': 'mlp', 'layers': [name], 'timestep': t, 'score': 0.5}
    for name in ('mid', 'up0_0')
    for t in (1, 10)
  ]
  return {
    'task': 'probe',
    'rows': {
      'mlp_concat': row,
      'random/mlp_concat': row,
      'floor/majority': row,
    },
    'bundle': 'mlp_concat',
    'trials': {'encoder': trials},
    'comparisons': [],
    'data': {'path': '/gone', 'fingerprint': 'f', 'split': 'grouped'},
    'config': {'task': 'probe', 'seed': 17},
    'versions': {'jax': '1.2.3'},
    'command': ['main.py', '--config=<x>'],
    'device': 'cpu',
    'host_cores': 2,
    'finished': 'today',
  }


@pytest.fixture
def runs(tmp_path):
  probe, sample, odd, broken = (
    tmp_path / n for n in ('probe', 'sample', 'odd', 'broken')
  )
  for folder in (probe, sample, odd, broken):
    folder.mkdir()
  (probe / 'results.json').write_text(json.dumps(probe_record()))
  copies = {'share_close': 0.4, 'share_expected': 0.05, 'warning': True}
  (sample / 'results.json').write_text(
    json.dumps({'task': 'sample', 'memorisation': {'pixels': copies}})
  )
  Image.fromarray(np.zeros((4, 4), np.uint8)).save(sample / 'samples.png')
  (odd / 'results.json').write_text('{"task": "new", "height": 1.5}')
  (broken / 'results.json').write_text('{"task": "pro')
  names = ('probe', 'sample', 'odd', 'broken', 'absent')
  return tuple(str(tmp_path / n) for n in names)


def written(tmp_path, runs):
  config = ConfigDict(
    {
      'task': 'report',
      'seed': 0,
      'runs': runs,
      'title': 'T',
      'look_up_data': True,
    }
  )
  report.run(config, str(tmp_path / 'report'))
  html = (tmp_path / 'report' / 'report.html').read_text()
  return html, (tmp_path / 'report' / 'report.md').read_text()


def test_the_page_fetches_nothing(tmp_path, runs):
  html, _ = written(tmp_path, runs)
  sources = re.findall(r'(?:src|href)="([^"]*)"', html)
  assert len(sources) > 5
  assert all(s.startswith(('data:image/', '#')) for s in sources)
  for word in ('http:', 'https:', '<link', '<script', '@import', 'url('):
    assert word not in re.sub(r'data:[^"]*', '', html)


def test_the_page_shows_the_numbers_and_their_circumstances(tmp_path, runs):
  """Oracle: scikit-learn on the predictions behind the record."""
  html, markdown = written(tmp_path, runs)
  labels, probs = predictions()
  value = 100 * balanced_accuracy_score(labels, probs.argmax(1))
  for text in (html, markdown):
    assert f'{value:.1f}' in text
    assert 'MSFA' in text
    assert 'random weights' in text
    assert 'majority class' in text
    assert 'Not for clinical use' in text
  for word in ('1.2.3', '&#34;seed&#34;: 17', 'grouped', '40.0 %'):
    assert word in html
  assert 'class="tone bad"' in html  # copies are called out


def test_text_of_results_cannot_become_markup(tmp_path, runs):
  html, _ = written(tmp_path, runs)
  assert 'no <b>tumour' not in html
  assert 'no &lt;b&gt;tumour' in html
  assert '--config=&lt;x&gt;' in html


def test_what_cannot_be_reported_is_said(tmp_path, runs):
  html, _ = written(tmp_path, runs)
  assert 'does not exist' in html
  assert 'cannot be read' in html
  assert '1.5' in html  # a task that the report does not know
  results = json.loads((tmp_path / 'report' / 'results.json').read_text())
  assert set(results['missing']) == {'broken', 'absent'}
  record = probe_record()
  del record['rows']['mlp_concat']['test']['all']
  (tmp_path / 'probe' / 'results.json').write_text(json.dumps(record))
  html, _ = written(tmp_path, runs)
  assert 'its results lack something' in html
  assert 'probe/results.json: rows: mlp_concat: test has no' in html


def test_curves_of_an_unfinished_run_are_drawn(tmp_path):
  folder = tmp_path / 'pretrain'
  folder.mkdir()
  lines = [
    {'step': s, 'loss': 1 / s, 'images_seen': 4 * s, 'val_loss_t0100': 0.1}
    for s in (1, 2, 3)
  ]
  text = '\n'.join(json.dumps(x) for x in lines)
  (folder / 'metrics.jsonl').write_text(text + '\n{"step": 4, "lo')
  html, _ = written(tmp_path, (str(folder),))
  assert 'not finished' in html
  assert html.count('data:image/svg+xml') == 2


def test_a_quick_probe_is_drawn_on_the_whole_range_of_accuracies(tmp_path):
  folder = tmp_path / 'pretrain'
  folder.mkdir()
  lines = [{'step': s, 'probe_accuracy': 0.8 + s / 100} for s in (1, 2)]
  (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  html, _ = written(tmp_path, (str(folder),))
  (encoded,) = re.findall(r'data:image/svg\+xml;base64,([^"]+)', html)
  picture = base64.b64decode(encoded).decode()
  assert '<!-- 0.0 -->' in picture  # labels of the axis's ticks
  assert '<!-- 1.0 -->' in picture
  assert 'moves by chance' in html


def test_a_folder_of_runs_stands_for_them(tmp_path, runs):
  found = report.collect([str(tmp_path)])
  names = [r.name.rpartition('/')[2] for r in found]
  assert names == ['broken', 'odd', 'probe', 'sample']


def test_runs_are_found_at_any_depth_but_not_within_a_study(tmp_path):
  for path, task in (
    ('a/deep/run', 'pretrain'),
    ('a/deep/run/probe', 'probe'),
    ('a/table1', 'table1'),
    ('a/table1/mae/probe', 'probe'),
    ('a/report', 'report'),
    ('a/deep/run/checkpoints/x', 'probe'),
  ):
    (tmp_path / path).mkdir(parents=True, exist_ok=True)
    text = json.dumps({'task': task})
    (tmp_path / path / 'results.json').write_text(text)
  found = report.collect([str(tmp_path / 'a'), str(tmp_path / 'a/deep')])
  names = ['a/deep/run', 'a/deep/run/probe', 'a/table1']
  assert [r.name for r in found] == names
  # A run that is named stands beside those in it.
  found = report.collect([str(tmp_path / 'a/deep/run')])
  assert [r.task for r in found] == ['pretrain', 'probe']


def test_the_page_begins_with_the_result_in_a_sentence(tmp_path, runs):
  html, markdown = written(tmp_path, runs[:1])
  assert '<p>1 run, ' in html
  assert '<h1>T, gone</h1>' in html
  sentence = markdown.partition('## In short\n')[2].partition('##')[0]
  assert 'MSFA (MLP, all layers) has a balanced accuracy of' in sentence
  assert '(2 classes, 50 % by chance)' in sentence
  assert 'the best floor, majority class, has' in sentence
  # Those of one class, by their untouched pictures, two of each patient.
  pairs = predictions()[0][::2].reshape(15, 2)
  whole = int((pairs[:, 0] == pairs[:, 1]).sum())
  assert f' {whole} patients of the test part' in sentence
  assert 'timestep' in markdown.partition('## Words')[2]


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('down0_0', 'encoder, level 1, block 1'),
    ('up1_2', 'decoder, level 2, block 3'),
    ('mid', 'middle'),
    ('block3', 'block3'),
  ],
)
def test_layers_are_named_in_words(name, words):
  assert layer_title(name) == words


def test_runs_must_be_given_as_a_tuple(tmp_path):
  for runs, match in (((), 'Nothing to report'), ('a', 'give a tuple')):
    with pytest.raises(ValueError, match=match):
      written(tmp_path, runs)


def test_an_interval_is_written_in_percent():
  found = {'value': 0.5, 'low': 0.25, 'high': 0.75}
  assert page.interval(found) == '50.0 (25.0 to 75.0)'
  assert page.interval({'value': None}) == ''
  assert page.interval(None) == ''

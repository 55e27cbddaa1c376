import trees

from micdiffrep_jax.data import sources

FOO = """
from micdiffrep_jax.data.sources import Source

def open_source(rest, request):
  return Source(rest, ['a'], ['x'], ['g'], {}, request.data_dir, None)
"""


def test_a_new_kind_of_source_is_one_new_file(tmp_path, monkeypatch):
  (tmp_path / 'foo.py').write_text(FOO)
  monkeypatch.setattr(sources, '__path__', [*sources.__path__, str(tmp_path)])
  opened = sources.open_source('foo:bar', sources.Request('/there'))
  assert opened.origin == 'bar'
  assert opened.stamp == '/there'


def test_what_begins_with_no_kind_is_a_folder(tmp_path):
  for name in ('2:3', 'base:x', 'phantom'):
    trees.write(tmp_path / name / 'sick' / 'a.png', trees.head(0))
    opened = sources.open_source(str(tmp_path / name))
    assert opened.files == ['sick/a.png']


def test_a_colon_after_an_unknown_word_is_part_of_a_folder(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  trees.write(tmp_path / 'base:x' / 'a.png', trees.head(0))
  assert sources.open_source('base:x').files == ['a.png']

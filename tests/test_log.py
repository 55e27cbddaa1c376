import json

from ml_collections import ConfigDict
import numpy as np
from tensorboardX.proto import event_pb2

from micdiffrep_jax.run import files, log


def test_json_is_valid_whatever_it_is_given(tmp_path):
  path = tmp_path / 'a' / 'x.json'
  files.write_json(
    path,
    {
      'nan': float('nan'),
      'array': np.arange(3),
      'scalar': np.float32(0.5),
      'tuple': (1, 2),
      'config': ConfigDict({'a': (1,)}),
      3: 'key',
    },
  )

  def refuse(x):
    raise AssertionError(f'{x} is not JSON')

  found = json.loads(path.read_text(), parse_constant=refuse)
  assert found == {
    'nan': None,
    'array': [0, 1, 2],
    'scalar': 0.5,
    'tuple': [1, 2],
    'config': {'a': [1]},
    '3': 'key',
  }
  assert [p.name for p in path.parent.iterdir()] == ['x.json']


def test_resumed_metrics_continue_where_the_checkpoint_was(tmp_path):
  writer = log.Writer(str(tmp_path))
  for step in (1, 2, 3):
    writer.scalars(step, {'loss': step / 10})
  writer.close()
  with open(tmp_path / 'metrics.jsonl', 'a') as f:
    f.write('{"step": 4, "lo')  # cut by a kill
  writer = log.Writer(str(tmp_path), resume_step=2)
  writer.scalars(3, {'loss': 9})
  writer.close()
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(x) for x in lines] == [
    {'step': 1, 'loss': 0.1},
    {'step': 2, 'loss': 0.2},
    {'step': 3, 'loss': 9.0},
  ]


def test_events_hold_scalars_and_pictures(tmp_path):
  writer = log.Writer(str(tmp_path))
  writer.scalars(7, {'loss': 0.25})
  writer.image(7, 'samples', np.zeros((4, 4, 1), np.uint8))
  writer.close()
  (file,) = (tmp_path / 'tensorboard').iterdir()
  data, tags = file.read_bytes(), set()
  while data:  # length, its checksum, event, its checksum
    size = int.from_bytes(data[:8], 'little')
    event = event_pb2.Event.FromString(data[12 : 12 + size])
    tags |= {(v.tag, event.step) for v in event.summary.value}
    data = data[16 + size :]
  assert tags == {('loss', 7), ('samples', 7)}


def test_results_say_how_they_came_about(tmp_path):
  record = files.write_results(str(tmp_path), {'x': 1}, ConfigDict({'seed': 3}))
  assert record == json.loads((tmp_path / 'results.json').read_text())
  assert record['x'] == 1
  assert record['config'] == {'seed': 3}
  assert {'jax', 'flax', 'python'} <= set(record['versions'])
  assert 'cpu' in record['device']

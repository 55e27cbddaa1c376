import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from micdiffrep_jax.encoders import torch_file


@pytest.fixture(scope='module')
def tower():
  import torch
  import torch_tower

  torch.manual_seed(0)
  return torch_tower.Tower()


def same(found, state):
  assert set(found) == set(state)
  for name, value in state.items():
    assert found[name].dtype == value.numpy().dtype
    np.testing.assert_array_equal(found[name], value.numpy(), err_msg=name)


@pytest.mark.needs('torch')
@pytest.mark.parametrize('new', [True, False], ids=['zip', 'old'])
def test_a_state_dict_is_read_as_torch_reads_it(tower, tmp_path, new):
  import torch

  path = str(tmp_path / 'a.pth')
  state = tower.state_dict()
  state['half'] = torch.randn(3, 5).half()
  state['view'] = torch.arange(24.0).reshape(4, 6).T[1:, ::2]
  state['nothing'] = torch.zeros(0, 3)
  torch.save(state, path, _use_new_zipfile_serialization=new)
  same(torch_file.read(path), state)


@pytest.mark.needs('torch')
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_a_torchscript_archive_is_read_as_torch_jit_reads_it(tower, tmp_path):
  import torch

  path = str(tmp_path / 'a.pt')
  traced = torch.jit.trace(tower.half(), torch.zeros(1, 3, 4, 4).half())
  tower.float()
  traced.save(path)
  same(torch_file.read(path), torch.jit.load(path).state_dict())


class Evil:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


def write_zip(path, content, **members):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('a/data.pkl', content)
    for name, value in members.items():
      archive.writestr(f'a/{name}', value)


@pytest.mark.parametrize('form', ['zip', 'old'])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, form):
  path, trap = str(tmp_path / 'evil.pt'), str(tmp_path / 'trap')
  content = pickle.dumps({'weight': Evil(trap)})
  if form == 'zip':
    write_zip(path, content)
  else:
    with open(path, 'wb') as f:
      f.write(content)
  with pytest.raises(ValueError, match='mkdir, which no weights need'):
    torch_file.read(path)
  assert not os.path.exists(trap)
  # The pickle does work: it is the reader that refuses.
  pickle.load(io.BytesIO(content))
  assert os.path.exists(trap)


@pytest.mark.parametrize(
  'name', ['builtins.eval', 'torch.load', 'torch.nn.Linear', 'os.system']
)
def test_every_name_off_the_list_is_refused(tmp_path, name):
  module, _, attribute = name.rpartition('.')
  path = str(tmp_path / 'a.pt')
  write_zip(path, f'c{module}\n{attribute}\n.'.encode())
  with pytest.raises(ValueError, match=name):
    torch_file.read(path)


@pytest.mark.needs('torch')
def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path):
  import torch

  path = str(tmp_path / 'a.pt')
  torch.save({'x': torch.zeros(4)}, path)
  with zipfile.ZipFile(path) as archive:
    names = {n: archive.read(n) for n in archive.namelist()}
  found = next(n for n in names if n.endswith('data.pkl'))
  # size (4,) is pickled as K\x04 \x85 (BININT1, TUPLE1).
  assert names[found].count(b'K\x04\x85') == 1
  names[found] = names[found].replace(b'K\x04\x85', b'K\x05\x85')
  with zipfile.ZipFile(path, 'w') as archive:
    for name, value in names.items():
      archive.writestr(name, value)
  with pytest.raises(ValueError, match='outside its storage'):
    torch_file.read(path)


def test_other_files_are_refused(tmp_path):
  path = tmp_path / 'a.pt'
  for content, match in (
    (b'', 'damaged'),
    (b'not a pickle', 'no PyTorch file|damaged'),
    (pickle.dumps(3), 'no PyTorch file'),
  ):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match):
      torch_file.read(str(path))
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('b.txt', 'x')
  with pytest.raises(ValueError, match='no PyTorch one'):
    torch_file.read(str(path))
  with pytest.raises(ValueError, match='--config.source'):
    torch_file.read(str(tmp_path / 'absent.pt'))


@pytest.mark.needs('torch')
def test_a_file_cut_short_is_refused(tower, tmp_path):
  import torch

  path = tmp_path / 'a.pth'
  torch.save(tower.state_dict(), path, _use_new_zipfile_serialization=False)
  path.write_bytes(path.read_bytes()[:-10])
  with pytest.raises(ValueError, match='cut short'):
    torch_file.read(str(path))


@pytest.mark.needs('torch')
def test_an_array_built_by_hand_in_a_pickle_is_refused(tmp_path):
  """What a pickle sets on a tensor must not reach an array's internals."""
  import torch

  path = str(tmp_path / 'a.pt')
  torch.save({'x': torch.zeros(4)}, path)
  with zipfile.ZipFile(path) as archive:
    names = {n: archive.read(n) for n in archive.namelist()}
  found = next(n for n in names if n.endswith('data.pkl'))
  content = names[found]
  at = content.rindex(b'R') + 1  # the tensor is rebuilt; set its state: (1,)
  names[found] = content[:at] + b'K\x01\x85b' + content[at:]
  with zipfile.ZipFile(path, 'w') as archive:
    for name, value in names.items():
      archive.writestr(name, value)
  with pytest.raises(ValueError, match='damaged|no PyTorch file'):
    torch_file.read(path)

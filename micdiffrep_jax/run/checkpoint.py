"""Checkpoints that are restored exactly or not at all.

A seal is the sha256 of every file of a step, kept beside it. Orbax restores a
data file with a flipped bit without a word, and takes an empty folder for a
step; a seal tells both from what was saved. A step without a seal was never
finished; one that does not match its seal is damaged; either way the step
before is used.
"""

import contextlib
import hashlib
import json
import threading
from typing import Any, NamedTuple

from etils import epath
import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from micdiffrep_jax.run import files, log, paths

Tree = Any
SEALS = 'seals'  # folder of the seals, beside the steps
# An array that every device holds is written in parts, one by each. To cut a
# small one takes longer than to write it.
_PART_BYTES = 2**20


class Metadata(NamedTuple):
  """What is saved beside a state, in words that JSON knows."""

  config: dict[str, Any]  # of the run
  info: dict[str, Any]  # of its data, and how many images were seen


def _sha256(path: epath.Path) -> str:
  digest = hashlib.sha256()
  with path.open('rb') as f:
    while chunk := f.read(2**20):
      digest.update(chunk)
  return digest.hexdigest()


def _files(folder: epath.Path) -> list[epath.Path]:
  found = []
  for path in folder.iterdir():
    found += _files(path) if path.is_dir() else [path]
  return sorted(found)


def hashes(folder: epath.Path) -> dict[str, str]:
  """sha256 of every file under a folder, by its relative path."""
  return {
    str(path.relative_to(folder)): _sha256(path) for path in _files(folder)
  }


def damage(directory: epath.Path, step: int) -> str:
  """Why a step cannot be trusted; '' if it can."""
  path = directory / SEALS / f'{step}.json'
  folder = directory / str(step)
  if not path.exists():
    return 'was not finished'
  try:
    sealed = json.loads(path.read_text())
  except ValueError:
    return 'has a damaged seal'
  found = hashes(folder) if folder.exists() else {}
  wrong = [
    name
    for name in sorted(sealed | found)
    if sealed.get(name) != found.get(name)
  ]
  return f'is damaged in {wrong[:3]}' if wrong else ''


def steps(directory: str) -> list[int]:
  """Steps under a checkpoint folder, ascending, sound or not."""
  path = epath.Path(directory)
  if not path.exists():
    return []
  return sorted(int(p.name) for p in path.iterdir() if p.name.isdigit())


def sealed_steps(directory: str) -> list[int]:
  """Steps that have a seal, ascending."""
  path = epath.Path(directory)
  return [s for s in steps(directory) if (path / SEALS / f'{s}.json').exists()]


def seal(directory: epath.Path, step: int) -> None:
  """Seals a step that is whole, and drops the seals of steps that are gone."""
  files.write_json(
    directory / SEALS / f'{step}.json', hashes(directory / str(step))
  )
  present = set(steps(str(directory)))
  for path in (directory / SEALS).iterdir():
    if path.stem.isdigit() and int(path.stem) not in present:
      path.unlink()


def describe_difference(expected: Tree, found: Tree) -> list[str]:
  """Missing, extra and misshapen leaves of `found`, one line each."""

  def leaves(tree: Tree) -> dict[str, tuple[tuple[int, ...], str]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {}
    for path, leaf in flat:
      # Orbax names dataclass fields, tuple entries and keys all by strings.
      keys = [
        str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k))))
        for k in path
      ]
      named['/'.join(keys)] = (tuple(leaf.shape), str(leaf.dtype))
    return named

  want, have = leaves(expected), leaves(found)
  lines = [f'missing {k} {want[k]}' for k in sorted(want.keys() - have.keys())]
  lines += [f'extra {k} {have[k]}' for k in sorted(have.keys() - want.keys())]
  lines += [
    f'{k} is {have[k]}, expected {want[k]}'
    for k in sorted(want.keys() & have.keys())
    if have[k] != want[k]
  ]
  return lines


class Checkpoints:
  """The checkpoints of one run: newest two, best, and some on the way.

  Args:
    directory: local or gs:// folder, made if absent.
    keep_every: also keep each step that this number divides; 0 for none.
    best_metric: of the metrics given to `save`, lower is better; '' for none.
  """

  def __init__(
    self, directory: str, keep_every: int = 0, best_metric: str = ''
  ):
    self._path = epath.Path(directory)
    policies = ocp.training.preservation_policies
    every_save = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
    keep: list[Any] = [policies.LatestN(2)]
    if keep_every:
      keep.append(policies.EveryNSteps(keep_every))
    if best_metric:
      keep.append(
        policies.BestN(
          get_metric_fn=lambda m: m[best_metric],
          reverse=True,  # BestN keeps the last of an ascending order
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._drop_unsound()
    self._checkpointer = ocp.training.Checkpointer(
      self._path,
      save_decision_policy=every_save,
      preservation_policy=policies.AnyPreservationPolicy(keep),
      cleanup_tmp_directories=True,
    )
    self._sealing: threading.Thread | None = None
    self._failure: BaseException | None = None
    self._broken = False

  def _drop_unsound(self) -> None:
    """Deletes what cannot be trusted: neither used, nor in the way."""
    if jax.process_index() == 0:
      for step in reversed(steps(str(self._path))):
        reason = damage(self._path, step)
        if reason:
          log.get_logger().warning(
            'Checkpoint %d %s: it is deleted and the one before is used.',
            step,
            reason,
          )
          (self._path / str(step)).rmtree()
    multihost_utils.sync_global_devices('checkpoints-checked')

  @property
  def directory(self) -> str:
    """Where the steps lie."""
    return str(self._path)

  @property
  def latest(self) -> int | None:
    """The newest step, or None."""
    found = self._checkpointer.latest
    return None if found is None else found.step

  def restore(self, abstract: Tree) -> Tree:
    """Loads the newest step into the shapes, dtypes and shardings given.

    Raises ValueError that lists the leaves that differ.
    """
    step = self.latest
    _check_tree(self._path / str(step), abstract)
    return self._checkpointer.load_checkpointables(step, {'state': abstract})[
      'state'
    ]

  def save(
    self,
    step: int,
    state: Tree,
    metadata: Metadata,
    metrics: dict[str, float] | None = None,
  ) -> None:
    """Starts to save in the background; waits for the save before.

    Raises OSError where that one failed, for example on a full disk.
    """
    self.wait()
    context = ocp.Context()
    saving = context.array_options.saving
    saving.min_slice_bytes_for_replica_parallel = _PART_BYTES
    with context:
      response = self._checkpointer.save_checkpointables_async(
        step,
        {'state': state},
        force=True,
        metrics=metrics,
        custom_metadata=metadata._asdict(),
      )

    def finish() -> None:
      try:
        response.result()
        if jax.process_index() == 0:
          seal(self._path, step)
      except BaseException as e:  # reported by wait()
        self._failure = e

    self._sealing = threading.Thread(target=finish, name='seal')
    self._sealing.start()

  def wait(self) -> None:
    """Returns once the last save is sealed; raises OSError if it failed."""
    if self._sealing:
      self._sealing.join()
      self._sealing = None
    if self._failure:
      failure, self._failure = self._failure, None
      self._broken = True
      good = sealed_steps(str(self._path))[-1:]
      raise OSError(
        f'A checkpoint could not be saved in {self._path}: {failure}. The last '
        f'good one is step {good}. Free space there, or give another '
        '--workdir, and start again.'
      ) from failure

  def close(self) -> None:
    """Waits for the last save."""
    try:
      self.wait()
    finally:
      # After a failed save it says the same once more, and less clearly.
      with contextlib.suppress(*[Exception] * self._broken):
        self._checkpointer.close()


def _check_tree(folder: epath.Path, abstract: Tree) -> None:
  saved = ocp.checkpointables_metadata(folder).metadata['state']
  lines = describe_difference(abstract, saved)
  if lines:
    raise ValueError(
      f'The checkpoint {folder} does not fit this model and optimizer:\n  '
      + '\n  '.join(lines[:20])
      + ('\n  ...' if len(lines) > 20 else '')
      + '\nUse the config that made it, or another --workdir.'
    )


def find(path: str, step: int | None = None) -> tuple[str, int]:
  """The checkpoint folder and the newest sound step under `path`.

  path: a run's folder, its checkpoints folder or the folder of one step.
  Raises ValueError that says what was found instead.
  """
  # Orbax reads no relative paths.
  root = epath.Path(files.absolute(paths.expand(path)))
  if root.name.isdigit() and (root.parent / SEALS).exists():
    root, step = root.parent, int(root.name)
  if (root / 'checkpoints').exists():
    root = root / 'checkpoints'
  found = steps(str(root))
  if not found:
    raise ValueError(
      f'No checkpoint under {path!r}. Give the folder of a pretraining run '
      'with --config.checkpoint=DIR.'
    )
  if step is not None and step not in found:
    raise ValueError(
      f'No step {step} under {root}; there are {found}. Set --config.step.'
    )
  for candidate in [step] if step is not None else reversed(found):
    reason = damage(root, candidate)
    if not reason:
      return str(root), candidate
    log.get_logger().warning('Checkpoint %d %s.', candidate, reason)
  raise ValueError(f'No sound checkpoint under {root}; there are {found}.')


def read_metadata(directory: str, step: int) -> Metadata:
  """What was saved beside the state: config and facts of the run."""
  folder = epath.Path(directory) / str(step)
  return Metadata(**ocp.checkpointables_metadata(folder).custom_metadata)


def load(directory: str, step: int, abstract: Tree) -> Tree:
  """Loads the parts of a state that `abstract` names, to its shardings.

  Raises ValueError that lists the leaves that are not there or differ.
  """
  folder = epath.Path(directory) / str(step)
  saved = ocp.checkpointables_metadata(folder).metadata['state']
  lines = [
    x for x in describe_difference(abstract, saved) if not x.startswith('extra')
  ]
  if lines:
    raise ValueError(
      f'The checkpoint {folder} lacks what its config names:\n  '
      + '\n  '.join(lines[:20])
    )
  context = ocp.Context()
  context.pytree_options.loading.partial_load = True
  with context:
    return ocp.load_checkpointables(folder, {'state': abstract})['state']

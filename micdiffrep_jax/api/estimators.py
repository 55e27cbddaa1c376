"""The features and heads of the studies as scikit-learn estimators.

Letters: n rows, d features, k classes.
"""

from collections.abc import Iterator, Sequence
import functools
import itertools
import os
from typing import Any
import warnings

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
  check_consistent_length,
  check_is_fitted,
  validate_data,
)

from micdiffrep_jax.api import encoder as encoders
from micdiffrep_jax.api.pictures import Pictures
from micdiffrep_jax.heads import kernel, matrix, table, trained
from micdiffrep_jax.heads.base import Problem
from micdiffrep_jax.heads.matrix import Features
from micdiffrep_jax.run.checks import in_range, whole_number
from micdiffrep_jax.scores import calibration

Setting = dict[str, float]


@functools.lru_cache(maxsize=4)
def _load(path: str, stamp: int) -> encoders.Encoder:
  """An encoder, kept with what it has compiled; stamp: of its last change."""
  del stamp
  return encoders.load(path)


class DiffusionFeatures(TransformerMixin, BaseEstimator):
  """Pictures to features of a frozen encoder; the first step of a pipeline.

  Nothing is fitted, so no label and no other picture bears on the features.
  Pictures are as Encoder takes them; folds index an array, or a list of
  pictures of different sizes. scikit-learn's own check_estimator does not
  apply: it gives tables (n, d), which are no pictures.

  Args:
    path: of a bundle, or of a run's folder, as micdiffrep_jax.load takes it.
    t, layers, cells, draws, seed: as Encoder.features takes them.
  """

  def __init__(
    self,
    path: str = '',
    t: int = 1,
    layers: str | Sequence[str] = 'encoder',
    cells: int = 4,
    draws: int = 1,
    seed: int = 0,
  ):
    self.path = path
    self.t = t
    self.layers = layers
    self.cells = cells
    self.draws = draws
    self.seed = seed

  def _encoder(self) -> encoders.Encoder:
    # Not kept in the estimator, which is copied and sent to other processes.
    path = os.path.abspath(os.path.expanduser(self.path)) if self.path else ''
    there = os.path.exists(path)
    return _load(path, os.stat(path).st_mtime_ns if there else 0)

  def fit(self, X: Pictures, y: Any = None) -> 'DiffusionFeatures':
    """Opens the encoder; ValueError for a layer that it does not have."""
    self.layers_ = self._encoder().layers_of(self.layers)
    return self

  def transform(self, X: Pictures) -> np.ndarray:
    """Features (n, d) float32 of n pictures."""
    check_is_fitted(self)
    return self._encoder().features(
      X, self.t, self.layers_, self.cells, self.draws, self.seed
    )

  def __sklearn_tags__(self) -> Tags:
    tags = super().__sklearn_tags__()
    tags.input_tags.two_d_array = False
    tags.input_tags.three_d_array = True
    tags.transformer_tags.preserves_dtype = []
    return tags


class _Head(ClassifierMixin, BaseEstimator):
  """What the classifiers share: folds of groups, settings, a temperature.

  Every combination of the settings is fitted on folds in which groups stay
  whole, and the one with the best accuracy is fitted again on all rows. What
  the folds said of their own rows under it fits the temperature by which
  probabilities are calibrated. With fewer than two groups of a class the
  middle setting is taken, uncalibrated, with a warning.
  """

  _kind = ''  # in heads.table
  folds: int
  random_state: int

  def fit(self, X: Any, y: Any, groups: Any = None) -> Any:
    """Fits on features X (n, d), labels y (n,), groups (n,) such as patients.

    Without groups every row is its own: give them where several rows are of
    one patient. Raises ValueError for a single class, a group that is missing
    and a setting out of range.

    `GridSearchCV(head, ..., cv=GroupKFold()).fit(x, y, groups=groups)` keeps
    groups whole in its own folds, but scikit-learn hands them to no head
    unless it is told to, so that the folds in here would part them:

        sklearn.set_config(enable_metadata_routing=True)
        head = KernelClassifier().set_fit_request(groups=True)
        GridSearchCV(head, ..., cv=GroupKFold()).fit(x, y, groups=groups)

    So it is in a Pipeline, and with cross_val_score(..., params={'groups':
    groups}). Without a search a Pipeline takes them by the name of its step:
    pipe.fit(images, y, kernelclassifier__groups=groups).
    """
    x, y = validate_data(
      self, X, y, dtype=[np.float32, np.float64], ensure_min_samples=2
    )
    check_classification_targets(y)
    check_consistent_length(x, groups)
    whole_number(self.folds, 2, 100, 'folds')
    whole_number(self.random_state, 0, 2**32 - 1, 'random_state')
    self._check()
    settings = self._settings()
    groups = _known(groups)
    self.classes_, labels = np.unique(y, return_inverse=True)
    k = len(self.classes_)
    if k < 2:
      raise ValueError('The labels y hold a single class; give two or more.')
    x = x.astype(np.float32)
    problems = [
      Problem(matrix.standardise(x, train), labels, k, train, held)
      for train, held in self._folds(labels, groups)
    ]
    if not problems:
      warnings.warn(
        'A class has fewer than two groups: no setting can be chosen and '
        'probabilities are not calibrated.',
        stacklevel=2,
      )
    middle = settings[len(settings) // 2]
    self.chosen_ = self._choose(problems, settings) or middle
    self.temperature_ = self._temperature(problems)
    every = np.arange(len(x))
    whole = Problem(matrix.standardise(x), labels, k, every, every[:1])
    self.shift_, self.scale_ = whole.features.shift, whole.features.scale
    self.params_ = self._train(whole, self.chosen_)
    return self

  def predict_proba(self, X: Any) -> np.ndarray:
    """Calibrated probabilities (n, k) float64, columns as `classes_`."""
    check_is_fitted(self)
    x = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
    found = Features(x.astype(np.float32), self.shift_, self.scale_)
    logits = table.HEADS[self._kind].predict(self.params_, found)
    return calibration.softmax(logits, self.temperature_)

  def predict(self, X: Any) -> np.ndarray:
    """The most probable class of each row, (n,)."""
    check_is_fitted(self)
    return self.classes_[self.predict_proba(X).argmax(1)]

  def _folds(
    self, labels: np.ndarray, groups: Any
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit on and rows to score; none where a class has one group."""
    rows = np.arange(len(labels))
    named = (
      rows if groups is None else np.unique(groups, return_inverse=True)[1]
    )
    least = min(len(np.unique(named[labels == c])) for c in np.unique(labels))
    if least < 2:
      return
    splitter = StratifiedGroupKFold(
      min(self.folds, least), shuffle=True, random_state=self.random_state
    )
    for train, held in splitter.split(rows, labels, named):
      # Large groups can leave a fold without a class, or without rows.
      if len(held) and len(np.unique(labels[train])) > 1:
        yield train, held

  def _choose(
    self, problems: Sequence[Problem], settings: Sequence[Setting]
  ) -> Setting | None:
    """The setting that is right most often on rows of other groups."""
    if len(settings) == 1 or not problems:
      return None
    right = np.zeros(len(settings))
    for problem in problems:
      scores = self._score(problem, settings)
      right += len(problem.validation) * np.array(scores)
    return settings[int(right.argmax())]

  def _temperature(self, problems: Sequence[Problem]) -> float:
    """Fitted on what heads of the chosen setting say of other groups."""
    said, true = [], []
    for problem in problems:
      params = self._train(problem, self.chosen_)
      found, held = problem.features, problem.validation
      part = found._replace(x=found.x[held])
      said.append(table.HEADS[self._kind].predict(params, part))
      true.append(problem.labels[held])
    if not said:
      return 1.0
    return calibration.fit_temperature(
      np.concatenate(said), np.concatenate(true)
    )

  def _check(self) -> None:
    """Raises ValueError for a setting of this head that is out of range."""
    raise NotImplementedError

  def _settings(self) -> list[Setting]:
    """All combinations that are tried."""
    raise NotImplementedError

  def _score(
    self, problem: Problem, settings: Sequence[Setting]
  ) -> list[float]:
    """Accuracy on the validation rows of a head for each setting."""
    raise NotImplementedError

  def _train(self, problem: Problem, setting: Setting) -> dict[str, np.ndarray]:
    """The parameters of a head fitted on the training rows."""
    raise NotImplementedError


def _known(groups: Any) -> Any:
  """The groups; ValueError where one is None or nan, which are no group."""
  if groups is not None:
    absent = [i for i, x in enumerate(groups) if x is None or x != x]
    if absent:
      raise ValueError(
        f'{len(absent)} of {len(groups)} groups are missing, the first in row '
        f'{absent[0]}: give a row of an unknown patient a group of its own.'
      )
  return groups


def _in_range(values: Any, low: float, name: str) -> None:
  """As `in_range` below 1e6, of a number or of several."""
  for value in np.atleast_1d(values).tolist():
    in_range(value, low, 1e6, name)


def _combinations(**values: Any) -> list[Setting]:
  """[{name: value}] of names that have a number or several to try."""
  tried = {k: tuple(np.atleast_1d(v).tolist()) for k, v in values.items()}
  for name, options in tried.items():
    if not options:
      raise ValueError(f'{name}={values[name]!r} is empty; give a number.')
  return [dict(zip(tried, x)) for x in itertools.product(*tried.values())]


class KernelClassifier(_Head):
  """Kernel ridge classifier on standardised features: close rows vote.

  heads/kernel.py says how: rows of unit length, half-whitened principal
  components, a Gaussian kernel, at most 20,000 rows kept.

  Args:
    gamma: of the kernel, per mean squared distance; a number, or several of
      which folds choose.
    strength: of the ridge; a number, or several.
    folds: of groups, to choose and to calibrate on.
    random_state: of folds, components, and of the rows kept; a number.

  Attributes:
    classes_: labels, in the order of the probabilities.
    chosen_: the settings by name.
    temperature_: that logits are divided by.
  """

  _kind = 'kernel'

  def __init__(
    self,
    gamma: float | Sequence[float] = kernel.GAMMAS,
    strength: float | Sequence[float] = kernel.STRENGTHS,
    folds: int = 3,
    random_state: int = 0,
  ):
    self.gamma = gamma
    self.strength = strength
    self.folds = folds
    self.random_state = random_state

  def _check(self) -> None:
    _in_range(self.gamma, 1e-6, 'gamma')
    _in_range(self.strength, 1e-6, 'strength')

  def _settings(self) -> list[Setting]:
    return _combinations(gamma=self.gamma, strength=self.strength)

  def _score(
    self, problem: Problem, settings: Sequence[Setting]
  ) -> list[float]:
    tried = {
      name: tuple(dict.fromkeys(x[name] for x in settings))
      for name in settings[0]
    }
    fitted = kernel.fit(problem, **tried, seed=self.random_state)
    scores = {tuple(x.values()): score for x, score in fitted.tried}
    return [scores[tuple(x.values())] for x in settings]

  def _train(self, problem: Problem, setting: Setting) -> dict[str, np.ndarray]:
    problem = problem._replace(validation=problem.train[:1])
    one = {name: (value,) for name, value in setting.items()}
    return kernel.fit(problem, **one, seed=self.random_state).params


class MSFAClassifier(_Head):
  """The paper's head: linear, ReLU, linear on the features of all layers.

  Trained by Adam under a cosine schedule on standardised features.

  Args:
    hidden: units between the linear maps.
    learning_rate: a number, or several of which folds choose.
    weight_decay: decoupled, times the rate; a number, or several.
    epochs: passes over the rows, at least.
    min_updates: passes go on until so many updates were made.
    batch_size: rows of an update.
    dropout: of features, in [0, 0.99].
    folds: of groups, to choose and to calibrate on.
    random_state: of folds, initial weights, the order of rows; a number.

  Attributes:
    classes_: labels, in the order of the probabilities.
    chosen_: the settings by name.
    temperature_: that logits are divided by.
  """

  _kind = 'mlp'

  def __init__(
    self,
    hidden: int = 256,
    learning_rate: float | Sequence[float] = (3e-4, 1e-3, 1e-2),
    weight_decay: float | Sequence[float] = (0.0, 1.0),
    epochs: int = 15,
    min_updates: int = 300,
    batch_size: int = 128,
    dropout: float = 0.0,
    folds: int = 3,
    random_state: int = 0,
  ):
    self.hidden = hidden
    self.learning_rate = learning_rate
    self.weight_decay = weight_decay
    self.epochs = epochs
    self.min_updates = min_updates
    self.batch_size = batch_size
    self.dropout = dropout
    self.folds = folds
    self.random_state = random_state

  def _check(self) -> None:
    for name, least in (
      ('hidden', 1),
      ('epochs', 1),
      ('min_updates', 0),
      ('batch_size', 1),
    ):
      whole_number(getattr(self, name), least, 1e6, name)
    _in_range(self.learning_rate, 1e-9, 'learning_rate')
    _in_range(self.weight_decay, 0, 'weight_decay')
    in_range(self.dropout, 0, 0.99, 'dropout')

  def _settings(self) -> list[Setting]:
    return _combinations(
      learning_rate=self.learning_rate, weight_decay=self.weight_decay
    )

  def _heads(
    self, problem: Problem, settings: Sequence[Setting], keep: bool
  ) -> trained.Trained:
    features, labels, k, train, held = problem
    steps = -(-len(train) // self.batch_size)
    options = trained.Options(
      self._kind,
      self.hidden,
      epochs=max(self.epochs, -(-self.min_updates // steps)),
      batch_size=self.batch_size,
      dropout=self.dropout,
    )
    (heads,) = trained.fit(
      [features],
      labels,
      k,
      [trained.Cell(0, train, self.random_state)],
      [trained.Setting(**x) for x in settings],
      held,
      options,
      keep_params=keep,
    )
    return heads

  def _score(
    self, problem: Problem, settings: Sequence[Setting]
  ) -> list[float]:
    heads = self._heads(problem, settings, False)
    right = heads.logits.argmax(-1) == problem.labels[problem.validation][None]
    return right.mean(1).tolist()

  def _train(self, problem: Problem, setting: Setting) -> dict[str, np.ndarray]:
    problem = problem._replace(validation=problem.train[:1])
    heads = self._heads(problem, [setting], True)
    assert heads.params is not None
    return heads.params

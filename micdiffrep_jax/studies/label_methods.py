"""What every method says when it is trained on a draw of labels.

Letters: q test rows, k classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.encoders.cache import Cache
from micdiffrep_jax.heads import classic, floors, matrix, trained
from micdiffrep_jax.heads import kernel as kernel_head
from micdiffrep_jax.heads.matrix import Features
from micdiffrep_jax.heads.trained import Cell, Setting
from micdiffrep_jax.run import log
from micdiffrep_jax.studies import grid
from micdiffrep_jax.studies.probe_rows import Parts


class Draw(NamedTuple):
  """Labelled rows of one share and draw: positions in Parts.rows."""

  share: float
  number: int
  train: np.ndarray
  val: np.ndarray


class Said(NamedTuple):
  """What a method trained on one draw said of the test rows.

  classes (q,) int; chosen: what validation chose for it.
  """

  method: str
  draw: Draw
  classes: np.ndarray
  chosen: dict[str, Any]


def _heads(
  kind: str,
  draws: Sequence[Draw],
  sets: Sequence[Features],
  spots: Sequence[dict[str, Any]],
  parts: Parts,
  k: int,
  config: ConfigDict,
) -> list[Said]:
  """Heads of all draws of one share, trained together."""
  settings = [
    Setting(rate, decay)
    for rate in config.heads.learning_rates
    for decay in config.heads.weight_decays
  ]
  largest = max(len(draw.train) for draw in draws)
  steps = -(-largest // config.heads.batch_size)
  options = trained.options_of(config.heads, kind)
  # A few images make few updates per pass: enough passes to converge.
  epochs = max(options.epochs, -(-config.heads.min_updates // steps))
  cells = [
    Cell(i, draw.train, draw.number) for draw in draws for i in range(len(sets))
  ]
  evaluate = np.concatenate([parts.val, parts.test])
  fits = trained.fit(
    sets,
    parts.labels,
    k,
    cells,
    settings,
    evaluate,
    options._replace(epochs=epochs),
    memory_mb=config.heads.memory_mb,
  )
  said = []
  for j, draw in enumerate(draws):
    mine = fits[j * len(sets) : (j + 1) * len(sets)]
    at = draw.val - len(parts.train)  # positions within `evaluate`
    y = parts.labels[draw.val]
    tried = [
      (grid.score(y, logits[at], config.select), i, a)
      for i, fitted in enumerate(mine)
      for a, logits in enumerate(fitted.logits)
    ]
    best, i, a = max(tried, key=lambda x: x[0])
    classes = mine[i].logits[a][len(parts.val) :].argmax(1)
    chosen = {**spots[i], **settings[a]._asdict(), 'score': best}
    said.append(Said(f'{kind}_concat', draw, classes, chosen))
  return said


def _classic(
  name: str, draw: Draw, found: Features, parts: Parts, k: int
) -> tuple[np.ndarray, dict[str, Any], float]:
  """Classes of the test rows, what was chosen, and its validation score."""
  y = parts.labels
  if name == 'logistic':
    fitted = classic.logistic_regression(found, y, k, draw.train, draw.val)
    test = found._replace(x=found.x[parts.test])
    logits = trained.predict('linear', fitted.params, test)[0]
    score = fitted.scores[fitted.strength]
    return logits.argmax(1), {'strength': fitted.strength}, score
  if name == 'kernel':
    kernel = kernel_head.kernel_ridge(found, y, k, draw.train, draw.val)
    test = found._replace(x=found.x[parts.test])
    logits = trained.predict('kernel', kernel.params, test)[0]
    tried = (kernel.gamma, kernel.strength)
    chosen = dict(zip(('gamma', 'strength'), tried))
    return logits.argmax(1), chosen, kernel.scores[tried]
  nearest, scores = classic.knn(found, y, k, draw.train, draw.val)
  probs = classic.knn_predict(
    classic.as_float32(found, draw.train),
    y[draw.train],
    classic.as_float32(found, parts.test),
    k,
    nearest,
  )
  return probs.argmax(1), {'neighbours': nearest}, scores[nearest]


def _same_rows(said: Said, draws: Sequence[Draw]) -> list[Said]:
  """One answer for draws of the same rows, by a method without a seed."""
  return [said._replace(draw=draw) for draw in draws]


def by_rows(draws: Sequence[Draw]) -> list[list[Draw]]:
  """Draws that hold the same rows, together: all of those of the whole."""
  table: dict[bytes, list[Draw]] = {}
  for draw in draws:
    mark = draw.train.tobytes() + b'/' + draw.val.tobytes()
    table.setdefault(mark, []).append(draw)
  return list(table.values())


def features_said(
  cache: Cache,
  draws: Sequence[Draw],
  parts: Parts,
  k: int,
  config: ConfigDict,
) -> list[Said]:
  """What all heads on the encoder's features say, all layers side by side."""
  spots = [
    {'timestep': t, 'grid': g} for t in cache.timesteps for g in config.grids
  ]
  sets = [
    grid.load(cache, parts, config, s['timestep'], cache.layers, s['grid'])
    for s in spots
  ]
  said = []
  for kind in config.heads.kinds:
    for share in config.fractions:
      mine = [d for d in draws if d.share == share]
      log.get_logger().info('%s heads, %g %% of groups.', kind, 100 * share)
      said += _heads(kind, mine, sets, spots, parts, k, config)
  if not config.classic:
    return said
  if not config.standardise:  # these probes are always standardised
    sets = [matrix.standardise(s.x, parts.train) for s in sets]
  groups = by_rows(draws)
  for name in config.classic:
    for same in log.progress(groups, desc=name, unit='draw'):
      tried = [_classic(name, same[0], found, parts, k) for found in sets]
      i = max(range(len(tried)), key=lambda j: tried[j][2])
      classes, chosen, score = tried[i]
      chosen = {**spots[i], **chosen, 'score': score}
      said += _same_rows(Said(name, same[0], classes, chosen), same)
  return said


def floors_said(
  ds: data.Dataset, draws: Sequence[Draw], parts: Parts, config: ConfigDict
) -> list[Said]:
  """What the baselines without learned features say; they choose nothing."""
  said = []
  described: dict[Any, np.ndarray] = {}
  for name in config.floors:
    how, fit_predict = floors.FLOORS[name]
    if how not in described:
      described[how] = floors.describe(ds.images, parts.rows, how)
    x = described[how]
    for same in log.progress(by_rows(draws), desc=name, unit='draw'):
      at = same[0].train
      probs = fit_predict(
        x[at], parts.labels[at], x[parts.test], len(ds.classes), config.seed
      )
      answer = Said('floor/' + name, same[0], probs.argmax(1), {})
      said += _same_rows(answer, same)
  return said

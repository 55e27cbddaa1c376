"""Decision curves of a classifier, each class against the rest: CSV and PNG."""

from collections.abc import Mapping, Sequence
import os

import numpy as np

from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.scores.decision import NetBenefit, net_benefit

COLUMNS = ('class', 'row', 'threshold', 'net_benefit', 'low', 'high')
ALL = 'act on all'


def curves(
  labels: np.ndarray,
  probs: Mapping[str, np.ndarray],
  groups: np.ndarray,
  classes: Sequence[str],
  resamples: int,
  seed: int,
) -> dict[str, dict[str, NetBenefit]]:
  """By class that labels (n,) have, of each row of probs (n, k) and ALL."""
  found: dict[str, dict[str, NetBenefit]] = {}
  for j, label in enumerate(classes):
    if not (labels == j).any():
      continue  # nothing could be found
    risks = {name: p[:, j] for name, p in probs.items()}
    risks[ALL] = np.ones(len(labels))
    found[label] = {
      name: net_benefit(labels == j, risk, groups, resamples, seed)
      for name, risk in risks.items()
    }
  return found


def write(workdir: str, found: Mapping[str, Mapping[str, NetBenefit]]) -> None:
  """decision.csv and decision.png in workdir."""
  lines = [
    (label, name, *(round(float(x), 4) for x in point))
    for label, by_name in found.items()
    for name, curve in by_name.items()
    for point in zip(*curve)
  ]
  page.write_csv(os.path.join(workdir, 'decision.csv'), COLUMNS, lines)
  figure = plots.decision_curves(found, ALL)
  plots.save(os.path.join(workdir, 'decision.png'), figure)

"""Decision curves of a classifier, each class against the rest: CSV and PNG."""

from collections.abc import Mapping
import os

from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.draw.result import title
from micdiffrep_jax.scores.decision import ALL, NetBenefit

COLUMNS = ('class', 'row', 'threshold', 'net_benefit', 'low', 'high')


def write(workdir: str, found: Mapping[str, Mapping[str, NetBenefit]]) -> None:
  """decision.csv and decision.png in workdir, of {class: {row: curve}}."""
  lines = [
    (label, name, *(round(float(x), 4) for x in point))
    for label, by_name in found.items()
    for name, curve in by_name.items()
    for point in zip(*curve)
  ]
  page.write_csv(os.path.join(workdir, 'decision.csv'), COLUMNS, lines)
  named = {
    label: {title(name): curve for name, curve in by_name.items()}
    for label, by_name in found.items()
  }
  figure = plots.decision_curves(named, title(ALL))
  plots.save(os.path.join(workdir, 'decision.png'), figure)

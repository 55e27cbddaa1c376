"""Scores, intervals and pictures of a label-efficiency study.

Test labels are read here only. Letters: q test rows, k classes, g groups, r
draws, s resamples.
"""

from collections.abc import Sequence
import os
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.scores import bootstrap
from micdiffrep_jax.studies import ablate_tables, report_probe
from micdiffrep_jax.studies.probe_rows import Parts, image_sets

METRICS = ('accuracy', 'balanced_accuracy')
FLOOR = 'floor/'
BOUNDS = ('value', 'low', 'high')
_COLUMNS = (
  'method',
  'share',
  'images',
  'metric',
  'mean',
  'low',
  'high',
  'deviation',
  'draws',
)


class Resampled(NamedTuple):
  """A metric once per draw (r,), and its mean over draws per resample (s,)."""

  once: np.ndarray
  spread: np.ndarray


def resample(
  labels: np.ndarray,
  said: np.ndarray,
  groups: np.ndarray,
  k: int,
  resamples: int,
  seed: int,
) -> dict[str, Resampled]:
  """Each metric over draws and resamples of draws and test groups.

  labels (q,), said (r, q) classes, groups (q,). Each resample draws groups,
  the same for all draws, and draws of labels, both with replacement; the same
  for all methods of as many draws, so that differences are paired.
  """
  weights, index = bootstrap.group_weights(groups, resamples, seed)
  every = np.concatenate([np.ones((1, weights.shape[1]), np.float32), weights])
  found: dict[str, list[np.ndarray]] = {metric: [] for metric in METRICS}
  for classes in said:
    cells = np.zeros((weights.shape[1], k * k))
    np.add.at(cells, (index, labels * k + classes), 1.0)
    counted = bootstrap.count_metrics((every @ cells).reshape(-1, k, k))
    for metric in METRICS:
      found[metric].append(counted[metric])
  rng = np.random.default_rng([seed, 1])
  pick = rng.integers(len(said), size=(resamples, len(said)))
  out = {}
  for metric, values in found.items():
    table = np.stack(values, axis=1)  # (1 + s, r)
    spread = np.take_along_axis(table[1:], pick, axis=1).mean(1)
    out[metric] = Resampled(table[0], spread)
  return out


def interval_over_draws(found: Resampled) -> dict[str, Any]:
  """Mean over draws with a 95 % interval over draws and test groups."""
  low, high = bootstrap.interval(found.spread)
  several = len(found.once) > 1
  return {
    'value': float(found.once.mean()),
    'low': low,
    'high': high,
    'each': found.once.tolist(),
    'deviation': float(found.once.std(ddof=1)) if several else None,
  }


def difference(a: Resampled, b: Resampled) -> dict[str, float]:
  """Mean of a minus b over draws, with a 95 % interval, paired."""
  low, high = bootstrap.interval(a.spread - b.spread)
  return {'value': float((a.once - b.once).mean()), 'low': low, 'high': high}


def score(
  said: Sequence[Any], ds: data.Dataset, parts: Parts, config: ConfigDict
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """One record per method, share and set of test images; and comparisons.

  A comparison is of a method on features with a floor, at the same share.
  """
  test = parts.rows[parts.test]
  labels, groups = data.labels(ds)[test], data.groups(ds)[test]
  images = image_sets(ds, test)
  curves, found = [], {}
  for method in dict.fromkeys(s.method for s in said):
    for share in sorted({s.draw.share for s in said}):
      mine = [s for s in said if (s.method, s.draw.share) == (method, share)]
      mine.sort(key=lambda s: s.draw.number)
      for name, keep in images.items():
        found[method, share, name] = resampled = resample(
          labels[keep],
          np.stack([s.classes[keep] for s in mine]),
          groups[keep],
          len(ds.classes),
          config.resamples,
          config.seed,
        )
        curves.append(
          {
            'method': method,
            'share': share,
            'images': name,
            'chosen': [s.chosen for s in mine],
            **{m: interval_over_draws(x) for m, x in resampled.items()},
          }
        )
  comparisons = [
    {
      'method': method,
      'floor': floor,
      'share': share,
      'images': name,
      **{m: difference(x, found[floor, share, name][m]) for m, x in a.items()},
    }
    for (method, share, name), a in found.items()
    if not method.startswith(FLOOR)
    for floor in dict.fromkeys(key[0] for key in found)
    if floor.startswith(FLOOR)
  ]
  return curves, comparisons


def write(
  workdir: str,
  curves: Sequence[dict[str, Any]],
  comparisons: Sequence[dict[str, Any]],
) -> None:
  """Two tables, and one picture per metric and set of images.

  label_efficiency.csv, comparisons.csv, label_efficiency_METRIC_IMAGES.png.
  """
  key = ('method', 'floor', 'share', 'images')
  ablate_tables.write_csv(
    os.path.join(workdir, 'comparisons.csv'),
    (*key, 'metric', *BOUNDS),
    [
      (*(c[x] for x in key), metric, *(c[metric][x] for x in BOUNDS))
      for c in comparisons
      for metric in METRICS
    ],
  )
  ablate_tables.write_csv(
    os.path.join(workdir, 'label_efficiency.csv'),
    _COLUMNS,
    [
      (
        c['method'],
        c['share'],
        c['images'],
        metric,
        *(c[metric][x] for x in (*BOUNDS, 'deviation')),
        len(c[metric]['each']),
      )
      for c in curves
      for metric in METRICS
    ],
  )
  for images in dict.fromkeys(c['images'] for c in curves):
    for metric in METRICS:
      series: dict[str, dict[str, Any]] = {}
      for method in dict.fromkeys(c['method'] for c in curves):
        mine = [
          c for c in curves if (c['method'], c['images']) == (method, images)
        ]
        series[report_probe.title(method)] = {
          'x': [100 * c['share'] for c in mine],
        } | {
          axis: [100 * c[metric][name] for c in mine]
          for axis, name in (('y', 'value'), ('low', 'low'), ('high', 'high'))
        }
      plots.curves(
        os.path.join(workdir, f'label_efficiency_{metric}_{images}.png'),
        series,
        'labelled training groups, %',
        f'test {metric.replace("_", " ")}, %',
        {'all': 'All variants', 'sources': 'Untouched sources'}[images],
        bold=report_probe.title('mlp_concat'),
        dotted=[name for name in series if name.startswith('floor')],
        log_x=True,
      )


def table(curves: Sequence[dict[str, Any]], split: str) -> str:
  """Plain text: balanced accuracy by method and share, in percent."""
  images = 'sources' if curves[-1]['images'] == 'sources' else 'all'
  shares = sorted({c['share'] for c in curves})
  lines = [
    f'Balanced accuracy on the test part of split {split!r} ({images}), '
    'percent, mean over draws [95 % over draws and groups].',
    f'{"":32}' + ''.join(f'{f"{100 * s:g} %":22}' for s in shares).rstrip(),
  ]
  for method in dict.fromkeys(c['method'] for c in curves):
    cells = ''
    for share in shares:
      (one,) = (
        c['balanced_accuracy']
        for c in curves
        if (c['method'], c['share'], c['images']) == (method, share, images)
      )
      cells += f'{page.brackets(one):22}'
    lines.append(f'{report_probe.title(method)[:31]:32}{cells}'.rstrip())
  return '\n'.join(lines)

"""Scores, intervals and pictures of a label-efficiency study.

Test labels are read here only. Letters: q test rows, k classes, g groups, r
draws, s resamples.
"""

from collections.abc import Sequence
import os
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.draw.result import FLOOR, title
from micdiffrep_jax.scores.bootstrap import (
  BOUNDS,
  difference,
  interval_over_draws,
  resample,
)
from micdiffrep_jax.scores.metrics import HEADLINE as METRICS
from micdiffrep_jax.studies.probe_rows import Parts, image_sets

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
  page.write_csv(
    os.path.join(workdir, 'comparisons.csv'),
    (*key, 'metric', *BOUNDS),
    [
      (*(c[x] for x in key), metric, *(c[metric][x] for x in BOUNDS))
      for c in comparisons
      for metric in METRICS
    ],
  )
  page.write_csv(
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
        series[title(method)] = {
          'x': [100 * c['share'] for c in mine],
        } | {
          axis: [100 * c[metric][name] for c in mine]
          for axis, name in (('y', 'value'), ('low', 'low'), ('high', 'high'))
        }
      figure = plots.curves(
        series,
        'labelled training groups, %',
        f'test {metric.replace("_", " ")}, %',
        {'all': 'All variants', 'sources': 'Untouched sources'}[images],
        bold=title('mlp_concat'),
        dotted=[name for name in series if name.startswith('floor')],
        log_x=True,
      )
      name = f'label_efficiency_{metric}_{images}.png'
      plots.save(os.path.join(workdir, name), figure)


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
    lines.append(f'{title(method)[:31]:32}{cells}'.rstrip())
  return '\n'.join(lines)

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
from micdiffrep_jax.probing import ablate_tables
from micdiffrep_jax.probing.probe_rows import Parts
from micdiffrep_jax.reporting import plots, report_probe
from micdiffrep_jax.stats import bootstrap

METRICS = ('accuracy', 'balanced_accuracy')
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


def interval_over_draws(
  labels: np.ndarray,
  said: np.ndarray,
  groups: np.ndarray,
  k: int,
  resamples: int,
  seed: int,
) -> dict[str, dict[str, Any]]:
  """Mean over draws with a 95 % interval over draws and test groups.

  labels (q,), said (r, q) classes, groups (q,). Each resample draws groups,
  the same for all draws, and draws of labels, both with replacement.
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
    low, high = bootstrap.interval(spread)
    once = table[0]
    out[metric] = {
      'value': float(once.mean()),
      'low': low,
      'high': high,
      'each': once.tolist(),
      'deviation': float(once.std(ddof=1)) if len(once) > 1 else None,
    }
  return out


def score(
  said: Sequence[Any], ds: data.Dataset, parts: Parts, config: ConfigDict
) -> list[dict[str, Any]]:
  """One record per method, share and set of test images."""
  test = parts.rows[parts.test]
  labels, groups = data.labels(ds)[test], data.groups(ds)[test]
  sources = ds.manifest['variant'][test] == ''
  images = {'all': np.ones(len(test), bool), 'sources': sources}
  curves = []
  for method in dict.fromkeys(s.method for s in said):
    for share in sorted({s.draw.share for s in said}):
      mine = [s for s in said if (s.method, s.draw.share) == (method, share)]
      mine.sort(key=lambda s: s.draw.number)
      for name, keep in images.items():
        if not keep.any():
          continue
        found = interval_over_draws(
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
            **found,
          }
        )
  return curves


def write(workdir: str, curves: Sequence[dict[str, Any]]) -> None:
  """label_efficiency.csv and one picture per metric and set of images."""
  ablate_tables.write_csv(
    os.path.join(workdir, 'label_efficiency.csv'),
    _COLUMNS,
    [
      (
        c['method'],
        c['share'],
        c['images'],
        metric,
        *(c[metric][x] for x in ('value', 'low', 'high', 'deviation')),
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
      value, low, high = (100 * one[x] for x in ('value', 'low', 'high'))
      cells += f'{f"{value:.1f} [{low:.1f}, {high:.1f}]":22}'
    lines.append(f'{report_probe.title(method)[:31]:32}{cells}'.rstrip())
  return '\n'.join(lines)

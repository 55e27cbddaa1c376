"""Scores, files and pictures of a probe run. Test labels are read here only."""

import os
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from micdiffrep_jax.data import dataset as data
from micdiffrep_jax.draw import page, plots
from micdiffrep_jax.run import files
from micdiffrep_jax.scores import bootstrap, metrics
from micdiffrep_jax.studies.probe_rows import Parts, Row, image_sets

# (a, b): is a better than b, on the same test groups?
PAIRS = (
  ('mlp_concat', 'linear_single'),  # the paper's comparison
  ('mlp_concat', 'mlp_single'),  # the same with equal heads
  ('mlp_concat', 'linear_concat'),
  ('mlp_concat', 'random/mlp_concat'),
  ('mlp_concat', 'floor/nearest_pixels'),
  ('mlp_concat', 'floor/nearest_hog'),
  ('logistic', 'random/logistic'),
  ('logistic', 'floor/logistic_hog'),
  ('knn', 'random/knn'),
  ('kernel', 'mlp_concat'),
  ('kernel', 'knn'),
  ('kernel', 'random/kernel'),
  ('kernel', 'floor/nearest_pixels'),
  ('kernel', 'floor/nearest_hog'),
  ('kernel', 'floor/kernel_pixels'),
  ('kernel', 'floor/kernel_hog'),
)


def _summary(
  ds: data.Dataset,
  rows: np.ndarray,
  probs: np.ndarray,
  config: ConfigDict,
  normal: str,
) -> dict[str, Any]:
  return bootstrap.summarise(
    data.labels(ds)[rows],
    probs,
    data.groups(ds)[rows],
    ds.classes,
    ds.manifest['variant'][rows],
    normal,
    resamples=config.resamples,
    seed=config.seed,
  )


def _spread(labels: np.ndarray, probs: np.ndarray) -> dict[str, Any]:
  """Accuracy and balanced accuracy of every seed (s, q, k)."""
  values = {
    name: np.array([metrics.value(name, labels, p) for p in probs])
    for name in metrics.HEADLINE
  }
  return {
    name: {
      'each': values[name].tolist(),
      'mean': float(values[name].mean()),
      'std': float(values[name].std(ddof=1)) if len(probs) > 1 else None,
    }
    for name in metrics.HEADLINE
  }


def _before(labels: np.ndarray, row: Row) -> dict[str, float] | None:
  """Calibration of the first seed before its temperature."""
  if row.test_uncalibrated is None:
    return None
  return {
    name: metrics.value(name, labels, row.test_uncalibrated)
    for name in ('ece', 'nll')
  }


def compare(
  rows: dict[str, Row], ds: data.Dataset, at: np.ndarray, config: ConfigDict
) -> list[dict[str, Any]]:
  """Paired comparisons of PAIRS, first seeds, on all images and on sources."""
  labels, groups = data.labels(ds)[at], data.groups(ds)[at]
  return [
    {
      'row_a': a,
      'row_b': b,
      'images': name,
      **bootstrap.compare(
        labels[keep],
        rows[a].test[0][keep],
        rows[b].test[0][keep],
        groups[keep],
        metric,
        2 * config.resamples,
        config.seed,
      ),
    }
    for a, b in PAIRS
    if a in rows and b in rows
    for name, keep in image_sets(ds, at).items()
    for metric in metrics.HEADLINE
  ]


def score(
  rows: dict[str, Row],
  ds: data.Dataset,
  parts: Parts,
  config: ConfigDict,
  normal: str,
) -> dict[str, Any]:
  """The results of all rows: summaries, 2 x 2 table, paired comparisons.

  Summaries and comparisons are of the first seed, the head that is bundled;
  `seeds` tells how the others did.
  """
  val, test = parts.rows[parts.val], parts.rows[parts.test]
  labels = data.labels(ds)[test]
  scored = {
    name: {
      'chosen': row.chosen,
      'temperature': row.temperature,
      'uncalibrated': _before(labels, row),
      'seeds': _spread(labels, row.test),
      'validation': _summary(ds, val, row.val, config, normal),
      'test': _summary(ds, test, row.test[0], config, normal),
    }
    for name, row in rows.items()
  }
  return {
    'rows': scored,
    'two_by_two': {
      prefix.strip('/') or 'encoder': two_by_two(scored, prefix)
      for prefix in ('', 'random/')
      if prefix + 'linear_single' in scored
    },
    'comparisons': compare(rows, ds, test, config),
    'bundle': config.bundle,
    'normal_class': normal,
  }


def two_by_two(scored: dict[str, Any], prefix: str) -> dict[str, Any]:
  """{linear, mlp} x {single, concat}: test accuracy with interval and seeds."""
  return {
    kind: {
      part: {
        **scored[name]['test']['all']['accuracy'],
        'seeds_mean': scored[name]['seeds']['accuracy']['mean'],
        'seeds_std': scored[name]['seeds']['accuracy']['std'],
      }
      for part in ('single', 'concat')
      if (name := f'{prefix}{kind}_{part}') in scored
    }
    for kind in ('linear', 'mlp')
    if f'{prefix}{kind}_single' in scored
  }


def draw(workdir: str, results: dict[str, Any]) -> None:
  """confusion.png of the bundled head, reliability.png of it and others."""
  rows, name = results['rows'], results['bundle']
  test = rows[name]['test']['all']
  title = f'{name}, {results["data"]["split"]} split, test'
  plots.save(
    os.path.join(workdir, 'confusion.png'),
    plots.confusion(test['confusion'], test['classes'], title),
  )
  shown = [n for n in (name, 'linear_single', 'logistic') if n in rows]
  curves = {
    n: rows[n]['test']['all']['reliability'] for n in dict.fromkeys(shown)
  }
  path = os.path.join(workdir, 'reliability.png')
  plots.save(path, plots.reliability(curves))


def save_predictions(
  workdir: str, rows: dict[str, Row], ds: data.Dataset, parts: Parts
) -> None:
  """predictions.npz, without pickle.

  For `part` in val, test: part.index (dataset rows), part.id, part.label,
  part.group, part.variant; part.probs.<row> (n, k) float32 of the first seed.
  """
  arrays: dict[str, np.ndarray] = {'classes': np.array(ds.classes)}
  labels = data.labels(ds)
  for part in ('val', 'test'):
    at = parts.rows[getattr(parts, part)]
    arrays[f'{part}.index'] = at
    arrays[f'{part}.label'] = labels[at]
    for field in ('id', 'group', 'variant'):
      arrays[f'{part}.{field}'] = ds.manifest[field][at].astype(np.str_)
    for name, row in rows.items():
      probs = row.val if part == 'val' else row.test[0]
      arrays[f'{part}.probs.{name}'] = probs.astype(np.float32)
  files.write_arrays(os.path.join(workdir, 'predictions.npz'), arrays)


def _cell(value: dict[str, Any] | None) -> str:
  if value is None or value['value'] is None:
    return '-'
  return page.brackets(value)


def _chosen(chosen: dict[str, Any]) -> str:
  if not chosen:
    return ''
  layers = chosen['layers']
  what = layers[0] if len(layers) == 1 else f'{len(layers)} layers'
  return f'{what}, t = {chosen["timestep"]}, grid {chosen["grid"]}'


def table(results: dict[str, Any]) -> str:
  """Plain text: test scores of every row in percent, and comparisons."""
  titles = (
    'row',
    'accuracy, all',
    'balanced, all',
    'accuracy, sources',
    'balanced, sources',
    'chosen on validation',
  )
  lines = [titles]
  for name, row in results['rows'].items():
    cells = [
      _cell(row['test'].get(part, {}).get(metric))
      for part in ('all', 'sources')
      for metric in metrics.HEADLINE
    ]
    lines.append((name, *cells, _chosen(row['chosen'])))
  widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
  text = [
    '  '.join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip()
    for line in lines
  ]
  text.insert(1, '-' * len(text[0]))
  note = (
    f'Test part of split {results["data"]["split"]!r}, percent, 95 % interval '
    'over groups; mlp_concat is MSFA.'
  )
  pairs = [
    f'{c["row_a"]} - {c["row_b"]}: {100 * c["difference"]:+.1f} '
    f'[{100 * c["low"]:+.1f}, {100 * c["high"]:+.1f}], p = {c["p_value"]:.3g}'
    for c in results['comparisons']
    if c['images'] == 'all' and c['metric'] == 'accuracy'
  ]
  return '\n'.join(['', *text, note, '', *pairs])

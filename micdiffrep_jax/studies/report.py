"""Task `report`: one self-contained page from any set of result folders."""

from collections.abc import Sequence
import json
import os
import time
from typing import Any

from ml_collections import ConfigDict

from micdiffrep_jax.draw import page
from micdiffrep_jax.draw.page import Block, Code, Facts, Section, Text
from micdiffrep_jax.draw.result import Run, pictures
from micdiffrep_jax.run import log
from micdiffrep_jax.studies import (
  audit_page,
  report_classes,
  report_data,
  report_pretrain,
  report_probe,
  report_studies,
  report_table1,
)

RESULTS = 'results.json'


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Writes report.html and report.md; ValueError where no folder is given.

  A folder that holds nothing to report is named in the page, not refused.
  """
  if isinstance(config.runs, str):
    raise ValueError(
      f'config.runs={config.runs!r} is one text; give a tuple: '
      f'--config.runs="(\'{config.runs}\',)".'
    )
  if not config.runs:
    raise ValueError(
      "Nothing to report. Set --config.runs=\"('runs/pretrain',"
      "'runs/probe')\" to result folders."
    )
  found = collect(config.runs)
  sections = compose(found, config.look_up_data)
  os.makedirs(workdir, exist_ok=True)
  when = time.strftime('%Y-%m-%d %H:%M')
  subtitle = f'{sum(r.record is not None for r in found)} runs, written {when}'
  path = os.path.join(workdir, 'report.html')
  texts = {
    'report.html': page.render(config.title, subtitle, sections),
    'report.md': page.markdown(config.title, subtitle, sections),
  }
  for name, text in texts.items():
    partial = os.path.join(workdir, f'.{name}.partial')
    with open(partial, 'w', encoding='utf-8') as f:
      f.write(text)
    os.replace(partial, os.path.join(workdir, name))
  log.get_logger().info('Report: %s', path)
  return log.write_results(
    workdir,
    {
      'task': 'report',
      'report': path,
      'sections': [s.title for s in sections if s.blocks],
      'missing': {r.name: r.problem for r in found if r.problem},
    },
    config,
  )


def collect(folders: Sequence[str]) -> list[Run]:
  """One run per folder; a pipeline's or a sweep's stands for those in it."""
  found = []
  for folder in folders:
    path = os.path.abspath(os.path.expanduser(folder))
    one = read(path, os.path.basename(path) or folder)
    parts = []
    if os.path.isdir(path) and (one.record is None or one.task == 'pipeline'):
      parts = [
        read(os.path.join(path, name), f'{one.name}/{name}')
        for name in sorted(os.listdir(path))
        if os.path.exists(os.path.join(path, name, RESULTS))
      ]
    found += [p for p in parts if p.task != 'report'] or [one]
  return found


def read(folder: str, name: str) -> Run:
  """A run's results, or the reason why there are none."""
  path = os.path.join(folder, RESULTS)
  if not os.path.isdir(folder):
    return Run(name, folder, None, 'the folder does not exist')
  try:
    with open(path, encoding='utf-8') as f:
      record = json.load(f)
    if not isinstance(record, dict):
      raise ValueError('no table of results')
  except FileNotFoundError:
    return Run(name, folder, None, f'no {RESULTS}: unfinished, or no run')
  except (OSError, ValueError) as e:
    return Run(name, folder, None, f'{RESULTS} cannot be read: {e}')
  return Run(name, folder, record)


def compose(found: Sequence[Run], look_up: bool) -> list[Section]:
  """The sections of the page; a run that does not fit its section is said."""
  probes = [r for r in found if r.task in _PROBES]
  known = {
    'Results': (report_probe.results, probes),
    'Table 1': (
      report_table1.blocks,
      [r for r in found if r.task == 'table1'],
    ),
    'Classes and calibration': (report_classes.classes, probes),
    'Layers and timesteps': (report_classes.trials, probes),
    'Splits': (
      report_studies.splits,
      [r for r in found if r.task == 'splits'],
    ),
    'Cross-validation': (
      report_studies.cross_validation,
      [r for r in found if r.task == 'cross_validate'],
    ),
    'Few labels': (
      report_studies.labels,
      [r for r in found if r.task == 'label_efficiency'],
    ),
    'Pretraining': (
      report_pretrain.pretraining,
      [r for r in found if r.task == 'pretrain' or r.record is None],
    ),
    'Samples': (
      report_pretrain.samples,
      [r for r in found if r.task == 'sample'],
    ),
    'Data': (
      report_data.counts if look_up else (lambda run: []),
      [*_one_per_dataset(found)],
    ),
    'Audit': (_audit, [r for r in found if r.task == 'audit']),
    'Other runs': (
      _other,
      [r for r in found if r.record is not None and r.task not in _KNOWN],
    ),
    'Provenance': (_circumstances, found),
  }
  return [
    Section(
      title, [block for r in runs for block in _guarded(make, r, len(runs))]
    )
    for title, (make, runs) in known.items()
  ]


_PROBES = ('ablate', 'probe', 'evaluate')
_KNOWN = (
  *_PROBES,
  'audit',
  'cross_validate',
  'label_efficiency',
  'pipeline',
  'pretrain',
  'sample',
  'splits',
  'table1',
)


def _guarded(make: Any, run: Run, of: int) -> list[Block]:
  """The blocks of one run under its name; a fault in them becomes a line."""
  try:
    blocks = make(run)
  except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
    reason = f'{run.name}: not shown, its results lack something ({e!r}).'
    return [Text(reason, 'warning')]
  if blocks and of > 1:
    return [page.Heading(run.name), *blocks]
  return blocks


def _one_per_dataset(found: Sequence[Run]) -> list[Run]:
  """The first run of each dataset; the audited ones have a section already."""
  kept: dict[str, Run] = {}
  audited = {report_data.fingerprint(r) for r in found if r.task == 'audit'}
  for r in found:
    mark = report_data.fingerprint(r)
    if mark and mark not in audited:
      kept.setdefault(mark, r)
  return list(kept.values())


def _audit(run: Run) -> list[Block]:
  assert run.record is not None
  return [
    block
    for section in audit_page.sections(run.record)
    if section.title != 'Provenance'
    for block in section.blocks
  ]


def _other(run: Run) -> list[Block]:
  """What is plain to show of a task that has no section: numbers, pictures."""
  assert run.record is not None
  skip = ('config', 'versions', 'device', 'host_cores', 'command', 'finished')
  pairs = [
    (name, f'{value:.6g}' if isinstance(value, float) else value)
    for name, value in run.record.items()
    if name not in skip and isinstance(value, str | int | float)
  ]
  return [Facts(pairs), *pictures(run)]


def _circumstances(run: Run) -> list[Block]:
  """Command, device, seed, versions and config of one run."""
  if run.record is None:
    return [Text(f'{run.folder}: {run.problem}.', 'warning')]
  record = run.record
  config = record.get('config') or {}
  split = record.get('data') or record.get('dataset') or {}
  pairs = [
    ('task', run.task),
    ('folder', run.folder),
    ('command', ' '.join(record.get('command') or [])),
    (
      'device',
      f'{record.get("device")}, {record.get("host_cores")} host cores',
    ),
    ('seed', config.get('seed')),
    ('seeds', config.get('seeds')),
    ('data fingerprint', split.get('fingerprint')),
    ('split', split.get('split')),
    ('split hash', split.get('split_hash')),
    ('finished', record.get('finished')),
  ]
  versions = ', '.join(
    f'{k} {v}' for k, v in (record.get('versions') or {}).items()
  )
  return [
    Facts([(k, v) for k, v in pairs if v not in (None, '')]),
    Code(versions, 'Versions'),
    Code(json.dumps(config, indent=2), 'Config'),
  ]

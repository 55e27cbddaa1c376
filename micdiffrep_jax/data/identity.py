"""What a file is a picture of: its source and variant, and whose it is.

A source is a picture as published, a variant a copy of it that was changed. A
patient is known or not: what is not known is said, never guessed.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import csv
import io
import os
import re
from typing import Any, NamedTuple
import unicodedata

from micdiffrep_jax.data import layout as layouts
from micdiffrep_jax.run import log

# G_12.jpg is a picture as published, G_12_BR_.jpg one of its variants.
PRESETS = {'crystal_clean': r'^(?P<source>[A-Za-z]+_\d+)(?P<variant>.*)$'}
CHOICES = ('', 'file', 'parent')
UNKNOWN = 'unknown'  # where nothing names the patient
_SUBJECT = re.compile(r'(?:^|/)(sub-[A-Za-z0-9]+)(?=[/_.]|$)')  # of BIDS
_COLUMNS = ('group', 'patient', 'patient_id', 'participant_id', 'subject')
_PLACEHOLDER = re.compile(
  r'(anon[a-z_]*|unknown|none|nan|n/?a|null|removed|de-?identified|-+|\?+)'
  r'[\s_^]*',
  re.IGNORECASE,
)
_NOT_KNOWN = ('0', 'false', 'no')
_SHOWN = 5


TableRow = tuple[int, str, str]  # number of the line, file, patient


class Rules(NamedTuple):
  """Fields of config.data that say what belongs together."""

  variant_regex: str = ''  # crystal_clean, or a pattern with source, variant
  group_csv: str = ''  # table with the columns file, group
  group_regex: str = ''  # pattern of the patient's name
  group_by: str = ''  # parent (folder is patient) or file (patients unknown)
  layout: str = ''  # of folders; one of them may be the patient

  @classmethod
  def of(cls, data: Mapping[str, str]) -> 'Rules':
    """From config.data; a preset of variants is no pattern of patients."""
    found = {k: str(data.get(k, '') or '') for k in cls._fields}
    if found['group_regex'] in PRESETS and not found['variant_regex']:
      found['variant_regex'] = found['group_regex']
    if found['group_regex'] in PRESETS:
      found['group_regex'] = ''
    return cls(**found)


class Identity(NamedTuple):
  """Per file (n): source, variant, patient, and what named the patient.

  variant is '' for an untouched source, patient '' where nobody knows.
  """

  source: list[str]
  variant: list[str]
  patient: list[str]
  named_by: list[str]  # group_csv ... BIDS, see assign; or unknown

  def people(self) -> list[str]:
    """The patient of each file; a source of an unknown one stands alone."""
    return [
      f'patient:{p}' if p else f'unit:{s}'
      for p, s in zip(self.patient, self.source, strict=True)
    ]


def assign(
  files: Sequence[str],
  known: Sequence[str],
  rules: Rules,
  listed: Sequence[str] = (),
) -> Identity:
  """Decides file by file, the first that names a patient wins.

  The order: `group_csv`, `group_regex`, the patient of `layout`,
  `group_by=parent`, what the file or its source says of itself (`known`, '' for
  nothing), a folder or name sub-XX of BIDS. A file that none of them names has
  an unknown patient, which must be accepted: by `variant_regex`,
  `group_by=file`, or a table that says so. Patterns see the name without its
  ending, or the path where they contain a '/'. Rows of the table that name none
  of the files `listed` are warned of, where these are given. Raises ValueError
  for a rule that does not work, contradictions, and files that are left without
  a patient.
  """
  if rules.group_by not in CHOICES:
    raise ValueError(
      f'config.data.group_by={rules.group_by!r}; one of {CHOICES}. A pattern '
      'goes into config.data.group_regex.'
    )
  source, variant = _variants(files, rules)
  rows = _read_table(rules.group_csv) if rules.group_csv else []
  table = _table(rows, rules, files, source)
  told = _headers(known)
  pattern = _compiled('group_regex', rules.group_regex)
  ways = {
    'group_csv': [table.get(i, '') for i in range(len(files))],
    'group_regex': [_matched(pattern, file) for file in files],
    'layout': [
      '' if is_placeholder(name) else name
      for name in layouts.read(files, rules.layout, 'patient')
    ],
    'parent': [_parent(file, rules.group_by) for file in files],
    'header': told,
    'BIDS': [subject(file) for file in files],
  }
  patient, named_by = [], []
  for names in zip(*ways.values(), strict=True):
    named = zip(ways, map(tidy, names), strict=True)
    by, name = next((x for x in named if x[1]), (UNKNOWN, ''))
    named_by.append(by)
    patient.append(name)
  found = Identity(source, variant, patient, named_by)
  accepted = bool(rules.variant_regex) or rules.group_by == 'file'
  if not accepted:
    _check_all_named(files, found, set(table), rules)
  _warn_of_torn_headers(files, told, found)
  if listed:
    _warn_of_unused_rows(rows, listed, rules)
  return found


def claims(
  files: Sequence[str], known: Sequence[str], rules: Rules
) -> list[set[str]]:
  """Every name of a patient that a file of any source bears; nothing is asked.

  By `group_regex`, what files say of themselves (`known`), BIDS.
  """
  pattern = _compiled('group_regex', rules.group_regex)
  told = known if len(set(known)) > 1 else [''] * len(files)
  return [
    {tidy(_matched(pattern, file)), tidy(name), subject(file)} - {''}
    for file, name in zip(files, told, strict=True)
  ]


def counts(found: Identity) -> dict[str, int]:
  """How many files got their patient from where, 'unknown' among them."""
  return dict(Counter(found.named_by).most_common())


def stem(file: str) -> str:
  """A path without its ending, .nii.gz being one."""
  if file.lower().endswith('.nii.gz'):
    return file[: -len('.nii.gz')]
  return os.path.splitext(file)[0]


def is_placeholder(name: str) -> bool:
  """Whether a patient's id is what a program writes in place of one."""
  return bool(_PLACEHOLDER.fullmatch(name.strip()))


def count_patients(patients: Sequence[str]) -> dict[str, int]:
  """Of images by patient, '' for unknown: images, patients, unknown ones."""
  known = [name for name in patients if name]
  return {
    'patients': len(set(known)),
    'images': len(patients),
    'unknown': len(patients) - len(known),
  }


def tidy(name: str) -> str:
  """Without blanks that mean nothing: DICOM pads ids to an even length."""
  return ' '.join(name.replace('\0', ' ').split())


def subject(file: str) -> str:
  """The folder or the beginning of a name sub-XX of BIDS; '' for none."""
  found = _SUBJECT.search(file)
  return found.group(1) if found else ''


def _parent(file: str, group_by: str) -> str:
  return os.path.dirname(file) if group_by == 'parent' else ''


def _compiled(field: str, pattern: str) -> re.Pattern | None:
  """The pattern of a field, with a group; None where there is none."""
  if not pattern:
    return None
  try:
    regex = re.compile(pattern)
  except re.error as e:
    raise ValueError(
      f'config.data.{field}={pattern!r} is no pattern: {e}'
    ) from None
  return regex if regex.groups else re.compile(f'({pattern})')


def _search(regex: re.Pattern, file: str) -> re.Match | None:
  name = stem(file)
  return regex.search(name if '/' in regex.pattern else os.path.basename(name))


def _matched(regex: re.Pattern | None, file: str) -> str:
  match = _search(regex, file) if regex else None
  if regex is None or match is None:
    return ''
  return match.group('group' if 'group' in regex.groupindex else 1) or ''


def _variants(
  files: Sequence[str], rules: Rules
) -> tuple[list[str], list[str]]:
  """Source and variant of each file; raises ValueError for two of a kind."""
  field, pattern = 'variant_regex', rules.variant_regex
  if not pattern and '(?P<variant>' in rules.group_regex:
    field, pattern = 'group_regex', rules.group_regex
  if not pattern:
    return list(files), [''] * len(files)
  regex = _compiled(field, PRESETS.get(pattern, pattern))
  assert regex is not None
  if field == 'variant_regex' and not {'source', 'variant'} <= set(
    regex.groupindex
  ):
    raise ValueError(
      f'config.data.variant_regex={pattern!r} needs the named groups source '
      f'and variant, as {PRESETS["crystal_clean"]!r} has them.'
    )
  source, variant = list(files), [''] * len(files)
  missed = []
  for i, file in enumerate(files):
    match = _search(regex, file)
    if match is None:
      missed.append(file)
      continue
    named = 'source' if 'source' in regex.groupindex else 'group'
    source[i] = match.group(named) or file
    variant[i] = (match.group('variant') or '').strip('_')
  if missed:
    raise ValueError(
      f'config.data.{field}={pattern!r} does not match {len(missed)} of '
      f'{len(files)} files: {missed[:_SHOWN]}.'
    )
  twice = [k for k, n in Counter(zip(source, variant)).items() if n > 1]
  if twice:
    raise ValueError(
      f'config.data.{field}={pattern!r} makes one picture of several '
      f'files: {twice[:_SHOWN]}. A pattern that contains "/" sees the folders '
      'too.'
    )
  return source, variant


def _table(
  rows: Sequence[TableRow],
  rules: Rules,
  files: Sequence[str],
  source: Sequence[str],
) -> dict[int, str]:
  """{number of a file: patient, or '' where the table says unknown}.

  A row names a file, or a source whose variants follow. Raises ValueError
  where rows contradict each other and where no row names a file.
  """
  if not rules.group_csv:
    return {}
  by_path: dict[str, str] = {}
  for line, name, patient in rows:
    _set(by_path, name, patient, f'{rules.group_csv} line {line}')
  regex = _source_pattern(rules)
  by_source: dict[str, str] = {}
  for name, patient in by_path.items() if regex else ():
    match = _search(regex, name) if regex else None
    if match is not None:
      where = f'{rules.group_csv} {name}'
      _set(by_source, match.group('source'), patient, where)
  found = {}
  for i, file in enumerate(files):
    if _composed(file) in by_path:
      found[i] = by_path[_composed(file)]
    elif source[i] in by_source:
      found[i] = by_source[source[i]]
  if files and not found:
    raise ValueError(
      f'config.data.group_csv={rules.group_csv!r} names none of the '
      f'{len(files)} files: it has {list(by_path)[:3]}, they are called '
      f'{list(files[:3])}. Files are named by their path below the source.'
    )
  return found


def _source_pattern(rules: Rules) -> re.Pattern | None:
  """The pattern that names the source of a file; None where there is none."""
  text = PRESETS.get(rules.variant_regex, rules.variant_regex)
  return _compiled('variant_regex', text)


def _warn_of_unused_rows(
  rows: Sequence[TableRow], files: Sequence[str], rules: Rules
) -> None:
  """Says so where rows of the table name no file of a source."""
  source, _ = _variants(files, rules) if rows else ((), ())
  there = {_composed(name) for name in (*files, *source)}
  regex = _source_pattern(rules)
  unused = []
  for _, name, _ in rows:
    match = _search(regex, name) if regex else None
    if name not in there and not (match and match.group('source') in there):
      unused.append(name)
  if unused:
    log.get_logger().warning(
      '%d rows of %s name no file of the source, e.g. %s: names count letter '
      'by letter, upper and lower case too.',
      len(unused),
      rules.group_csv,
      unused[0],
    )


def _composed(name: str) -> str:
  """A name as most systems spell it: macOS takes letters and accents apart."""
  return unicodedata.normalize('NFC', name)


def _set(table: dict[str, str], key: str, patient: str, where: str) -> None:
  """Adds to a table; raises ValueError for a second, different value."""
  if table.setdefault(key, patient) != patient:
    raise ValueError(
      f'{where} gives {key!r} the group {patient!r}, another line gives it '
      f'{table[key]!r}.'
    )


def _lines(reader: Any, path: str) -> Iterator[list[str]]:
  """The rows of a csv.reader; ValueError for what it cannot take apart."""
  try:
    yield from reader
  except csv.Error as e:
    raise ValueError(
      f'config.data.group_csv={path!r} is no table: line {reader.line_num}: '
      f'{e}.'
    ) from None


def _read_table(path: str) -> list[TableRow]:
  """Lines of a CSV file as programs export them.

  patient is '' where the column patient_known says so. Rows with an empty cell
  for the patient, or what programs write there, say nothing and are left out.
  """
  try:
    with open(path, 'rb') as f:
      data = f.read()
  except OSError as e:
    raise ValueError(f'config.data.group_csv={path!r}: {e.strerror}.') from None
  try:
    text = data.decode('utf-8-sig')
  except UnicodeDecodeError as e:
    line = data[: e.start].count(b'\n') + 1
    raise ValueError(
      f'config.data.group_csv={path!r} is not UTF-8 in line {line}; save it '
      'as "CSV UTF-8".'
    ) from None
  first = text.partition('\n')[0]
  sign = max(',;\t', key=first.count)
  reader = csv.reader(io.StringIO(text, newline=''), delimiter=sign)
  header = [name.strip().lower() for name in next(_lines(reader, path), [])]
  column = next((c for c in _COLUMNS if c in header), '')
  if 'file' not in header or not column:
    raise ValueError(
      f'config.data.group_csv={path!r} needs the columns file and group; line '
      f'1 has {header}.'
    )
  if header.count('file') > 1 or header.count(column) > 1:
    raise ValueError(
      f'config.data.group_csv={path!r} has a column twice in line 1: {header}.'
    )
  rows = []
  for cells in _lines(reader, path):
    if not any(cell.strip() for cell in cells):
      continue
    if len(cells) != len(header):
      raise ValueError(
        f'config.data.group_csv={path!r} has {len(cells)} cells in line '
        f'{reader.line_num}, and {len(header)} columns: {header}.'
      )
    row = dict(zip(header, (cell.strip() for cell in cells)))
    name = _composed(row['file'].replace('\\', '/').removeprefix('./'))
    unknown = row.get('patient_known', '').lower() in _NOT_KNOWN
    patient = '' if unknown else tidy(row[column])
    if unknown or (patient and not is_placeholder(patient)):
      rows.append((reader.line_num, name, patient))
  return rows


def _headers(known: Sequence[str]) -> list[str]:
  """What files say of themselves, but for one id that all of them carry."""
  told = [tidy(name) for name in known]
  if len(told) > 1 and len(set(told)) == 1 and told[0]:
    log.get_logger().warning(
      'All %d files carry one patient id, which is taken for none.', len(told)
    )
    return [''] * len(told)
  return told


def _layout_with_patients(files: Sequence[str]) -> str:
  """The layout that folders look like, or one to show how it is written."""
  text = layouts.suggest(files)
  return text if 'patient' in text else 'class/patient/...'


def _check_all_named(
  files: Sequence[str], found: Identity, listed: set[int], rules: Rules
) -> None:
  """Raises ValueError for files whose patient nothing names."""
  left = [
    i
    for i, by in enumerate(found.named_by)
    if by == UNKNOWN and i not in listed
  ]
  if not left:
    return
  examples = [files[i] for i in left[:_SHOWN]]
  ways = (
    'Set one of --config.data.group_csv=TABLE, '
    "--config.data.group_regex='^(patient\\d+)', "
    '--config.data.group_by=parent, '
    f"--config.data.layout='{_layout_with_patients(files)}'; "
    'say which files are copies of one picture '
    f'with --config.data.variant_regex (presets: {sorted(PRESETS)}); or accept '
    'that their patients are unknown with --config.data.group_by=file.'
  )
  if len(left) == len(files) and not (rules.group_csv or rules.group_regex):
    raise ValueError(
      'Nothing says which pictures belong together (one patient, one source '
      f'picture), and a split by single files would leak. {ways}'
    )
  if rules.group_regex:
    ways = f'group_regex={rules.group_regex!r} does not match them. {ways}'
  named = {k: n for k, n in counts(found).items() if k != UNKNOWN}
  raise ValueError(
    f'{len(left)} of {len(files)} files have no patient: {examples}'
    f'{", ..." if len(left) > _SHOWN else ""}. The others have theirs from '
    f'{named or "nowhere"}. {ways}'
  )


def _warn_of_torn_headers(
  files: Sequence[str], told: Sequence[str], found: Identity
) -> None:
  """Says so where what the user gave parts files of one header's patient."""
  chosen: dict[str, tuple[str, str]] = {}
  for file, header, patient in zip(files, told, found.patient, strict=True):
    if not header:
      continue
    before = chosen.setdefault(header, (patient, file))
    if before[0] != patient:
      log.get_logger().warning(
        'The headers of %s and %s name one patient, your rule names two: %r '
        'and %r. The rule is followed.',
        before[1],
        file,
        before[0],
        patient,
      )
      return
